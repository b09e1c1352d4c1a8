"""A table of a measurement: which values of its result it shows, and in which unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Heading:
    """A row or a column of a table.

    Attributes:
        label: as a reader sees it.
        key: where its values are in the result, names joined by slashes. A row's key may hold ``{}``, which stands for the
            column's.
        unit: of its values, see :func:`cell`.
    """

    label: str
    key: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A part of a result.

    Attributes:
        rows: of the table.
        columns: of the table; the default is one column without a name.
        corner: what the rows are.
    """

    rows: tuple[Heading, ...]
    columns: tuple[Heading, ...] = (Heading("", ""),)
    corner: str = ""

    def markdown(self, result: Result) -> list[str]:
        """The lines of the table."""
        lines = [f"| {self.corner} | {' | '.join(column.label for column in self.columns)} |"]
        lines.append("|---|" + "---:|" * len(self.columns))
        for row in self.rows:
            values = (found(result, row.key.format(column.key)) for column in self.columns)
            units = (row.unit or column.unit for column in self.columns)
            cells = (cell(value, unit) for value, unit in zip(values, units, strict=True))
            lines.append(f"| {row.label} | {' | '.join(cells)} |")
        return lines


def found(result: Result, key: str) -> Any:
    """What a result has at ``names/joined/by/slashes``. None where it has nothing."""
    value: Any = result
    for name in key.split("/"):
        if isinstance(value, list):
            value = value[int(name)]
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


def cell(value: Any, unit: str) -> str:
    """A value with its unit. Of a list, the smallest and the largest. Bytes become ``MB`` or ``GiB``, a fraction ``%``."""
    if isinstance(value, list):
        return " to ".join(dict.fromkeys((cell(min(value), unit), cell(max(value), unit))))
    if value is None or isinstance(value, str | bool):
        return {None: "", True: "yes", False: "no"}.get(value, str(value))
    scaled = value / {"MB": 1e6, "GiB": 2**30, "%": 0.01}.get(unit, 1)
    return f"{number(scaled)} {unit}".strip()


def number(value: float) -> str:
    """Three digits, or all digits of a whole number, in groups of three."""
    if isinstance(value, int) or value.is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
