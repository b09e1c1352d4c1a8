"""What one worker does with one task: read, decode and prepare, compute, commit.

The three overlap. Reader threads decode and prepare the next batch while a batch is computed. :meth:`Worker.run` may be
called from several threads at once: they take turns to compute, so one task's cells are committed while the next task
computes. A report is made only after the commit, so a task that was reported is on disk. A stop comes between two batches, or two
tables of one batch: what is computed until then is committed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hoi_distill.stages.stage import Batch, Stage, Turn
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import InputFailure
from hoi_distill.workers.loading import Changed, Loaded, batch_of, batches_of, is_read, load_row, padded, prefetch
from hoi_distill.workers.partial_table import PartialTable
from hoi_distill.workers.pulse import COMPUTING, LOADING, READING, WRITING, WRITTEN, Pulse
from hoi_distill.workers.task import TableSpec, Task, TaskReport
from hoi_distill.workers.timings import ANSWERS, COPYING, ON_CPU, ON_GPU, OPENING, Lane, Timings, split_wait
from hoi_distill.workers.timings import READING as READ_VALUES
from hoi_distill.workers.timings import WRITING as WAITED_FOR_WRITING
from hoi_distill.workers.upstream import UpstreamCells, inherited_failures

if TYPE_CHECKING:
    from hoi_distill.storage.table import Table


REPORTED = 10
"""At most so many reasons and changed files travel in a report."""
SAVE_SECONDS = 5.0
"""A batch that lasts longer than this after a stop may not live to its end: what is computed before it is committed."""


class Worker:
    """Holds the opened stages of one pass and runs tasks.

    Args:
        device: where stages compute, ``cpu`` or ``cuda``.
        readers: threads that read, decode and prepare.
        stop: once set, tasks that have not begun to compute return None; the one that computes ends with the table of
            the batch that it is at, and its computed cells are committed.
        pulse: told of every step.
        workers: how many there are. They share what a run may do in all.
    """

    def __init__(
        self,
        device: str = "cpu",
        readers: int = 4,
        stop: threading.Event | None = None,
        pulse: Pulse | None = None,
        workers: int = 1,
    ) -> None:
        self.device = device
        self.stop = stop or threading.Event()
        self.pulse = pulse or Pulse()
        self._share = 1 / workers
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._compute_turn = threading.Lock()
        self._lane = Lane()
        self._storage_turn = threading.Lock()
        self._tables: dict[tuple[str, bytes], Table] = {}
        self._save_turn = threading.Lock()
        self._computing: TaskResult | None = None
        self._opened: dict[tuple[Any, ...], Stage] = {}
        self._shared: dict[Any, Any] = {}

    def run(self, task: Task) -> TaskReport | None:
        """Compute and commit a task; None if the worker was stopped before its turn.

        Raises:
            Exception: whatever is not an input's fault (memory, device, I/O, a bug in a stage). Nothing of the task is
                written then; its cells stay empty.
        """
        result = self.compute(task)
        if result is None:
            return None
        report = self.commit(result)
        self.pulse.end(task.task_id)
        return report

    def close(self) -> None:
        """Let the reader threads go."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def compute(self, task: Task) -> TaskResult | None:
        """Everything but the commit. Cells live in memory until :meth:`commit`: a task's size bounds it."""
        self.pulse.step(task.task_id, READING, cells={table.name: 0 for table in task.tables})
        try:
            result = self._compute(task)
        except BaseException:
            self.pulse.end(task.task_id)
            raise
        if result is None:
            self.pulse.end(task.task_id)
        return result

    def _compute(self, task: Task) -> TaskResult | None:
        idle = self._lane.idle()
        with self._storage_turn:
            result, upstream = self._begin(task)
            result.spend(READ_VALUES, self._lane.idle() - idle)
        needed = np.concatenate([table.needed for table in result.tables], axis=1)
        batches = batches_of(needed, task.batch_size)
        order = [row for batch in batches for row in batch.tolist()]
        keys = _pass_keys(task)
        load: Generator[Loaded | Changed | InputFailure, None, None] = (Loaded(None) for _ in order)
        if is_read(task):
            # Of a pass that is not open yet, the first images are prepared by the stage's ``compute``.
            load = prefetch(
                self._readers,
                lambda row: load_row(task, row, self._opened.get(keys[0])),
                order,
                depth=task.batch_size,
            )
        tried: list[int] = []
        with self._compute_turn, contextlib.closing(load):
            if self.stop.is_set():
                return None
            started = time.perf_counter()
            with self._lane, self._may_be_saved(result):
                self.pulse.step(task.task_id, LOADING, len(batches))
                turns = [self._turn(result, table) for table in result.tables]
                works = list(map(_TableWork, self._open(task, keys), result.tables, upstream, turns))
                result.spend(OPENING, time.perf_counter() - started)
                self.pulse.step(task.task_id, COMPUTING)
                for rows in batches:
                    if self.stop.is_set() or result.ended:
                        break
                    waited = time.perf_counter()
                    sound, loaded = result.sort_out(rows, islice(load, len(rows)))
                    result.spend_on_images(time.perf_counter() - waited, loaded)
                    if len(sound):
                        self._compute_batch(result, works, sound, loaded)
                    tried += rows.tolist()
                    self.pulse.batch(task.task_id, _done(result.tables))
            result.seconds = time.perf_counter() - started
        for table in result.tables:
            table.settle()
            result.spend(ON_CPU if self.device == "cpu" else ON_GPU, table.seconds - table.waited - table.copy_seconds)
            result.spend(ANSWERS, table.waited)
            result.spend(COPYING, table.copy_seconds)
        if batches and not tried:
            return None
        # A task without a batch has failures to hand on: those of its rows' upstream cells.
        result.tried = np.sort(np.array(tried, dtype=np.int64))
        return result

    def _begin(self, task: Task) -> tuple[TaskResult, list[UpstreamCells]]:
        """Nothing computed yet, and what each table is computed from."""
        tables, upstream = [], []
        for each in task.tables:
            above = {
                name: table if up.records is None else table.only(up.records)
                for name, up in each.upstream.items()
                for table in [self._table(each.target.inputs[name])]
            }
            tables.append(PartialTable(each, inherited_failures(each, above)))
            upstream.append(UpstreamCells.read(each, tables[-1].needed, above))
        return TaskResult(task, tables), upstream

    @contextlib.contextmanager
    def _may_be_saved(self, result: TaskResult) -> Iterator[None]:
        """:meth:`save` commits of this task until the block ends, also by an error."""
        self._computing = result
        try:
            yield
        finally:
            with self._save_turn:
                self._computing = None

    def save(self) -> None:
        """Commit what is computed so far of the task that computes now, in another thread. The rest of it is committed, and
        all of it reported, when it ends."""
        with self._save_turn:
            if self._computing is None:
                return
            tables = self._computing.tables
            so_far = [table.so_far() for table in tables]
            self._commit(TaskResult(self._computing.task, so_far))
            for table, saved in zip(tables, so_far, strict=True):
                table.saved = saved.valid

    def commit(self, result: TaskResult) -> TaskReport:
        """Commit one block per table. Who takes the report ends the task's place in the pulse."""
        self.pulse.step(result.task.task_id, WRITING)
        try:
            report = self._commit(result)
        except BaseException:
            self.pulse.end(result.task.task_id)
            raise
        self.pulse.step(result.task.task_id, WRITTEN)
        return report

    def _commit(self, result: TaskResult) -> TaskReport:
        payload_bytes, idle = 0, self._lane.idle()
        for table in result.tables:
            if not table.unsaved.any() and not table.failures:
                continue
            provenance = {
                "task": result.task.task_id,
                "device": self.device,
                "seconds": round(table.seconds, 3),
                **table.task.stage.provenance(),
                **table.recorded,
                **({"counts": table.counts} if table.counts else {}),
                "timings": {name: round(seconds, 3) for name, seconds in result.timings.items()},
            }
            with self._storage_turn:
                target = table.task.target
                commit = self._table(target.table).commit(
                    table.block(), table.block_values(), provenance, seen=target.seen
                )
            payload_bytes += commit.bytes
        result.spend(WAITED_FOR_WRITING, self._lane.idle() - idle)
        return result.report(payload_bytes)

    def _compute_batch(
        self, result: TaskResult, works: Sequence[_TableWork], rows: np.ndarray, loaded: list[Loaded]
    ) -> None:
        """Run every stage on one batch. They share its memo. A stage that meets a bad row splits the batch on its own."""
        batch = batch_of(result.task, rows, loaded)
        for work in works:
            if self.stop.is_set():
                break
            result.ended = _fill(result.task, work, batch, rows, loaded) or result.ended
            self.pulse.batch(result.task.task_id, _done(result.tables), whole=False)

    def _turn(self, result: TaskResult, table: PartialTable) -> Callable[[], Turn]:
        """Makes the turns of a table's stage: it hears of a stop, and what it says is passed on as a step."""

        def heard(cells: int) -> None:
            done = _done(result.tables)
            done[table.task.name] += cells
            self.pulse.batch(result.task.task_id, done, whole=False)

        return lambda: Turn(stopped=self.stop.is_set, heard=heard, share=self._share)

    def _open(self, task: Task, keys: Sequence[tuple[Any, ...]]) -> list[Stage]:
        """The task's stages, opened. A worker holds one pass's models at a time: a task of another pass evicts them.

        Args:
            task: whose stages.
            keys: what :func:`_pass_keys` gives for it.
        """
        if self._opened and not {key[0] for key in keys} & {key[0] for key in self._opened}:
            self._opened, self._shared = {}, {}
            gc.collect()
            if "torch" in sys.modules and self.device != "cpu":
                sys.modules["torch"].cuda.empty_cache()
        for key, table in zip(keys, task.tables, strict=True):
            if key not in self._opened:
                table.stage.open(self.device, self._shared)
                self._opened[key] = table.stage
        return [self._opened[key] for key in keys]

    def _table(self, spec: TableSpec) -> Table:
        key = (spec.root, canonical_json(spec.record))
        if key not in self._tables:
            self._tables[key] = spec.open()
        return self._tables[key]


