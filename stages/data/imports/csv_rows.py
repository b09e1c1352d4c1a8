"""Annotations as a table of comma-separated values, a row for each person, verb and object.

The first row names the columns, in any order: ``image``, ``verb``, ``object``, the person's box ``human_x1``, ``human_y1``,
``human_x2``, ``human_y2``, the object's box ``object_x1`` to ``object_y2``, and perhaps ``split``. A row with nothing but an
image says that nobody in it does anything.
"""

from __future__ import annotations

import csv
from pathlib import Path

from hoi_distill.stages.data.imports.listed import Box, ListedImage, ListedPair, box_of, split_of
from hoi_distill.storage.errors import UserError, did_you_mean

CORNERS = ("x1", "y1", "x2", "y2")
WANTED = ("image", "verb", "object", *(f"{who}_{corner}" for who in ("human", "object") for corner in CORNERS))
COLUMNS = (*WANTED, "split")


def read_csv(path: Path) -> list[ListedImage]:
    """The images of a table (form: this module's docstring), in the order in which they come first.

    Raises:
        UserError: With the file and the row, counted as a spreadsheet does.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, *below = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); export it with commas and quotes") from None
    rows = [(number, cells) for number, cells in enumerate(below, start=2) if cells]
    if not rows:
        raise UserError(f"{path}: no row below the names of the columns; a row is a person, a verb and an object")
    if missing := [name for name in WANTED if name not in head]:
        near = did_you_mean(missing[0], head)
        raise UserError(f"{path}: row 1: no column {missing[0]}{near}; the columns are {', '.join(COLUMNS)}")
    if unknown := [name for name in head if name and name not in COLUMNS]:
        raise UserError(f"{path}: row 1: unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)}")
    pairs: dict[str, list[ListedPair]] = {}
    first: dict[str, str] = {}
    splits: dict[str, str] = {}
    for number, row in rows:
        where = f"{path}: row {number}"
        if len(row) != len(head):
            more = "more" if len(row) > len(head) else "fewer"
            raise UserError(f"{where}: {more} cells than columns; quote cells that hold a comma")
        cells = {name: cell.strip() for name, cell in zip(head, row, strict=True)}
        name = cells["image"]
        if not name:
            raise UserError(f"{where}: no image; write the path of its file below the folder")
        first.setdefault(name, where)
        if (split := split_of(cells.get("split"), where)) and splits.setdefault(name, split) != split:
            raise UserError(f"{where}: {name} is in split {split} here and in {splits[name]} above; write one")
        of_image = pairs.setdefault(name, [])
        if any(cells[column] for column in WANTED[1:]):
            of_image.append(_pair(cells, where))
    return [ListedImage(first[name], (name,), tuple(found), splits.get(name)) for name, found in pairs.items()]


def _pair(cells: dict[str, str], where: str) -> ListedPair:
    for column in ("verb", "object"):
        if not cells[column]:
            raise UserError(
                f"{where}: no {column}; fill the cell, or leave all but image empty where nobody does anything"
            )
    human, object_ = (_box(cells, who, where) for who in ("human", "object"))
    return ListedPair(where, human, object_, cells["object"], (cells["verb"],))


def _box(cells: dict[str, str], who: str, where: str) -> Box:
    values = []
    for corner in CORNERS:
        text = cells[f"{who}_{corner}"]
        try:
            values.append(float(text))
        except ValueError:
            raise UserError(f"{where}: {who}_{corner} is {text!r}; a number of pixels is wanted") from None
    return box_of(values, where, f"the {who} box")
