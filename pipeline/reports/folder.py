"""The page of a folder of images: the teacher's answers, and the prompts that match best."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hoi_distill.pipeline.reports.run import captions_of, matches_of
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.pages.gallery import GalleryItem
from hoi_distill.stages.evaluate.pages.report import FolderPage, TableRead, write_folder_page
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.writable import refuse_unwritable

SHOWN = 8
"""Questions of a table up to which every answer is shown."""


def agreed(answers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (question, answer) pairs whose answer is not "no", and a line with the number of the others."""
    yes = [(question, answer) for question, answer in answers if not answer.startswith("no (")]
    denied = len(answers) - len(yes)
    return [*yes, *([("answered no", f"{denied} more questions")] if denied else [])]


def write_page(workspace: Workspace, out: Path) -> None:
    """Write one self-contained HTML file with every image of the tables ``captions`` and ``itm``.

    Raises:
        UserError: nothing is filled yet, or ``out`` cannot be written, which is tried first.
    """
    refuse_unwritable("--out", out)
    plans = plan_all(workspace)
    source = workspace.images
    texts = [table_plan for table_plan in plans.values() if table_plan.node.stage.name == "captions"]
    itm = next((table_plan for table_plan in plans.values() if table_plan.node.stage.name == "itm"), None)
    shown = [*texts, *([itm] if itm is not None else [])]
    rows = source.rows(workspace.config.splits())
    answers: list[list[tuple[str, str]]] = [[] for _ in rows]
    for table_plan in texts:
        for shown_of_row, of_row in zip(answers, captions_of(table_plan, rows), strict=True):
            shown_of_row.extend(of_row if len(table_plan.columns) <= SHOWN else agreed(of_row))
    matches = matches_of(itm, rows, workspace.mending_command())
    answered = np.logical_or.reduce([np.zeros(len(rows), bool), *(table_plan.readable(rows) for table_plan in shown)])
    if not answered.any():
        raise UserError(
            f"{workspace.path}: the cache holds no captions or matching scores yet; {workspace.mending_command()}"
        )
    empty = {each.node.name: each.counts["empty"] + each.counts["unknown"] for each in shown if not each.complete()}
    if empty:
        cells = ", ".join(f"{count:,} of {name}" for name, count in empty.items())
        print(
            f"hoi-distill: warning: empty cells ({cells}) are left out of the page; "
            f"`{workspace.mending_command()}` fills them",
            file=sys.stderr,
        )
    failed: dict[str, str] = {}
    for table_plan in shown:
        if table_plan.table is not None:
            for (row, _), reason in table_plan.table.failures(table_plan.cells).items():
                failed.setdefault(source.keys[table_plan.rows[row]], reason)
    frame = next(iter(workspace.dataset.values())).frame
    items = [
        GalleryItem(source.keys[row], source.uris[row], captions=answers[i], matches=matches[i], frame=frame)
        for i, row in enumerate(rows)
        if answered[i]
    ]
    tables = [
        TableRead(name, table_plan.table.fingerprint, table_plan.table.record, len(table_plan.columns))
        for name, table_plan in plans.items()
        if table_plan.table is not None
    ]
    teachers = {table_plan.node.stage.provenance().get("checkpoint") for table_plan in shown}
    about = (
        f"{len(items)} images of {workspace.config.dataset.root}, as the teacher sees them "
        f"({', '.join(sorted(str(teacher) for teacher in teachers if teacher))})."
    )
    write_folder_page(out, FolderPage(workspace.config.name, about, items, failed, tables))
    print(f"{out}: {len(items)} images" + (f", {len(failed)} failed" if failed else ""))
