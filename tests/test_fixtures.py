"""What several tests use stands in tests/fixtures: no test module and no conftest is imported by another module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
IMPORTED = re.compile(
    r"^\s*(?:from\s+(tests(?:\.\w+)*)\s+import\s+([\w, ]+|\([^)]*\))|import\s+(tests(?:\.\w+)*))", re.MULTILINE
)


def imported_tests(text: str, own: str) -> set[str]:
    """The test modules and conftests, other than ``own``, that a text imports, also in the scripts that it holds."""
    found = set()
    for package, names, module in IMPORTED.findall(text):
        found |= {module or package, *(f"{package}.{name}" for name in re.findall(r"\w+", names) if package)}
    return {name for name in found if re.search(r"\.(test_\w+|conftest)$", name)} - {own}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from tests.a.test_b import c\n", {"tests.a.test_b"}),
        ("x = '''\nfrom tests.a.conftest import c\n'''\n", {"tests.a.conftest"}),
        ("from tests.a import (\n    d,\n    test_b,\n)\n", {"tests.a.test_b"}),
        ("import tests.a.test_b\n", {"tests.a.test_b"}),
        ("from tests.own.test_own import c\n", set()),
    ],
)
def test_imports_of_tests_are_found(text: str, found: set[str]):
    assert imported_tests(text, "tests.own.test_own") == found


def test_no_test_module_is_imported_by_another():
    for file in sorted(TESTS.rglob("*.py")):
        own = ".".join(file.relative_to(TESTS.parent).with_suffix("").parts)
        if file != Path(__file__):
            assert not imported_tests(file.read_text(), own), file.relative_to(TESTS.parent)


def test_no_fixture_is_imported():
    for file in sorted(TESTS.rglob("*.py")):
        imported = re.findall(r"from tests\S* import .*# noqa: F401", file.read_text())
        assert file == Path(__file__) or not imported, file.relative_to(TESTS.parent)
