"""A new method is listed, and CONTRIBUTING.md says what it needs."""

from __future__ import annotations

from pathlib import Path

import hoi_distill.stages.student
from hoi_distill.stages.student.method import METHODS

ROOT = Path(__file__).parents[3]
HOUSE = Path(hoi_distill.stages.student.__file__).parent
FOLDERS = {where.partition(":")[0].removesuffix(".method") for where in METHODS.values()}


def test_every_folder_of_a_method_is_listed():
    """The contracts of pyproject.toml hold all folders in ``methods`` to the walls; this one is their list by name."""
    there = {path.name for path in (HOUSE / "methods").iterdir() if (path / "method.py").exists()}
    assert {f"{hoi_distill.stages.student.__name__}.methods.{name}" for name in there} == FOLDERS


def test_contributing_says_what_a_new_stage_and_a_new_method_need():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert "pyproject.toml" in page.partition("## Adding a student method")[2].partition("\n## ")[0]
    assert "docs/teachers_table.py" in page.partition("## Adding a stage")[2].partition("\n## ")[0]
