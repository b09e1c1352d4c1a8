"""Filling the cache: plan a level, hand its tasks to the executor, plan the next."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
from hoi_distill.pipeline.console.progress import Progress, working
from hoi_distill.pipeline.graph.nodes import levels, passes
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.plan import TablePlan, align, folders
from hoi_distill.pipeline.training.binding import plan_all, trained_folders
from hoi_distill.pipeline.training.checks import check_student, rehearse_student
from hoi_distill.pipeline.training.pair_teachers import train_missing
from hoi_distill.pipeline.workspace import Setup
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.errors import UserError
from hoi_distill.workers.task import Part, TableSpec, Task, TaskReport, Upstream


@dataclass
class RunSummary:
    """What a run did, by table."""

    cells: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    interrupted: bool = False

    def add(self, report: TaskReport) -> None:
        for name, number in report.cells.items():
            self.cells[name] = self.cells.get(name, 0) + number
        for name, number in report.failures.items():
            self.failures[name] = self.failures.get(name, 0) + number
        self.reasons += report.reasons
        self.changed += report.changed


Execute = Callable[..., None]
"""``execute(tasks, report=, stop=, beat=)``, see :mod:`hoi_distill.workers.executors.inline` and
:mod:`hoi_distill.workers.executors.ray`."""


Note = Callable[[Mapping[str, TablePlan]], None]


def fill(setup: Setup, execute: Execute, stop: threading.Event, note: Note | None = None) -> RunSummary:
    """Compute every wanted cell that is empty, upstream first. What a killed run committed is not computed again.

    Args:
        note: told the plan before each level's work, when pair teachers above it have got their names.
    """
    summary = RunSummary()
    for level in levels(setup.nodes):
        with working("planning"):
            plans = plan_all(setup)
        if note is not None:
            note(plans)
        todo = {name: plans[name].counts["empty"] for name in level}
        if not any(todo.values()):
            continue
        wanted = [name for name in level if todo[name]]
        setup.cache.require_writable()
        train_missing(setup, plans, wanted, stop)
        tasks = [
            task
            for group in passes(wanted, {name: made.node for name, made in plans.items()})
            for task in make_tasks(group, plans, setup)
        ]
        progress = Progress(todo, stop)

        def report(done: TaskReport, progress: Progress = progress) -> None:
            summary.add(done)
            progress.advance(done)

        with setup.cache.lease("run", [*folders(plans, setup.cache), *trained_folders(plans)]), progress:
            execute(tasks, report=report, stop=stop, beat=progress.under_way)
        if stop.is_set():
            summary.interrupted = True
            break
    return summary


def fill_cache(setup: Setup) -> None:
    """Compute what a setup lacks, with the executor that it names; returns at once where nothing is empty.

    Raises:
        UserError: cells are still empty afterwards.
        KeyboardInterrupt: the run was interrupted; what it committed is kept.
    """
    if all(made.complete() for made in plan_all(setup).values()):
        return
    check_student(setup)
    setup.cache.require_writable()
    rehearse_student(setup)
    chosen = setup.config.workers
    with stop_on_interrupt() as stop, \
            choose_executor(chosen.executor, chosen.device, chosen.count, **chosen.limits()) as execute:  # fmt: skip
        if fill(setup, execute, stop).interrupted or stop.is_set():
            raise KeyboardInterrupt
    empty = [name for name, made in plan_all(setup).items() if not made.complete()]
    if empty:
        raise UserError(f"{setup.path}: tables.{empty[0]}: cells are still empty; see hoi-distill plan {setup.path}")


def make_tasks(group: list[str], plans: Mapping[str, TablePlan], setup: Setup) -> Iterable[Task]:
    """The tasks of one pass. Blocks of rows are cut from all wanted rows, filled or not, so that a resumed run has the
    same blocks as an undisturbed one; a task holds a block's rows that lack a cell of any of the pass's tables."""
    first = plans[group[0]]
    source = setup.sources[first.node.stage.source]
    size = first.node.shard_rows
    for number, start in enumerate(range(0, len(first.rows), size)):
        stop = min(start + size, len(first.rows))
        needed = {name: plans[name].needed(start, stop) for name in group}
        rows = np.flatnonzero(np.logical_or.reduce([mask.any(axis=1) for mask in needed.values()]))
        if not len(rows):
            continue
        members = first.rows[start:stop][rows]
        parts = tuple(
            make_part(plans[name], start + rows, needed[name][rows], source, plans, setup)
            for name in group
            if needed[name].any()
        )
        yield Task(
            task_id=f"{'+'.join(group)}:{number}",
            rows=source.ids[members],
            uris=[source.uris[i] for i in members],
            keys=[source.keys[i] for i in members],
            parts=parts,
        )


def make_part(
    made: TablePlan,
    positions: np.ndarray,
    needed: np.ndarray,
    source: Source,
    plans: Mapping[str, TablePlan],
    setup: Setup,
) -> Part:
    """One table's share of a task; ``positions`` index the plan's rows."""
    columns = np.flatnonzero(needed.any(axis=0))
    inputs = None
    if made.inputs is not None:
        inputs = made.inputs[positions] if made.inputs.ndim == 1 else made.inputs[positions][:, columns]
    upstream = {}
    for up in made.node.stage.inputs:
        above = plans[up]
        where = align(above.rows, made.rows[positions], len(source.ids))
        upstream[up] = Upstream(
            table_spec(above, setup),
            above.columns,
            None if above.inputs is None else above.inputs[where],
            None if above.wanted is None else above.wanted[where],
        )
    return Part(
        name=made.node.name,
        stage=made.node.stage,
        table=table_spec(made, setup),
        columns=tuple(made.columns[i] for i in columns),
        needed=needed[:, columns],
        inputs=inputs,
        upstream=upstream,
    )


def table_spec(made: TablePlan, setup: Setup) -> TableSpec:
    stage = made.node.stage
    return TableSpec(str(setup.cache.root), stage.name, fingerprint_record(stage), stage.output)


@contextlib.contextmanager
def choose_executor(name: str, device: str, workers: int, **limits: float) -> Iterator[Execute]:
    """Something that runs tasks, for as many levels as there are; a Ray of our own starts and ends with it.

    Args:
        limits: ``hang_after`` and ``start_within``, see :class:`hoi_distill.workers.executors.ray.RayExecutor`.
    """
    if name == "inline":
        from hoi_distill.workers.executors import inline

        refuse_absent(device)
        yield functools.partial(inline.execute, workers=workers, device=device)
    elif name == "ray":
        from hoi_distill.workers.executors.ray import RayExecutor

        session = contextlib.ExitStack()
        with working("starting Ray"):
            executor = session.enter_context(RayExecutor(workers, **limits))
        try:
            if device != "cpu" and not executor.gpus():
                raise UserError(f"workers.device: {device}; Ray finds no GPU here, write cpu")
            yield executor.execute
        finally:
            with working("ending Ray"):
                session.close()
    else:
        raise UserError(f"--executor {name}: there are ray and inline")


def refuse_absent(device: str, where: str = "workers.device") -> None:
    """Raises UserError, beginning with ``where``, for a device that torch does not find."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: {device}: torch cannot use it here ({reason}); write cpu") from None


def drop_failures(plans: Mapping[str, TablePlan], setup: Setup) -> None:
    """Empty every failure cell of the wanted tables, so that a run tries it again."""
    for made in plans.values():
        if made.table is not None and made.counts["failed"]:
            made.table.drop_failures(setup.sources[made.node.stage.source].ids[made.rows], made.columns, made.inputs)