@dataclass
class TaskResult:
    """A computed task before it is committed.

    Attributes:
        task: what was asked.
        tables: what was computed, table by table.
        tried: ``int [r]``, the rows that were worked on, ascending.
        changed: rows whose bytes are no longer those that were planned, or that have gone.
        seconds: spent on computing.
        ended: why a stage computes no further cell (:class:`hoi_distill.stages.stage.Turn`); "" while it does.
        timings: where its time went.
    """

    task: Task
    tables: list[PartialTable]
    tried: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    changed: list[int] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = ""
    timings: Timings = field(default_factory=dict)

    def spend(self, what: str, seconds: float) -> None:
        """Count time."""
        if seconds > 0:
            self.timings[what] = self.timings.get(what, 0.0) + seconds

    def spend_on_images(self, seconds: float, loaded: Sequence[Loaded]) -> None:
        """Count time that was waited for these images."""
        read = sum(each.read_seconds for each in loaded)
        for what, share in split_wait(seconds, read, sum(each.prepare_seconds for each in loaded)).items():
            self.spend(what, share)

    def sort_out(
        self, rows: np.ndarray, loaded: Iterable[Loaded | Changed | InputFailure]
    ) -> tuple[np.ndarray, list[Loaded]]:
        """Note the rows that have changed, or cannot be read or prepared.

        Args:
            rows: ``int [b]``.
            loaded: what :func:`hoi_distill.workers.loading.load_row` gave for each.

        Returns:
            The other rows and what was loaded of them.
        """
        sound: list[int] = []
        kept: list[Loaded] = []
        for row, each in zip(rows.tolist(), loaded, strict=True):
            if isinstance(each, Changed):
                self.changed.append(row)
            elif isinstance(each, InputFailure):
                for table in self.tables:
                    table.fail(row, str(each))
            else:
                sound.append(row)
                kept.append(each)
        return np.array(sound, np.int64), kept

    def report(self, payload_bytes: int) -> TaskReport:
        """What became of the task, once it is committed."""
        uris = self.task.uris
        bad = np.zeros(len(uris), dtype=bool)
        bad[self.changed] = True
        reasons: dict[int, str] = {}
        for table in self.tables:
            bad[sorted(table.failed_here)] = True
            for cell, reason in table.failures.items():
                row = cell[0]
                if row in table.failed_here or cell in table.unanswered:
                    reasons.setdefault(row, f"{_shown(uris[row])}: {reason}")
        return TaskReport(
            task_id=self.task.task_id,
            row_count=len(self.tried),
            cells={table.task.name: int(table.valid.sum()) for table in self.tables},
            failures={table.task.name: len(table.failures) for table in self.tables},
            reasons=tuple(islice(reasons.values(), REPORTED)),
            changed=tuple(_shown(uris[row]) for row in self.changed[:REPORTED]),
            bad=bad[self.tried],
            seconds=self.seconds,
            bytes=payload_bytes,
            counts={table.task.name: table.counts for table in self.tables if table.counts},
            ended=self.ended,
            timings=self.timings,
        )


