"""The pages of a folder of images: boxes, pairs, the teachers' answers, and the prompts that match best."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.reports.run import captions_of, learned_from, matches_of, teachers_of, ticked
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.viewer.entries import Entries, entries_of
from hoi_distill.pipeline.viewer.shown import annotated_pairs, boxes_of, triplets_of
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.pages.folder_page import FolderPage, page_file, write_folder_page
from hoi_distill.stages.evaluate.pages.gallery import GalleryItem
from hoi_distill.stages.evaluate.pages.report import TableRead
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.writable import refuse_unwritable

SHOWN = 8
"""Questions of a table up to which every answer is shown."""
PER_PAGE = 60
"""Images of one file."""


def agreed(answers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (question, answer) pairs whose answer is not "no", and a line with the number of the others."""
    yes = [(question, answer) for question, answer in answers if not answer.startswith("no (")]
    denied = len(answers) - len(yes)
    return [*yes, *([("answered no", f"{denied} more questions")] if denied else [])]


@dataclass(frozen=True)
class Quoted:
    """The tables that the pages show.

    Attributes:
        captions: of texts.
        itm: of matching scores; None without one.
        triplets: of triplets that were read from texts.
        detections: of boxes; None without one.
    """

    captions: Sequence[TablePlan]
    itm: TablePlan | None
    triplets: Sequence[TablePlan]
    detections: TablePlan | None

    @classmethod
    def of(cls, plans: Mapping[str, TablePlan]) -> Quoted:
        """Those of a configuration, by their stages' names."""

        def kind(name: str) -> list[TablePlan]:
            return [table_plan for table_plan in plans.values() if table_plan.node.stage.name == name]

        first = {name: next(iter(kind(name)), None) for name in ("itm", "detections")}
        return cls(kind("captions"), first["itm"], kind("triplets"), first["detections"])

    def teachers(self) -> list[TablePlan]:
        """Those that a teacher fills: an image is shown if one of them has an answer."""
        return [*self.captions, *([self.itm] if self.itm is not None else [])]

    def all(self) -> dict[str, TablePlan]:
        """Every table, by its name."""
        boxes = [self.detections] if self.detections is not None else []
        return {each.node.name: each for each in (*self.teachers(), *self.triplets, *boxes)}


def write_page(workspace: Workspace, out: Path) -> None:
    """Write self-contained HTML files with every image that a teacher has an answer of, :data:`PER_PAGE` in each.

    The first file is written last: it is there only if all others are.

    Raises:
        UserError: nothing is filled yet, or ``out`` cannot be written, which is tried first.
    """
    refuse_unwritable("--out", out)
    plans = plan_all(workspace)
    quoted, source = Quoted.of(plans), workspace.images
    rows = source.rows(workspace.config.splits())
    answered = np.logical_or.reduce([np.zeros(len(rows), bool), *(each.readable(rows) for each in quoted.teachers())])
    if not answered.any():
        raise UserError(
            f"{workspace.path}: the cache holds no captions or matching scores yet; {workspace.mending_command()}"
        )
    _tell_of_empty(quoted, workspace.mending_command())
    rows = rows[answered]
    files = [page_file(out, number + 1) for number in range(-(-len(rows) // PER_PAGE))]
    base = _front(workspace, plans, quoted, len(rows))
    base = replace(base, pages=[file.name for file in files])
    entries = entries_of(workspace)
    for number, file in reversed(list(enumerate(files, 1))):
        items = list(_items(workspace, quoted, entries, rows[(number - 1) * PER_PAGE : number * PER_PAGE]))
        page = replace(base, items=items, number=number)
        write_folder_page(file, page if number == 1 else replace(page, failed={}, tables=()))
    failed = f", {len(base.failed)} failed" if base.failed else ""
    more = f" on {len(files)} pages, the last {files[-1].name}" if len(files) > 1 else ""
    print(f"{out}: {len(rows)} images{more}{failed}")


def _tell_of_empty(quoted: Quoted, mending_command: str) -> None:
    empty = {
        each.node.name: each.counts["empty"] + each.counts["unknown"]
        for each in quoted.teachers()
        if not each.complete()
    }
    if empty:
        cells = ", ".join(f"{count:,} of {name}" for name, count in empty.items())
        print(
            f"hoi-distill: warning: empty cells ({cells}) are left out of the page; `{mending_command}` fills them",
            file=sys.stderr,
        )


def _front(workspace: Workspace, plans: Mapping[str, TablePlan], quoted: Quoted, count: int) -> FolderPage:
    """What all pages say, without images."""
    failed: dict[str, str] = {}
    for table_plan in quoted.teachers():
        if table_plan.table is not None:
            for (row, _), reason in table_plan.table.failures(table_plan.cells).items():
                failed.setdefault(workspace.images.keys[table_plan.rows[row]], reason)
    tables = [
        TableRead(
            name,
            table_plan.table.fingerprint,
            table_plan.table.record,
            len(table_plan.columns),
            learned_from(table_plan),
        )
        for name, table_plan in plans.items()
        if table_plan.table is not None
    ]
    names = {each.node.stage.provenance().get("checkpoint") for each in quoted.teachers()}
    about = (
        f"{count:,} images of {workspace.config.dataset.root}, as the teacher sees them "
        f"({', '.join(sorted(str(name) for name in names if name))})."
    )
    return FolderPage(workspace.config.name, about, [], failed, tables, total=count, teachers=teachers_of(quoted.all()))


def _items(workspace: Workspace, quoted: Quoted, entries: Entries, rows: np.ndarray) -> Iterator[GalleryItem]:
    """The images of one page."""
    source, words = workspace.images, workspace.vocabulary
    captions: list[list[tuple[str, str]]] = [[] for _ in rows]
    for table_plan in quoted.captions:
        for shown, found in zip(captions, captions_of(table_plan, rows), strict=True):
            shown.extend(found if len(table_plan.columns) <= SHOWN else agreed(found))
    matches = matches_of(quoted.itm, rows, workspace.mending_command())
    boxes, triplets = _cells(quoted.detections, rows), [_cells(each, rows) for each in quoted.triplets]
    for place, row in enumerate(rows.tolist()):
        cell = boxes[place].get("value")
        entry = int(np.flatnonzero(entries.row == row)[0])
        annotated, record = entries.of(entry), entries.record[entry : entry + 1]
        marked = matches[place]
        if len(annotated.hoi):
            (marked,) = ticked([marked], annotated.take(record).image_truth(), words.prompts())
        yield GalleryItem(
            source.keys[row],
            source.uris[row],
            captions=captions[place],
            matches=marked,
            annotated=[each.pair for each in annotated_pairs(entries, entry)],
            boxes=[] if cell is None else boxes_of(cell, words),
            triplets=[
                (column, *triplets_of(read, words))
                for table in triplets
                for column, read in table[place].items()
                if read is not None
            ],
            frame=annotated.frame,
        )


def _cells(table_plan: TablePlan | None, rows: np.ndarray) -> list[dict[str, Any]]:
    """Of each row the values of its cells, by column; {} where a cell is missing."""
    cells: list[dict[str, Any]] = [{} for _ in rows]
    chosen = np.flatnonzero(table_plan.readable(rows)) if table_plan is not None else ()
    if table_plan is None or not len(chosen):
        return cells
    for column, values in table_plan.read(rows[chosen]).items():
        for place, value in zip(chosen, values.to_pylist(), strict=True):
            cells[place][column] = value
    return cells
