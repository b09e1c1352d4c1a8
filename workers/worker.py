"""What one worker does with one task: read and decode, forward, write.

The three overlap. Reader threads decode the next batch while a batch is computed, and :meth:`Worker.run` may be called
from several threads at once: forwards take turns, so one task's cells are written while the next task computes. A
report is made only after the commit, so a task that was reported is on disk. A stop comes between two batches, or two
tables of one batch: what is computed until then is committed.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import InputFailure
from hoi_distill.workers.loading import (
    Changed,
    UpstreamColumn,
    batch_of,
    batch_size_of,
    batches_of,
    load_row,
    padded,
    prefetch,
    to_numpy,
)
from hoi_distill.workers.pulse import COMPUTING, LOADING, READING, WRITING, WRITTEN, Pulse
from hoi_distill.workers.task import Part, TableSpec, Task, TaskReport

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
        readers: threads that read and decode.
        stop: once set, tasks that have not begun to compute return None; the one that computes ends with the table of
            the batch that it is at, and its computed cells are committed.
        pulse: told of every step.
    """

    def __init__(
        self,
        device: str = "cpu",
        readers: int = 4,
        stop: threading.Event | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.device = device
        self.stop = stop or threading.Event()
        self.pulse = pulse or Pulse()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._forward_turn = threading.Lock()
        self._storage_turn = threading.Lock()
        self._tables: dict[tuple[str, bytes], Table] = {}
        self._save_turn = threading.Lock()
        self._computing: tuple[Task, list[Filling]] | None = None
        self._opened: dict[tuple[Any, ...], Stage] = {}
        self._shared: dict[Any, Any] = {}

    def run(self, task: Task) -> TaskReport | None:
        """Compute and commit a task; None if the worker was stopped before its turn.

        Raises:
            Exception: whatever is not an input's fault (memory, device, I/O, a bug in a stage). Nothing of the task is
                written then; its cells stay empty.
        """
        outcome = self.forward(task)
        if outcome is None:
            return None
        report = self.write(outcome)
        self.pulse.end(task.task_id)
        return report

    def close(self) -> None:
        """Let the reader threads go."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def forward(self, task: Task) -> Outcome | None:
        """Everything but the writing. Cells live in memory until :meth:`write`: a task's size bounds it."""
        self.pulse.step(task.task_id, READING, cells={part.name: 0 for part in task.parts})
        try:
            outcome = self._forward(task)
        except BaseException:
            self.pulse.end(task.task_id)
            raise
        if outcome is None:
            self.pulse.end(task.task_id)
        return outcome

    def _forward(self, task: Task) -> Outcome | None:
        with self._storage_turn:
            fillings = [Filling(part, task.rows, self._table) for part in task.parts]
        batches = batches_of(np.concatenate([filling.needed for filling in fillings], axis=1), batch_size_of(task))
        order = [position for batch in batches for position in batch.tolist()]
        load = prefetch(self._readers, lambda position: load_row(task, position), order, depth=batch_size_of(task))
        changed: list[int] = []
        tried: list[int] = []
        with self._forward_turn, contextlib.closing(load):
            if self.stop.is_set():
                return None
            started = time.perf_counter()
            with self._may_be_saved(task, fillings):
                self.pulse.step(task.task_id, LOADING, len(batches))
                stages = self._open(task)
                self.pulse.step(task.task_id, COMPUTING)
                for positions in batches:
                    if self.stop.is_set():
                        break
                    sources: list[Any] = []
                    sound: list[int] = []
                    for position, source in zip(positions.tolist(), islice(load, len(positions)), strict=True):
                        if isinstance(source, Changed):
                            changed.append(position)
                        elif isinstance(source, InputFailure):
                            for filling in fillings:
                                filling.fail(position, str(source))
                        else:
                            sound.append(position)
                            sources.append(source)
                    if sound:
                        self._compute(task, stages, fillings, np.array(sound), sources)
                    tried += positions.tolist()
                    self.pulse.batch(task.task_id, _done(fillings))
            seconds = time.perf_counter() - started
        if batches and not tried:
            return None
        # A task without a batch has failures to hand on: those of its rows' upstream cells.
        return Outcome(task, fillings, np.sort(np.array(tried, dtype=np.int64)), changed, seconds)

    @contextlib.contextmanager
    def _may_be_saved(self, task: Task, fillings: list[Filling]) -> Iterator[None]:
        """:meth:`save` commits of this task until the block ends, also by an error."""
        self._computing = task, fillings
        try:
            yield
        finally:
            with self._save_turn:
                self._computing = None

    def save(self) -> None:
        """Commit what is computed so far of the task that computes now, in another thread; the rest of it is committed, and
        all of it reported, when it ends."""
        with self._save_turn:
            if self._computing is None:
                return
            task, fillings = self._computing
            so_far = [filling.so_far() for filling in fillings]
            self._write(Outcome(task, so_far, np.zeros(0, np.int64), [], 0.0))
            for filling, saved in zip(fillings, so_far, strict=True):
                filling.saved = saved.valid

    def write(self, outcome: Outcome) -> TaskReport:
        """Commit one shard per part. Who takes the report ends the task's place in the pulse."""
        self.pulse.step(outcome.task.task_id, WRITING)
        try:
            report = self._write(outcome)
        except BaseException:
            self.pulse.end(outcome.task.task_id)
            raise
        self.pulse.step(outcome.task.task_id, WRITTEN)
        return report

    def _write(self, outcome: Outcome) -> TaskReport:
        task, cells, failures, payload = outcome.task, {}, {}, 0
        bad = np.zeros(len(task.rows), dtype=bool)
        reasons: dict[int, str] = {}
        bad[outcome.changed] = True
        for filling in outcome.fillings:
            part = filling.part
            bad[sorted(filling.failed_here)] = True
            for (row, _), reason in filling.failures.items():
                if row in filling.failed_here:
                    reasons.setdefault(row, f"{_shown(task.uris[row])}: {reason}")
            cells[part.name] = int(filling.valid.sum())
            failures[part.name] = len(filling.failures)
            if not filling.unsaved.any() and not failures[part.name]:
                continue
            provenance = {
                "task": task.task_id,
                "device": self.device,
                "seconds": round(filling.seconds, 3),
                **part.stage.provenance(),
            }
            with self._storage_turn:
                payload += filling.commit(self._table(part.table), task.rows, provenance)
        return TaskReport(
            task_id=task.task_id,
            rows=len(outcome.tried),
            cells=cells,
            failures=failures,
            reasons=tuple(islice(reasons.values(), REPORTED)),
            changed=tuple(_shown(task.uris[position]) for position in outcome.changed[:REPORTED]),
            bad=bad[outcome.tried],
            seconds=outcome.seconds,
            bytes=payload,
        )

    def _compute(
        self, task: Task, stages: list[Stage], fillings: list[Filling], positions: np.ndarray, sources: list[Any]
    ) -> None:
        """Run every part on one batch. The parts share its memo; a part that meets a bad row splits on its own."""
        batch = batch_of(task, positions, sources)
        for stage, filling in zip(stages, fillings, strict=True):
            if self.stop.is_set():
                break
            self._fill(task, stage, filling, positions, sources, batch)
            self.pulse.batch(task.task_id, _done(fillings), whole=False)

    def _fill(
        self,
        task: Task,
        stage: Stage,
        filling: Filling,
        positions: np.ndarray,
        sources: list[Any],
        batch: Batch,
    ) -> None:
        began = time.perf_counter()
        try:
            filling.fill(stage, batch, positions)
            filling.seconds += time.perf_counter() - began
        except InputFailure as failure:
            if len(positions) == 1:
                filling.fail(int(positions[0]), str(failure))
                return
            middle = len(positions) // 2
            for half in (slice(0, middle), slice(middle, None)):
                smaller = batch_of(task, positions[half], sources[half])
                self._fill(task, stage, filling, positions[half], sources[half], smaller)

    def _open(self, task: Task) -> list[Stage]:
        """The task's stages, opened. A worker holds one pass's models at a time: a task of another pass evicts them."""
        keys = [
            (part.stage.vision_key or part.name, canonical_json(part.table.record), part.stage.columns)
            for part in task.parts
        ]
        if self._opened and not {key[0] for key in keys} & {key[0] for key in self._opened}:
            self._opened, self._shared = {}, {}
            gc.collect()
            if "torch" in sys.modules and self.device != "cpu":
                sys.modules["torch"].cuda.empty_cache()
        for key, part in zip(keys, task.parts, strict=True):
            if key not in self._opened:
                part.stage.open(self.device, self._shared)
                self._opened[key] = part.stage
        return [self._opened[key] for key in keys]

    def _table(self, spec: TableSpec) -> Table:
        key = (spec.root, canonical_json(spec.record))
        if key not in self._tables:
            self._tables[key] = spec.open()
        return self._tables[key]


@dataclass
class Outcome:
    """A computed task before it is written: ``tried`` are the positions of its rows that were worked on, ascending."""

    task: Task
    fillings: list[Filling]
    tried: np.ndarray
    changed: list[int]
    seconds: float


class Filling:
    """The cells of one part while a pass computes them: what they are computed from, and what came out.

    Attributes:
        needed: ``bool [R, C]``: the part's needed cells, less those whose upstream cell is a failure.
        valid: ``bool [R, C]``: computed. saved: those of them that are committed already.
        failures: ``{(row, column): reason}``.
        failed_here: rows that failed by themselves, not because something upstream had.
        seconds: spent in the stage's ``compute``; work that parts of a pass share is counted where it was done.
    """

    def __init__(self, part: Part, rows: np.ndarray, table: Callable[[TableSpec], Table]) -> None:
        self.part = part
        self.needed = part.needed.copy()
        self.valid = np.zeros_like(part.needed)
        self.saved = np.zeros_like(part.needed)
        self.failures: dict[tuple[int, int], str] = {}
        self.failed_here: set[int] = set()
        self.seconds = 0.0
        self._rows = np.flatnonzero(part.needed.any(axis=1))
        self._slot = np.full(len(rows), -1)
        self._slot[self._rows] = np.arange(len(self._rows))
        self._tensors: dict[str, np.ndarray] = {}
        self._pieces: dict[str, list[tuple[np.ndarray, pa.Array]]] = {}
        self._inputs: dict[str, dict[str, UpstreamColumn]] = {}
        tables = {name: table(up.table) for name, up in part.upstream.items()}
        for name in tables:
            self._inherit_failures(name, tables[name], rows)
        for name in tables:
            self._inputs[name] = self._read(name, tables[name], rows)

    def _inherit_failures(self, name: str, table: Table, rows: np.ndarray) -> None:
        up, depends = self.part.upstream[name], self._depends(name)
        for (row, column), reason in table.failures(rows, up.columns, up.inputs).items():
            if up.wanted is not None and not up.wanted[row, column]:
                continue
            for below in np.flatnonzero(depends[column] & self.needed[row]).tolist():
                self.failures[row, below] = f"upstream {name}: {reason}"
                self.needed[row, below] = False

    def _depends(self, name: str) -> np.ndarray:
        """``bool [U, C]``: which columns of the upstream table each column is computed from."""
        columns = self.part.upstream[name].columns
        depends = np.zeros((len(columns), len(self.part.columns)), dtype=bool)
        for below, column in enumerate(self.part.columns):
            needs = self.part.stage.dependencies(column)
            depends[:, below] = True if needs is None else [above in needs.get(name, ()) for above in columns]
        return depends

    def _read(self, name: str, table: Table, rows: np.ndarray) -> dict[str, UpstreamColumn]:
        """The upstream cells that the needed ones are computed from; columns that the same rows ask for in one read."""
        up = self.part.upstream[name]
        asked = (self.needed.astype(np.float32) @ self._depends(name).T.astype(np.float32)) > 0
        patterns, group = np.unique(asked, axis=1, return_inverse=True)
        found: dict[str, UpstreamColumn] = {}
        for index, pattern in enumerate(patterns.T):
            positions = np.flatnonzero(pattern)
            if not len(positions):
                continue
            members = np.flatnonzero(group == index)
            columns = tuple(up.columns[member] for member in members)
            inputs = None if up.inputs is None else up.inputs[positions]
            if inputs is not None and inputs.ndim == 2:
                inputs = inputs[:, members]
            slot = np.full(len(rows), -1)
            slot[positions] = np.arange(len(positions))
            wanted = None if up.wanted is None else up.wanted[np.ix_(positions, members)]
            values = table.read(rows[positions], columns, inputs, wanted)
            found.update({column: UpstreamColumn(values[column], slot) for column in columns})
        return found

    def fill(self, stage: Stage, batch: Batch, positions: np.ndarray) -> None:
        """Compute the columns that some row of the batch lacks and keep the needed cells.

        Args:
            positions: the task's rows that are the batch's real rows.
        """
        lacking = self.needed[positions]
        columns = [self.part.columns[index] for index in np.flatnonzero(lacking.any(axis=0))]
        if not columns:
            return
        repeated = padded(positions, len(batch.row_ids))
        inputs = {
            name: {column: cells.take(repeated) for column, cells in table.items() if cells.has_any(positions)}
            for name, table in self._inputs.items()
        }
        answers = stage.compute(batch, columns, inputs)
        for column in columns:
            if len(answers[column]) != len(batch.row_ids):
                raise RuntimeError(
                    f"{self.part.name}, column {column!r}: {len(answers[column])} values for {len(batch.row_ids)} rows"
                )
            self._keep(column, positions, answers[column])
        self.valid[positions] |= lacking

    @property
    def unsaved(self) -> np.ndarray:
        """``bool [R, C]``."""
        return self.valid & ~self.saved

    def so_far(self) -> Filling:
        """What is whole now, for a thread that writes it while this one goes on: a batch's cells are valid when all of them
        are kept. Failures come at the end."""
        other = copy.copy(self)
        other.valid, other.failures, other.failed_here = self.valid.copy(), {}, set()
        other._pieces = {
            column: list(pieces)
            for column, pieces in list(self._pieces.items())  # a batch may add a column meanwhile
        }
        return other

    @property
    def done(self) -> int:
        """Cells that have a value or a failure."""
        return int(self.valid.sum()) + len(self.failures)

    def fail(self, position: int, reason: str) -> None:
        """Make the row's needed cells failures."""
        line = " ".join(reason.split()) or "failed without a reason"
        for column in np.flatnonzero(self.needed[position]).tolist():
            self.failures[position, column] = line
            self.failed_here.add(position)

    def commit(self, table: Table, rows: np.ndarray, provenance: dict[str, Any]) -> int:
        """Write the rows and columns that were asked for; payload bytes."""
        chosen = np.flatnonzero(self.part.needed.any(axis=0))
        columns = tuple(self.part.columns[index] for index in chosen)
        place = {int(index): new for new, index in enumerate(chosen)}
        inputs = self.part.inputs
        if inputs is not None:
            inputs = inputs[self._rows] if inputs.ndim == 1 else inputs[np.ix_(self._rows, chosen)]
        commit = table.commit(
            rows[self._rows],
            columns,
            self.unsaved[np.ix_(self._rows, chosen)],
            {column: self._values(column) for column in columns if self._has(column)},
            {(int(self._slot[row]), place[column]): reason for (row, column), reason in self.failures.items()},
            inputs,
            provenance,
        )
        return int(commit.bytes)

    def values(self, column: str, positions: np.ndarray) -> Values:
        """The computed cells of a column for these rows of the task (each of them needed)."""
        slots = self._slot[positions]
        cells = self._values(column)
        return cells.take(pa.array(slots)) if isinstance(cells, pa.Array) else cells[slots]

    def _keep(self, column: str, positions: np.ndarray, values: Values) -> None:
        """Keep the first values, those of ``positions``; rows that only other parts of the task want have no slot here."""
        output = self.part.stage.output
        slots = self._slot[positions]
        own = np.flatnonzero(slots >= 0)
        if isinstance(output, ArrowOutput):
            self._pieces.setdefault(column, []).append((slots[own], values.take(pa.array(own))))
            return
        if column not in self._tensors:
            dtype = np.float16 if output.codec == "fp16" else np.float32
            self._tensors[column] = np.zeros((len(self._rows), *output.shape), dtype=dtype)
        self._tensors[column][slots[own]] = to_numpy(values[: len(positions)], output)[own]

    def _has(self, column: str) -> bool:
        return column in self._tensors or column in self._pieces

    def _values(self, column: str) -> pa.Array | np.ndarray:
        """The column's cells for the asked rows, in row order; null or zero where there is none."""
        if column in self._tensors:
            return self._tensors[column]
        pieces = self._pieces[column]
        slots = np.concatenate([slots for slots, _ in pieces])
        order = np.full(len(self._rows), -1)
        order[slots] = np.arange(len(slots))
        joined = pa.concat_arrays([values for _, values in pieces])
        return joined.take(pa.array(order, mask=order < 0))


def record_failure(task: Task, reason: str) -> TaskReport:
    """Make every needed cell of a task a failure cell, without opening its stages."""
    fillings = [Filling(part, task.rows, TableSpec.open) for part in task.parts]
    tried = np.flatnonzero(np.concatenate([filling.needed for filling in fillings], axis=1).any(axis=1))
    for filling in fillings:
        for position in tried.tolist():
            filling.fail(position, reason)
    worker = Worker(readers=1)
    try:
        return worker.write(Outcome(task, fillings, tried, [], 0.0))
    finally:
        worker.close()


def _done(fillings: Iterable[Filling]) -> dict[str, int]:
    return {filling.part.name: filling.done for filling in fillings}


def _shown(uri: str) -> str:
    return uri if len(uri) <= 200 else uri[:197] + "..."
