"""A new method, and a new folder that methods share, are checked by lint: the contracts name all of them."""

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
    what = "put its folder in stages/student/methods, which these contracts of pyproject.toml name"
    assert all(folder.startswith(f"{NAME}.methods.") for folder in FOLDERS), what
    assert CONTRACTS["methods know nothing of each other"]["modules"] == [f"{NAME}.methods.*"]
    layers = CONTRACTS["methods -> pairs -> what all students share"]
    assert (layers["containers"], layers["layers"][0]) == ([NAME], "methods")


def test_every_shared_folder_is_in_the_contract():
    shared = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").is_file()}
    layers = CONTRACTS["methods -> pairs -> what all students share"]["layers"]
    assert shared <= set(layers), "add it to the layers of this contract of pyproject.toml"


def test_contributing_says_what_a_new_stage_and_a_new_method_need():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert "pyproject.toml" in page.partition("## Adding a student method")[2].partition("\n## ")[0]
    assert "docs/teachers_table.py" in page.partition("## Adding a stage")[2].partition("\n## ")[0]
