"""Writes the tables of ``docs/evaluation.md`` that come from the code: conventions, switches, kinds of error.

python docs/evaluation_tables.py
"""

from __future__ import annotations

from pathlib import Path

from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES
from hoi_distill.stages.evaluate.metrics.conventions import CONVENTIONS, NUMBERS, OFFICIAL, SWITCHES

PAGE = Path(__file__).parent / "evaluation.md"


def tables() -> dict[str, str]:
    """Every generated table as Markdown, by its name in the page."""
    official = OFFICIAL.switches()
    rows = []
    for row in CONVENTIONS.values():
        changed = (f"`{key}={value}`" for key, value in row.switches().items() if value != official[key])
        rows.append((f"`{row.name}`", row.description, row.source, ", ".join(changed) or "none"))
    values = [
        (f"`{key}`", f"`{value}`" + (" (official)" if value == official[key] else ""), text)
        for key, choices in SWITCHES.items()
        for value, text in choices.items()
    ]
    numbers = [(f"`{key}`", f"a number; official: {official[key]}", text) for key, text in NUMBERS.items()]
    return {
        "conventions": _table(("`--convention`", "whose", "code", "switches other than official"), rows),
        "switches": _table(("`--switch`", "value", "meaning"), values + numbers),
        "kinds": _table(("kind", "condition"), list(KINDS.items())),
        "misses": _table(("reason", "condition"), list(MISSES.items())),
    }


def filled(page: str) -> str:
    """The page with every table as it is now."""
    for name, table in tables().items():
        begin, end = f"<!-- {name}: python docs/evaluation_tables.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}"
    return page


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