class _TableWork(NamedTuple):
    """What computes one table of a task: the opened stage, where its cells go, and where those above come from."""

    stage: Stage
    table: PartialTable
    upstream: UpstreamCells
    turn: Callable[[], Turn]


def compute_once(task: Task, device: str = "cpu") -> TaskResult:
    """What one task computes, which nobody commits, by a worker of its own."""
    worker = Worker(device)
    try:
        result = worker.compute(task)
    finally:
        worker.close()
    assert result is not None, "nobody stops it"
    return result


def _compute_cells(work: _TableWork, batch: Batch, rows: np.ndarray) -> str:
    """Compute the columns that a row of the batch needs, and keep them.

    Args:
        work: of the table.
        batch: padded.
        rows: the batch's real rows.

    Returns:
        Why the stage computes no further cell, or "".

    Raises:
        InputFailure: a row cannot be processed.
    """
    stage, table = work.stage, work.table
    columns = table.lacking(rows)
    if not columns:
        return ""
    began = time.perf_counter()
    turn = replace(work.turn(), wanted=table.wanted(rows, columns))
    answers = stage.compute(
        replace(batch, turn=turn), columns, work.upstream.take(rows, padded(rows, len(batch.row_ids)))
    )
    for column in columns:
        if column not in answers:
            raise RuntimeError(f"{table.task.name}, column {column!r}: compute returned only {', '.join(answers)}")
        if len(answers[column]) != len(batch.row_ids):
            raise RuntimeError(
                f"{table.task.name}, column {column!r}: {len(answers[column])} values for {len(batch.row_ids)} rows"
            )
    table.take_turn(rows, turn)
    table.put(rows, {column: answers[column] for column in columns})
    table.seconds += time.perf_counter() - began
    return turn.end


