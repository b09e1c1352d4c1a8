"""What the cells to come of a served table cost: some of them are asked for, and nothing is stored."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.filling.run import TaskMaker
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.quantities import counted
from hoi_distill.storage.errors import UserError, placed
from hoi_distill.workers.task import Task
from hoi_distill.workers.worker import compute_once


@dataclass(frozen=True)
class Trial:
    """What some cells of a table cost, and what all will cost if they are alike.

    Attributes:
        table: its name in the configuration.
        cells: how many were asked for.
        failures: how many of them have no answer.
        counts: what they took, by name: requests, tokens, a price.
        to_come: cells that are empty now.
    """

    table: str
    cells: int
    failures: int
    counts: Mapping[str, float]
    to_come: int

    @property
    def expected(self) -> dict[str, float]:
        """What the cells to come will take."""
        return {name: number / self.cells * self.to_come for name, number in self.counts.items()}

    def line(self) -> str:
        """The outcome in words."""
        failed = f" ({self.failures} without an answer)" if self.failures else ""
        return (
            f"{self.table}: a trial of {self.cells:,} cells{failed} took {counted(self.counts)}; "
            f"{self.to_come:,} cells to come take about {counted(self.expected)}"
        )

    def as_json(self) -> dict[str, Any]:
        """The outcome as ``hoi-distill plan --trial N --json`` prints it."""
        return {**asdict(self), "expected": self.expected}


def try_served(workspace: Workspace, plans: Mapping[str, TablePlan], cells: int, seed: int = 0) -> dict[str, Trial]:
    """Ask for some empty cells of every table whose teacher is behind a server.

    Args:
        workspace: the tables.
        plans: of all of them.
        cells: how many of each table.
        seed: chooses them.

    Raises:
        UserError: a server cannot be asked.
    """
    found = {}
    for name, table_plan in plans.items():
        if table_plan.node.stage.is_served and table_plan.counts["empty"]:
            with placed(f"{workspace.path}: tables.{name}: "):
                table_plan.node.stage.rehearse()
            found[name] = _trial(workspace, plans, name, cells, np.random.default_rng(seed))
    return found


def _trial(
    workspace: Workspace, plans: Mapping[str, TablePlan], name: str, cells: int, random: np.random.Generator
) -> Trial:
    table_plan = plans[name]
    chosen: list[tuple[int, int]] = []
    for row in random.permutation(len(table_plan.rows)).tolist():  # a column of each row, until there are enough
        columns = np.flatnonzero(table_plan.needed(row, row + 1)[0])
        chosen += [(row, int(random.choice(columns)))] if len(columns) else []
        if len(chosen) == cells:
            break
    chosen.sort()
    positions = np.array([row for row, _ in chosen])
    needed = np.zeros((len(chosen), len(table_plan.columns)), bool)
    needed[np.arange(len(chosen)), [column for _, column in chosen]] = True
    source, rows = workspace.sources[table_plan.node.stage.source], table_plan.rows[positions]
    task = Task(
        task_id=f"trial:{name}",
        uris=[source.uris[row] for row in rows],
        keys=[source.keys[row] for row in rows],
        tables=(TaskMaker(plans, workspace.sources, workspace.cache.root).table_task(name, positions, needed),),
    )
    what = f"asking for {len(chosen):,} cells of {name}"
    print(f"{what[0].upper()}{what[1:]}; nothing of it is stored.", file=sys.stderr)
    with working(what):
        result = compute_once(task)
    if result.ended:
        raise UserError(f"{workspace.path}: tables.{name}: {result.ended}")
    table = result.tables[0]
    return Trial(name, len(chosen), len(table.failures), table.counts, table_plan.counts["empty"])
