"""Recompute a sample of stored cells and compare: code is not hashed, so this is how a drift of numbers is found."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.filling.run import GpuAsked, TaskMaker
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.stage import TensorOutput
from hoi_distill.storage.errors import UserError
from hoi_distill.workers.task import Task
from hoi_distill.workers.worker import compute_once

TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2, "float16": 4e-3, "float32": 1e-4}
"""Largest accepted difference, relative to the largest magnitude of the cell (at least 1), by stored type."""


@dataclass(frozen=True)
class Verification:
    """What became of a sample."""

    table: str
    cells: int
    differing: int
    worst: float
    tolerance: float
    examples: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no cell differs."""
        return self.differing == 0

    def line(self) -> str:
        """The outcome in words."""
        verdict = "agree" if self.agrees else f"of which {self.differing} DIFFER: {'; '.join(self.examples)}"
        return (
            f"{self.table}: {self.cells} cells computed again, {verdict} "
            f"(largest difference {self.worst:.2g}, tolerance {self.tolerance:.2g})"
        )

    def as_json(self) -> dict[str, Any]:
        """The outcome as ``hoi-distill verify --json`` prints it."""
        worst = self.worst if np.isfinite(self.worst) else None  # texts that differ are not apart by a number
        return {**asdict(self), "worst": worst, "agrees": self.agrees}


def verify_table(workspace: Workspace, name: str, sample: int, seed: int) -> Verification:
    """Compute ``sample`` random filled cells of one table again, in this process, and compare them with what is stored."""

    if name not in workspace.nodes:
        raise UserError(f"{workspace.path}: tables: there is no {name!r}; there are {', '.join(workspace.nodes)}")
    plans = plan_all(workspace)
    table_plan = plans[name]
    table, state = table_plan.table, table_plan.state
    if table is None or state is None or not table_plan.counts["filled"]:
        raise UserError(f"{name}: no filled cell to verify; fill it with: {workspace.mending_command()}")
    filled = np.argwhere(state.filled)
    chosen = filled[np.random.default_rng(seed).permutation(len(filled))[:sample]]
    positions, slot = np.unique(chosen[:, 0], return_inverse=True)
    needed = np.zeros((len(positions), len(table_plan.columns)), bool)
    needed[slot, chosen[:, 1]] = True
    source = workspace.sources[table_plan.node.stage.source]
    rows = table_plan.rows[positions]
    table_task = TaskMaker(plans, workspace.sources, workspace.cache.root).table_task(name, positions, needed)
    task = Task(
        task_id=f"verify:{name}",
        uris=[source.uris[row] for row in rows],
        keys=[source.keys[row] for row in rows],
        tables=(table_task,),
    )
    workers = workspace.config.workers
    device = GpuAsked(allow_cpu=workers.allow_cpu).device_of(workers.device)
    what = f"computing {len(chosen):,} cells of {len(positions):,} rows of {name} again on {device}"
    print(f"{what[0].upper()}{what[1:]}; the model is loaded first.", file=sys.stderr)
    with working(what):
        result = compute_once(task, device)
    if result.changed:
        raise UserError(f"{task.uris[result.changed[0]]}: its bytes have changed; run again before verifying")
    computed = result.tables[0]
    differences, labels = [], []
    for number, column in enumerate(table_task.cells.columns):
        where = np.flatnonzero(table_task.needed[:, number])
        stored = table.read(table_task.cells.take(where).select((column,)))[column]
        fresh = computed.values(column, where)
        for index, row in enumerate(where.tolist()):
            valid = computed.valid[row, number]
            differences.append(difference(stored[index], fresh[index]) if valid else float("inf"))
            labels.append(f"{task.keys[row]} / {column}")
    kind = table_plan.node.stage.output
    tolerance = TOLERANCE[kind.codec] if isinstance(kind, TensorOutput) else TOLERANCE["float16"]
    bad = [label for label, value in zip(labels, differences, strict=True) if not value <= tolerance]
    return Verification(name, len(differences), len(bad), max(differences), tolerance, tuple(bad[:3]))


def difference(stored: Any, fresh: Any) -> float:
    """Largest difference of two cells, relative to the larger of 1 and the stored magnitude; infinite where they differ in
    anything but a number."""
    stored, fresh = (value.as_py() if hasattr(value, "as_py") else value for value in (stored, fresh))
    if isinstance(stored, dict) and isinstance(fresh, dict):
        if stored.keys() != fresh.keys():
            return float("inf")
        return max((difference(stored[key], fresh[key]) for key in stored), default=0.0)
    if isinstance(stored, str) or isinstance(fresh, str) or stored is None or fresh is None:
        return 0.0 if stored == fresh else float("inf")
    if isinstance(stored, list) and isinstance(fresh, list):
        if len(stored) != len(fresh):
            return float("inf")
        if all(isinstance(value, int | float) for value in (*stored, *fresh)):
            stored, fresh = np.array(stored, np.float64), np.array(fresh, np.float64)
        else:
            return max((difference(a, b) for a, b in zip(stored, fresh, strict=True)), default=0.0)
    a, b = np.asarray(stored, np.float64), np.asarray(fresh, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(a).max(initial=0.0)))