def _fill(task: Task, work: _TableWork, batch: Batch, rows: np.ndarray, loaded: list[Loaded]) -> str:
    """Compute a batch. Where a row cannot be processed, halve it until that row is found and fails.

    Returns:
        Why the stage computes no further cell, or "".
    """
    try:
        return _compute_cells(work, batch, rows)
    except InputFailure as failure:
        if len(rows) == 1:
            work.table.fail(int(rows[0]), str(failure))
            return ""
        middle, ended = len(rows) // 2, ""
        for half in (slice(0, middle), slice(middle, None)):
            ended = _fill(task, work, batch_of(task, rows[half], loaded[half]), rows[half], loaded[half]) or ended
        return ended


def _pass_keys(task: Task) -> list[tuple[Any, ...]]:
    """Under which a worker keeps each of the task's stages once it is open."""
    return [
        (table.stage.vision_key or table.name, canonical_json(table.target.table.record), table.stage.columns)
        for table in task.tables
    ]


def record_failure(task: Task, reason: str) -> TaskReport:
    """Make every needed cell of a task a failure cell, without opening its stages."""
    worker = Worker(readers=1)
    try:
        result, _ = worker._begin(task)
        needed = np.concatenate([table.needed for table in result.tables], axis=1)
        result.tried = np.flatnonzero(needed.any(axis=1))
        for table in result.tables:
            for row in result.tried.tolist():
                table.fail(row, reason)
        return worker.commit(result)
    finally:
        worker.close()


def _done(tables: Iterable[PartialTable]) -> dict[str, int]:
    return {table.task.name: table.done for table in tables}


def _shown(uri: str) -> str:
    return uri if len(uri) <= 200 else uri[:197] + "..."
