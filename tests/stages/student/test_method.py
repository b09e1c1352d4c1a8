"""A new method, and a new file that methods share, are checked by lint: the contracts name all of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import hoi_distill.stages.student
from hoi_distill.stages.student.method import METHODS

ROOT = Path(__file__).parents[3]
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
HOUSE = Path(hoi_distill.stages.student.__file__).parent
NAME = hoi_distill.stages.student.__name__
FOLDERS = {where.partition(":")[0].removesuffix(".method") for where in METHODS.values()}


def test_every_method_is_in_both_contracts():
    what = "add its folder to these contracts of pyproject.toml, see CONTRIBUTING.md"
    for name, key in (
        ("methods know nothing of each other", "modules"),
        ("what students share knows no method", "forbidden_modules"),
    ):
        assert set(CONTRACTS[name][key]) == FOLDERS, what


def test_every_shared_file_is_in_the_contract():
    """METHODS names methods in strings, which is no import."""
    there = {f"{NAME}.{path.stem}" for path in HOUSE.iterdir() if path.is_dir() or path.suffix == ".py"}
    shared = {name for name in there - FOLDERS if not name.endswith(("__init__", "__pycache__"))}
    listed = set(CONTRACTS["what students share knows no method"]["source_modules"])
    assert listed == shared, "add it to the source_modules of this contract of pyproject.toml"


def test_contributing_says_what_a_new_stage_and_a_new_method_need():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert "pyproject.toml" in page.partition("## Adding a student method")[2].partition("\n## ")[0]
    assert "docs/teachers_table.py" in page.partition("## Adding a stage")[2].partition("\n## ")[0]
