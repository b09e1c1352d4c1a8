"""A new method is listed, CONTRIBUTING.md says what it needs, and a new key leaves the trainings of before their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hoi_distill.stages.student
from hoi_distill.stages.student.method import METHODS, method_named, parameters_of
from hoi_distill.storage.digests import content_name

ROOT = Path(__file__).parents[3]
HOUSE = Path(hoi_distill.stages.student.__file__).parent
FOLDERS = {where.partition(":")[0].removesuffix(".method") for where in METHODS.values()}

NAMES = {
    "pair_classifier": "ac87533e83ac",
    "vlm_hoi": "0da41a2d6bdf",
    "link": "5b3dd6a9e932",
    "cl_hoi": "9da591950660",
}
"""Digests of what each method's defaults give to a fingerprint."""


@pytest.mark.parametrize("name", METHODS)
def test_trainings_with_default_keys_keep_their_names(name):
    method = method_named(name)
    record = json.dumps(parameters_of(method.config(), method.bookkeeping))
    assert content_name(record.encode(), 6) == NAMES[name], (
        "every training of this method would run again: mark a new key with metadata=LATER (stages/student/method.py)"
    )


def test_every_folder_of_a_method_is_listed():
    """The contracts of pyproject.toml hold all folders in ``methods`` to the walls; this one is their list by name."""
    there = {path.name for path in (HOUSE / "methods").iterdir() if (path / "method.py").exists()}
    assert {f"{hoi_distill.stages.student.__name__}.methods.{name}" for name in there} == FOLDERS


def test_contributing_says_what_a_new_stage_a_new_key_and_a_new_method_need():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert "pyproject.toml" in page.partition("## Adding a student method")[2].partition("\n## ")[0]
    assert "metadata=LATER" in page.partition("## Adding a key")[2].partition("\n## ")[0]
    assert "docs/teachers_table.py" in page.partition("## Adding a stage")[2].partition("\n## ")[0]
