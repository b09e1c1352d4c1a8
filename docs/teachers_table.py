"""Writes the tables of ``docs/teachers.md`` that come from the code: what ``hoi-distill teachers`` and ``detectors`` list.

python docs/teachers_table.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hoi_distill.pipeline.cli.teachers import BOXES
from hoi_distill.pipeline.graph.catalogue import catalogue

PAGE = Path(__file__).parent / "teachers.md"
COMMAND = "python docs/teachers_table.py"


def tables() -> dict[str, str]:
    """Both generated tables as Markdown, by their name in the page."""
    rows: dict[str, list[tuple[str, ...]]] = {"teachers": [], "detectors": []}
    for entry in catalogue():
        takes = ", ".join(f"`{name}`" for name in entry["architectures"] if not name.startswith("Pico"))
        said = entry["says"].replace("|", "\\|") + _needs(entry["stage"], entry["needs"])
        row = (f"`{entry['stage']}`", f"`{entry['table']}`", said, takes or "no checkpoint")
        rows["detectors" if entry["table"] in BOXES else "teachers"].append(row)
    head = ("`stage:`", "kind of table", "a cell", "model classes (`architectures` in `config.json`)")
    return {name: _table(head, lines) for name, lines in rows.items()}


def _needs(stage: str, install: str | None) -> str:
    """What a stage needs beside the project: one of its extras, or a package that is no dependency."""
    if install is None:
        return ""
    if extra := re.search(r"hoi-distill\[(\w+)\]", install):
        return f" Needs the extra `{extra[1]}`."
    return f" Needs {stage}, `hoi-distill detectors {stage}` says how to install it."


def filled(page: str) -> str:
    """The page with every table as it is now."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: {COMMAND} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
