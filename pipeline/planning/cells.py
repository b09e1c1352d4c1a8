"""The cells of the cache that a training reads: found among the planned tables, and refused where they are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table

if TYPE_CHECKING:
    from hoi_distill.storage.stream import StreamSpec


@dataclass(frozen=True)
class PlannedCells:
    """The cells of one planned table that a training or an evaluation reads.

    Attributes:
        table_plan: the table's. Its cache table is there.
        cells: which of its cells.
        values: digest over the value digests of all wanted cells, failures included.
    """

    table_plan: TablePlan
    cells: CellSelection
    values: str

    @property
    def name(self) -> str:
        """The table's name in the configuration."""
        return self.table_plan.node.name

    @property
    def table(self) -> Table:
        """The table in the cache."""
        assert self.table_plan.table is not None
        return self.table_plan.table


def failed_rows(table_plan: TablePlan, rows: np.ndarray) -> dict[int, str]:
    """``{position: "table: reason"}`` of the rows in which a table's cell is a recorded failure.

    Args:
        table_plan: the table.
        rows: ``int64 [r]`` rows of the source.
    """
    if table_plan.table is None or table_plan.state is None or not table_plan.counts["failed"]:
        return {}
    found = table_plan.table.failures(table_plan.cells_of(rows))
    return {row: f"{table_plan.node.name}: {reason}" for (row, _), reason in found.items()}


def columns_of(workspace: Workspace, plans: Mapping[str, TablePlan], name: str) -> tuple[str, ...]:
    """The columns of a planned table. Raises UserError where there is no table of this name."""
    if name not in plans:
        raise UserError(f"{workspace.path}: student.tables: there is no table {name!r}; there are {', '.join(plans)}")
    return plans[name].columns


def planned_cells(
    workspace: Workspace, plans: Mapping[str, TablePlan], name: str, columns: Sequence[str] | None, rows: np.ndarray
) -> PlannedCells:
    """Some cells of one table, each of which is filled or a recorded failure if its stage wants it.

    Args:
        workspace: for messages.
        plans: of all tables.
        name: the table's.
        columns: which columns, None for all.
        rows: ``int64 [r]`` rows of the table's source.

    Raises:
        UserError: a wanted cell is empty, or the table has no such column or row.
    """
    have = columns_of(workspace, plans, name)
    table_plan = plans[name]
    chosen = have if columns is None else tuple(columns)
    if missing := [column for column in chosen if column not in have]:
        raise UserError(f"{workspace.path}: tables.{name}.columns: the student needs {missing[0]!r}; add it")
    mend = f"fill it with: {workspace.mending_command()}"
    if table_plan.table is None or table_plan.state is None:
        raise UserError(f"table {name}: no cell is filled; {mend}")
    where = table_plan.positions(rows)
    if (where < 0).any():
        raise UserError(f"{workspace.path}: tables.{name}.splits: does not cover the pictures that the student needs")
    cells = table_plan.cells.take(where).select(chosen)
    wanted = cells.wanted_mask()
    empty = table_plan.state.empty(where)[:, [have.index(column) for column in chosen]] & wanted
    if empty.any():
        raise UserError(
            f"table {name}: {int(empty.sum()):,} of {int(wanted.sum()):,} cells that the student needs are empty; {mend}"
        )
    digests = table_plan.table.value_digests(cells)
    digests[~wanted] = 0  # what happens to be filled there is not read either
    values = content_name(np.ascontiguousarray(digests).tobytes(), 64)[:32]
    return PlannedCells(table_plan, cells, values)


def stream_spec(workspace: Workspace, rows: np.ndarray, planned: Mapping[str, PlannedCells]) -> StreamSpec:
    """What to stream.

    Args:
        workspace: the images, and for messages.
        rows: ``int64 [N]`` rows of the images, those of the planned cells.
        planned: the cells, by role.
    """
    from hoi_distill.storage.stream import StreamSpec, TableRef

    tables = {role: TableRef(str(each.table.dir), each.table.fingerprint, each.cells) for role, each in planned.items()}
    return StreamSpec(workspace.sources["images"].ids[rows], tables, workspace.mending_command())


def read_text(workspace: Workspace, text: PlannedCells) -> np.ndarray:
    """``float32 [H, D]`` embeddings of the vocabulary's prompts, from a table of all texts."""
    place = {prompt: row for row, prompt in enumerate(workspace.sources["texts"].keys)}
    rows = np.array([place[prompt] for prompt in workspace.vocabulary.prompts()], np.int64)
    column = text.cells.columns[0]
    values = text.table.read(CellSelection(text.cells.row_ids[rows], (column,)))[column]
    if values.null_count:
        failed = workspace.vocabulary.prompts()[values.is_null().index(True).as_py()]
        raise UserError(
            f"table {text.name}: the prompt {failed!r} is a recorded failure; see hoi-distill run --retry-failed"
        )
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), -1)


def identity_of(workspace: Workspace, planned: PlannedCells) -> dict[str, Any]:
    """Who gave the student this table: enough to build the stage again, and to refuse another one."""
    table = workspace.config.tables[planned.name]
    return {
        "fingerprint": planned.table.fingerprint,
        "record": fingerprint_record(planned.table_plan.node.stage),
        "stage": table.stage,
        "parameters": json.loads(json.dumps(table.parameters(), default=str)),
    }
