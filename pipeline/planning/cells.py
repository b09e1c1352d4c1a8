"""The cells of the cache that a training reads: found among the planned tables, and refused where they are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from hoi_distill.pipeline.config.schema import TableSection
from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.digests import content_name, fingerprint
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import StreamSpec, TableRef
from hoi_distill.storage.table import Table


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


@dataclass(frozen=True)
class CellPicker:
    """Picks the cells of planned tables that a student reads.

    Attributes:
        path: the configuration's file, for messages.
        plans: of all tables.
        mending_command: what a user types to fill the cache.
    """

    path: Path
    plans: Mapping[str, TablePlan]
    mending_command: str

    def columns(self, name: str) -> tuple[str, ...]:
        """The columns of a planned table.

        Raises:
            UserError: there is no table of this name.
        """
        if name not in self.plans:
            there = ", ".join(self.plans)
            raise UserError(f"{self.path}: student.tables: there is no table {name!r}; there are {there}")
        return self.plans[name].columns

    def pick(self, name: str, rows: np.ndarray, columns: Sequence[str] | None = None) -> PlannedCells:
        """Some cells of one table. Each of them that its stage wants is filled or a recorded failure.

        Args:
            name: the table's.
            rows: ``int64 [r]`` rows of the table's source.
            columns: which columns. None: all.

        Raises:
            UserError: a wanted cell is empty, or the table has no such column or row.
        """
        have, place = self.columns(name), f"{self.path}: tables.{name}"
        table_plan = self.plans[name]
        chosen = have if columns is None else tuple(columns)
        if missing := [column for column in chosen if column not in have]:
            raise UserError(f"{place}.columns: the student needs {missing[0]!r}; add it")
        mend = f"fill it with: {self.mending_command}"
        if table_plan.table is None or table_plan.state is None:
            raise UserError(f"table {name}: no cell is filled; {mend}")
        where = table_plan.positions(rows)
        if (where < 0).any():
            raise UserError(f"{place}.splits: does not cover the images that the student needs")
        cells = table_plan.cells.take(where).select(chosen)
        wanted = cells.wanted_mask()
        empty = table_plan.state.empty(where)[:, [have.index(column) for column in chosen]] & wanted
        if empty.any():
            count = f"{int(empty.sum()):,} of {int(wanted.sum()):,}"
            raise UserError(f"table {name}: {count} cells that the student needs are empty; {mend}")
        digests = table_plan.table.value_digests(cells)
        digests[~wanted] = 0  # what happens to be filled there is not read either
        values = content_name(np.ascontiguousarray(digests).tobytes(), 64)[:32]
        return PlannedCells(table_plan, cells, values)


def stream_spec(row_ids: np.ndarray, planned: Mapping[str, PlannedCells], mending_command: str) -> StreamSpec:
    """What to stream.

    Args:
        row_ids: ``V16 [N]``, the images of the planned cells.
        planned: the cells, by role.
        mending_command: what a user types to fill the cache, for messages.
    """
    tables = {role: TableRef(str(each.table.dir), each.table.fingerprint, each.cells) for role, each in planned.items()}
    return StreamSpec(row_ids, tables, mending_command)


def read_text(text: PlannedCells, texts: Source, prompts: Sequence[str]) -> np.ndarray:
    """``float32 [H, D]`` embeddings of H prompts.

    Args:
        text: one column of a table of texts, for all rows of its source.
        texts: that source.
        prompts: the H texts.

    Raises:
        UserError: the embedding of a prompt is a recorded failure.
    """
    place = {key: row for row, key in enumerate(texts.keys)}
    rows = np.array([place[prompt] for prompt in prompts], np.int64)
    column = text.cells.columns[0]
    values = text.table.read(CellSelection(text.cells.row_ids[rows], (column,)))[column]
    if values.null_count:
        failed = prompts[values.is_null().index(True).as_py()]
        raise UserError(
            f"table {text.name}: the prompt {failed!r} is a recorded failure; see hoi-distill run --retry-failed"
        )
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), -1)


class TableIdentity(TypedDict):
    """Who gave a student one of its tables: enough to build the stage again, and to refuse another one.

    Attributes:
        fingerprint: the table's.
        record: what the fingerprint is made of.
        stage: the stage's name in the configuration.
        parameters: the stage's keys, as written.
        inputs: the same of the tables that the stage reads, by their names, where it reads some.
    """

    fingerprint: str
    record: Mapping[str, Any]
    stage: str
    parameters: Mapping[str, Any]
    inputs: NotRequired[Mapping[str, TableIdentity]]


def identity_of(name: str, nodes: Mapping[str, Node], tables: Mapping[str, TableSection]) -> TableIdentity:
    """The identity of a table.

    Args:
        name: the configuration's name for it.
        nodes: all tables, their stages not pending.
        tables: their keys.
    """
    record, table = fingerprint_record(nodes[name].stage), tables[name]
    identity: TableIdentity = {
        "fingerprint": fingerprint(record),
        "record": record,
        "stage": table.stage,
        "parameters": json.loads(json.dumps(table.parameters(), default=str)),
    }
    if above := nodes[name].stage.inputs:
        identity["inputs"] = {up: identity_of(up, nodes, tables) for up in above}
    return identity
