"""Filling the cache: plan a level, hand its tasks to the executor, plan the next."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
from hoi_distill.pipeline.console.progress import Progress
from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.graph.nodes import levels, passes
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.plan import TablePlan, folders
from hoi_distill.pipeline.training.binding import plan_all, trained_folders
from hoi_distill.pipeline.training.checks import check_student, rehearse_student
from hoi_distill.pipeline.training.pair_teachers import train_missing
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.errors import UserError, placed
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.record_index import RecordIndex
from hoi_distill.storage.table_folder import Seen
from hoi_distill.workers.task import TableSpec, TableTask, Target, Task, TaskReport, Upstream, Workload
from hoi_distill.workers.timings import Timings, total

_log = logging.getLogger(__name__)


@dataclass
class RunSummary:
    """What a run did, by table.

    Attributes:
        cells: values.
        failures: recorded failures.
        counts: what stages counted, by name: requests, tokens, a price.
        timings: where the time of the workers went.
        reasons: of some failures, a line each.
        changed: some files that changed or went.
        interrupted: whether it was stopped.
    """

    cells: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    timings: Timings = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    interrupted: bool = False

    def add(self, report: TaskReport) -> None:
        """Count one task."""
        for name, number in report.cells.items():
            self.cells[name] = self.cells.get(name, 0) + number
        for name, number in report.failures.items():
            self.failures[name] = self.failures.get(name, 0) + number
        for name, counted in report.counts.items():
            self.counts[name] = total([self.counts.get(name, {}), counted])
        self.timings = total([self.timings, report.timings])
        self.reasons += report.reasons
        self.changed += report.changed


Execute = Callable[..., None]
"""``execute(tasks, report=, stop=, beat=)``, see :mod:`hoi_distill.workers.executors.inline` and
:mod:`hoi_distill.workers.executors.ray`."""


Note = Callable[[Mapping[str, TablePlan]], None]


def fill(
    workspace: Workspace,
    execute: Execute,
    stop: threading.Event,
    note: Note | None = None,
    summary: RunSummary | None = None,
) -> RunSummary:
    """Compute every wanted cell that is empty, upstream first. Cells that a killed run committed are not computed again.

    Args:
        workspace: the tables and the cache.
        execute: runs tasks.
        stop: once set, no further task begins.
        note: is called with the plans before the work of each level, when the pair teachers above have their fingerprints.
        summary: is counted in, for a caller that wants it also if the run ends with an error.
    """
    summary = RunSummary() if summary is None else summary
    for level in levels(workspace.nodes):
        with working("planning"):
            plans = plan_all(workspace)
        if note is not None:
            note(plans)
        todo = {name: plans[name].counts["empty"] for name in level}
        if not any(todo.values()):
            continue
        wanted = [name for name in level if todo[name]]
        workspace.cache.require_writable()
        train_missing(workspace, plans, wanted, stop)
        tasks = TaskMaker(plans, workspace.sources, workspace.cache.root).workload(wanted)
        progress = Progress(todo, stop)

        def report(done: TaskReport, progress: Progress = progress) -> None:
            summary.add(done)
            progress.advance(done)

        with workspace.cache.lease("run", [*folders(plans, workspace.cache), *trained_folders(plans)]), progress:
            execute(tasks, report=report, stop=stop, beat=progress.under_way)
        if stop.is_set():
            summary.interrupted = True
            break
    return summary


def fill_cache(workspace: Workspace) -> None:
    """Compute what the cache lacks, with the executor that the configuration names. Where nothing is empty, it returns at once.

    Raises:
        UserError: cells are still empty afterwards.
        KeyboardInterrupt: the run was interrupted; what it committed is kept.
    """
    plans = plan_all(workspace)
    if all(table_plan.complete() for table_plan in plans.values()):
        return
    check_student(workspace)
    rehearse_stages(workspace, plans)
    workspace.cache.require_writable()
    rehearse_student(workspace)
    chosen = workspace.config.workers
    with stop_on_interrupt() as stop, \
            choose_executor(
                chosen.executor, chosen.device, chosen.count, gpu=gpu_asked(workspace.config, plans), **chosen.limits()
            ) as execute:  # fmt: skip
        if fill(workspace, execute, stop).interrupted or stop.is_set():
            raise KeyboardInterrupt
    empty = [name for name, table_plan in plan_all(workspace).items() if not table_plan.complete()]
    if empty:
        raise UserError(
            f"{workspace.path}: tables.{empty[0]}: cells are still empty; see hoi-distill plan {workspace.path}"
        )


def rehearse_stages(workspace: Workspace, plans: Mapping[str, TablePlan]) -> None:
    """Find out before the work what the stages of tables with empty cells would stop at: a missing key, a missing package.

    Raises:
        UserError: with the file and the table.
    """
    for name, table_plan in plans.items():
        if not table_plan.complete():
            with placed(f"{workspace.path}: tables.{name}: "):
                table_plan.node.stage.rehearse()


class TaskMaker:
    """Makes the tasks of one level of tables. What does not differ from task to task is looked up once.

    Args:
        plans: of all tables.
        sources: ``{"images": ..., "texts": ...}``.
        root: the cache's root folder.
    """

    def __init__(self, plans: Mapping[str, TablePlan], sources: Mapping[str, Source], root: Place) -> None:
        self._plans, self._sources, self._root = plans, sources, str(root)
        self._targets: dict[str, Target] = {}
        self._indexes: dict[str, RecordIndex] = {}

    def workload(self, names: Sequence[str]) -> Workload:
        """All tasks that fill these tables, pass after pass."""
        groups = passes(list(names), {name: table_plan.node for name, table_plan in self._plans.items()})
        targets = tuple(self.target(name) for name in names)
        return Workload(targets, lambda: (task for group in groups for task in self.tasks(group)))

    def target(self, name: str) -> Target:
        """What all tasks that fill a table share."""
        if name not in self._targets:
            table_plan = self._plans[name]
            stage = table_plan.node.stage
            for up in stage.inputs:
                table = self._plans[up].table
                records = [] if table is None else table.records()
                self._indexes.setdefault(up, RecordIndex(records, self._plans[up].cells))
            self._targets[name] = Target(
                name=name,
                stage=stage,
                table=self._table(name),
                inputs={up: self._table(up) for up in stage.inputs},
                seen=Seen() if table_plan.table is None else table_plan.table.seen(),
            )
        return self._targets[name]

    def tasks(self, group: Sequence[str]) -> Iterator[Task]:
        """The tasks of one pass.

        Blocks of rows are cut from all rows of the tables, filled or not, so that a resumed run has the same blocks as an
        undisturbed one. A task holds those rows of a block that lack a cell of one of the pass's tables.

        Args:
            group: the tables of the pass.
        """
        first = self._plans[group[0]]
        source = self._sources[first.node.stage.source]
        size = first.node.shard_rows
        for number, start in enumerate(range(0, len(first.rows), size)):
            stop = min(start + size, len(first.rows))
            needed = {name: self._plans[name].needed(start, stop) for name in group}
            lacking = np.flatnonzero(np.logical_or.reduce([mask.any(axis=1) for mask in needed.values()]))
            if not len(lacking):
                continue
            tables = tuple(
                self.table_task(name, start + lacking, needed[name][lacking]) for name in group if needed[name].any()
            )
            rows = first.rows[start:stop][lacking]
            yield Task(
                task_id=f"{'+'.join(group)}:{number}",
                uris=[source.uris[row] for row in rows],
                keys=[source.keys[row] for row in rows],
                tables=tables,
            )

    def table_task(self, name: str, positions: np.ndarray, needed: np.ndarray) -> TableTask:
        """One table's share of a task.

        Args:
            name: the table's.
            positions: ``int [r]``, which of the plan's rows.
            needed: ``bool [r, C]``, which of their cells to fill. Columns without one are left out.
        """
        target, table_plan = self.target(name), self._plans[name]
        some = needed.any(axis=0)
        columns = table_plan.columns if some.all() else [table_plan.columns[column] for column in np.flatnonzero(some)]
        return TableTask(
            target=target,
            cells=replace(table_plan.cells.take(positions), wanted=needed).select(columns),
            upstream={up: self._upstream(up, table_plan.rows[positions]) for up in target.inputs},
        )

    def _upstream(self, name: str, rows: np.ndarray) -> Upstream:
        """The cells of an upstream table in these rows of the source."""
        positions = self._plans[name].positions(rows)
        return Upstream(self._plans[name].cells.take(positions), self._indexes[name].names(positions))

    def _table(self, name: str) -> TableSpec:
        """Where a worker finds a table."""
        stage = self._plans[name].node.stage
        return TableSpec(self._root, stage.name, fingerprint_record(stage), stage.output)


@contextlib.contextmanager
def choose_executor(
    name: str, device: str, workers: int, *, gpu: GpuAsked | None = None, **limits: float
) -> Iterator[Execute]:
    """Something that runs tasks, for as many levels as there are; a Ray of our own starts and ends with it.

    Args:
        name: ``ray`` or ``inline``.
        device: where stages compute.
        workers: how many Ray starts.
        gpu: which table asks for a GPU, and what becomes of it without one.
        limits: ``hang_after`` and ``start_within``, see :class:`hoi_distill.workers.executors.ray.RayExecutor`.

    Raises:
        UserError: a GPU is asked for and is not there.
    """
    gpu = gpu or GpuAsked()
    if name == "inline":
        from hoi_distill.workers.executors import inline

        device = gpu.device_of(device)
        yield functools.partial(inline.execute, device=device)
    elif name == "ray":
        from hoi_distill.workers.executors.ray import RayExecutor

        session = contextlib.ExitStack()
        with working("starting Ray"):
            executor = session.enter_context(RayExecutor(workers, **limits))
        try:
            if not executor.gpus():
                if device != "cpu" and not gpu.allow_cpu:
                    raise UserError(f"workers.device: {device}; Ray finds no GPU here, write cpu{OR_ALLOW}")
                gpu.refuse("Ray finds no GPU here")
            yield executor.execute
        finally:
            with working("ending Ray"):
                session.close()
    else:
        raise UserError(f"--executor {name}: there are ray and inline")


OR_ALLOW = ", or allow CPUs: workers.allow_cpu: true (of run: --allow-cpu)"


@dataclass(frozen=True)
class GpuAsked:
    """A GPU that a run is to have.

    Attributes:
        table: the first table that is not complete and reserves a share of one; None where there is no such table.
        allow_cpu: whether a run without a GPU computes on CPUs.
    """

    table: str | None = None
    allow_cpu: bool = False

    def refuse(self, why: str) -> None:
        """Raises UserError where a table asks for a GPU, there is none, and CPUs are not allowed."""
        if self.table is not None and not self.allow_cpu:
            raise UserError(f"tables.{self.table}.gpus: a GPU is asked for, and {why}; write gpus: 0{OR_ALLOW}")

    def device_of(self, device: str) -> str:
        """Where this process computes: ``device``, or ``cpu`` where it is not there and CPUs are allowed.

        Raises:
            UserError: it is not there, or it is ``cpu`` and a table asks for a GPU.
        """
        if device == "cpu":
            self.refuse("workers.device is cpu")
            return device
        try:
            refuse_absent(device)
        except UserError as error:
            if not self.allow_cpu:
                raise UserError(f"{error}{OR_ALLOW}") from None
            _log.warning("%s; computing on the CPU", str(error).removesuffix("; write cpu"))
            return "cpu"
        return device


def gpu_asked(config: Config, plans: Mapping[str, TablePlan]) -> GpuAsked:
    """What a run that fills these tables asks for."""
    tables = (name for name, each in plans.items() if not each.complete() and each.node.stage.resources.gpus)
    return GpuAsked(next(tables, None), config.workers.allow_cpu)


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


def drop_failures(plans: Mapping[str, TablePlan]) -> None:
    """Empty every failure cell of the planned tables, so that a run tries it again."""
    for table_plan in plans.values():
        if table_plan.table is not None and table_plan.counts["failed"]:
            table_plan.table.drop_failures(table_plan.cells)
