"""What a worker is asked to do, what it answers, and when too many failures stop a run. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.stage import ArrowOutput, Stage, TensorOutput
    from hoi_distill.storage.table import Table

TEXT_PREFIX = "text:"
"""A task's uri is a file path, or this prefix followed by the text itself."""


@dataclass(frozen=True)
class TableSpec:
    """How a worker finds one table.

    Attributes:
        root: the cache's root folder.
        name: the stage's name, the first part of the table's folder name.
        record: the table's fingerprint record (``hoi_distill.stages.stage.fingerprint_record``).
        output: what a cell looks like.
    """

    root: str
    name: str
    record: dict[str, Any]
    output: ArrowOutput | TensorOutput

    def open(self) -> Table:
        """The table in the cache (created where it is missing)."""
        from hoi_distill.storage.cache import Cache

        value_type = getattr(self.output, "type", None)
        return Cache.open(self.root).table(self.name, self.record, self.output.describe(), value_type)


@dataclass(frozen=True)
class Upstream:
    """One input table of a part: ``columns`` (U of them) that may be read, and the input digests (``uint64 [R]`` or
    ``[R, U]``) that say which values of its cells are meant; None where that table's cells have none. Cells that its own
    stage does not want (bool ``[R, U]``; None: it wants all) read as null."""

    table: TableSpec
    columns: tuple[str, ...]
    inputs: np.ndarray | None = None
    wanted: np.ndarray | None = None


@dataclass(frozen=True)
class Part:
    """The cells of one table that a pass is to fill.

    Attributes:
        name: the table's name in the configuration, used in reports and messages.
        stage: what computes it, unopened.
        table: where to write.
        columns: C columns of ``stage.columns``.
        needed: ``bool [R, C]``, the cells to fill.
        inputs: input digests of the cells, ``uint64 [R]`` or ``[R, C]``; None where the stage has no inputs.
        upstream: per input table (by the name that ``stage.inputs`` uses) where to read it.
    """

    name: str
    stage: Stage
    table: TableSpec
    columns: tuple[str, ...]
    needed: np.ndarray
    inputs: np.ndarray | None = None
    upstream: dict[str, Upstream] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One pass over R rows for one or more tables.

    The parts' stages run on the same batches, so they have the same source, decoding and batch size; a task of several
    parts is how stages of one vision tower share a decoded image and its encoding.

    Attributes:
        task_id: unique in a run.
        rows: ``V16 [R]`` content digests.
        uris: R file paths, or ``text:...``; unread where no part's stage decodes.
        keys: R names of the rows in their dataset.
    """

    task_id: str
    rows: np.ndarray
    uris: Sequence[str]
    keys: Sequence[str]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        kinds = {(part.stage.source, part.stage.decodes, part.stage.batch_size) for part in self.parts}
        if len(kinds) != 1:
            raise ValueError(
                f"task {self.task_id}: the stages of one pass differ in source, decoding or batch size: {kinds}"
            )
        for part in self.parts:
            if part.needed.shape != (len(self.rows), len(part.columns)):
                raise ValueError(
                    f"task {self.task_id}: {part.name} wants {part.needed.shape} cells of "
                    f"{len(self.rows)} rows x {len(part.columns)} columns"
                )

    def take(self, positions: slice, suffix: str) -> Task:
        """The task of some of its rows."""
        parts = tuple(
            replace(
                part,
                needed=part.needed[positions],
                inputs=None if part.inputs is None else part.inputs[positions],
                upstream={
                    name: replace(
                        up,
                        inputs=None if up.inputs is None else up.inputs[positions],
                        wanted=None if up.wanted is None else up.wanted[positions],
                    )
                    for name, up in part.upstream.items()
                },
            )
            for part in self.parts
        )
        return Task(self.task_id + suffix, self.rows[positions], self.uris[positions], self.keys[positions], parts)

    def halves(self) -> tuple[Task, ...]:
        """Two smaller tasks that do the same: half the rows each; of a single row, one task per part. Empty if neither
        can be split."""
        if len(self.rows) > 1:
            middle = len(self.rows) // 2
            return self.take(slice(0, middle), "a"), self.take(slice(middle, None), "b")
        if len(self.parts) > 1:
            return tuple(replace(self, task_id=f"{self.task_id}.{part.name}", parts=(part,)) for part in self.parts)
        return ()


@dataclass(frozen=True)
class TaskReport:
    """What became of a task, sent once its cells are committed.

    Attributes:
        rows: rows worked on.
        cells: values written, by table name.
        failures: failure cells written, by table name.
        reasons: up to ten lines ``<uri>: <reason>``, the first failures of this task.
        changed: up to ten uris whose bytes are no longer those that were planned, or that have gone; their cells stay
            empty.
        bad: ``bool [rows]``, in row order: the rows that failed here or changed (rows that failed upstream are not
            counted again).
        seconds: wall time from the first byte read to the last commit.
        bytes: payload bytes written.
    """

    task_id: str
    rows: int
    cells: dict[str, int]
    failures: dict[str, int]
    reasons: tuple[str, ...]
    changed: tuple[str, ...]
    bad: np.ndarray
    seconds: float
    bytes: int


class FailureLimit:
    """Stops a run whose inputs are mostly broken: more than 1 % of the rows tried, or 50 rows in a row.

    The percentage is judged once 100 rows were tried and 10 of them failed, so that a small folder with a few bad
    pictures is worked through and only counted. Rows whose bytes changed or went count as failed.
    """

    FRACTION = 0.01
    ROWS_FIRST = 100
    FAILURES_FIRST = 10
    IN_A_ROW = 50

    def __init__(self) -> None:
        self.tried = self.failed = self.streak = 0
        self.example = ""

    def add(self, report: TaskReport) -> UserError | None:
        """Count one report; the error that stops the run, if this was too much."""
        lines = report.reasons or tuple(f"{uri}: changed or gone since planning" for uri in report.changed)
        self.example = self.example or next(iter(lines), "")
        self.tried += len(report.bad)
        self.failed += int(report.bad.sum())
        worst = self._streak(report.bad)
        example = f"the first was {self.example}; mend or remove these inputs and run again"
        if worst >= self.IN_A_ROW:
            return UserError(f"stopped: {worst} rows in a row failed; {example}")
        enough = self.tried >= self.ROWS_FIRST and self.failed >= self.FAILURES_FIRST
        if enough and self.failed > self.FRACTION * self.tried:
            return UserError(f"stopped: {self.failed} of {self.tried} rows failed (more than 1 %); {example}")
        return None

    def _streak(self, bad: np.ndarray) -> int:
        """The longest run of failures that ends in these rows, earlier reports' last rows included."""
        good = np.flatnonzero(~bad)
        if len(good) == 0:
            self.streak += len(bad)
            return self.streak
        gaps = np.diff(good, prepend=-1) - 1
        worst = max(self.streak + int(gaps[0]), int(gaps.max()))
        self.streak = len(bad) - 1 - int(good[-1])
        return max(worst, self.streak)
