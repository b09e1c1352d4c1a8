"""What a worker is asked to do, what it answers, and when too many failures stop a run. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table_folder import Seen

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


@dataclass(frozen=True, eq=False)
class Target:
    """A table that is filled. All tasks that fill it share one, and a worker gets it once.

    Attributes:
        name: the table's name in the configuration, used in reports and messages.
        stage: what computes it, unopened.
        table: where to write.
        inputs: where each input table is, by the name that ``stage.inputs`` uses.
        seen: what the plan saw of the table's commit records. None: each commit looks at them itself.
    """

    name: str
    stage: Stage
    table: TableSpec
    inputs: Mapping[str, TableSpec] = field(default_factory=dict)
    seen: Seen | None = None


@dataclass(frozen=True)
class Upstream:
    """The cells of one table above that a task may read.

    Attributes:
        cells: of the task's R rows. Cells that their own stage does not want read as null.
        records: names of the commit records that hold them. None: all of the table's are looked through.
    """

    cells: CellSelection
    records: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TableTask:
    """The cells of one table that a task is to fill.

    Attributes:
        target: the table.
        cells: R rows x C columns of ``stage.columns``. ``wanted`` says which of them to fill.
        upstream: the cells of each input table, by the name that ``stage.inputs`` uses.
    """

    target: Target
    cells: CellSelection
    upstream: dict[str, Upstream] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The table's name in the configuration."""
        return self.target.name

    @property
    def stage(self) -> Stage:
        """What computes the table, unopened."""
        return self.target.stage

    @property
    def needed(self) -> np.ndarray:
        """``bool [R, C]``, the cells to fill."""
        return self.cells.wanted_mask()

    def take(self, rows: slice) -> TableTask:
        """The cells of some rows."""
        upstream = {name: replace(up, cells=up.cells.take(rows)) for name, up in self.upstream.items()}
        return replace(self, cells=self.cells.take(rows), upstream=upstream)


@dataclass(frozen=True)
class Task:
    """One pass over R rows for one or more tables.

    The tables' stages run on the same batches, so they have the same source, decoding and batch size. In a task of
    several tables the stages of one vision tower share a decoded image and its encoding.

    Attributes:
        task_id: unique in a run.
        uris: R file paths, or ``text:...``. They are not read where no stage decodes.
        keys: R names of the rows in their dataset.
        tables: what to fill; all of the same rows.
    """

    task_id: str
    uris: Sequence[str]
    keys: Sequence[str]
    tables: tuple[TableTask, ...]

    def __post_init__(self) -> None:
        kinds = {(table.stage.source, table.stage.decodes, table.stage.batch_size) for table in self.tables}
        if len(kinds) != 1:
            raise ValueError(
                f"task {self.task_id}: the stages of one pass differ in source, decoding or batch size: {kinds}"
            )
        for table in self.tables:
            if table.needed.shape != (len(self.uris), len(table.cells.columns)):
                raise ValueError(
                    f"task {self.task_id}: {table.name} wants {table.needed.shape} cells of "
                    f"{len(self.uris)} rows x {len(table.cells.columns)} columns"
                )

    @property
    def row_ids(self) -> np.ndarray:
        """``V16 [R]`` digests of the rows' inputs."""
        return self.tables[0].cells.row_ids

    @property
    def batch_size(self) -> int:
        """How many rows go through a stage together."""
        return self.tables[0].stage.batch_size

    def take(self, rows: slice, suffix: str) -> Task:
        """The task of some of its rows."""
        tables = tuple(table.take(rows) for table in self.tables)
        return Task(self.task_id + suffix, self.uris[rows], self.keys[rows], tables)

    def halves(self) -> tuple[Task, ...]:
        """Smaller tasks that do the same: two of half the rows each, or of a single row one per table. Empty where the task
        cannot be split."""
        if len(self.uris) > 1:
            middle = len(self.uris) // 2
            return self.take(slice(0, middle), "a"), self.take(slice(middle, None), "b")
        if len(self.tables) > 1:
            return tuple(
                replace(self, task_id=f"{self.task_id}.{table.name}", tables=(table,)) for table in self.tables
            )
        return ()


@dataclass(frozen=True)
class Workload:
    """The tasks of one call of an executor. Each is made when its turn comes.

    Attributes:
        targets: every table that one of the tasks fills.
        make: makes the tasks, from the first one, whenever it is called.
    """

    targets: tuple[Target, ...]
    make: Callable[[], Iterable[Task]]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Workload:
        """Tasks that are made already."""
        return cls(
            tuple({id(table.target): table.target for task in tasks for table in task.tables}.values()), lambda: tasks
        )

    def __iter__(self) -> Iterator[Task]:
        return iter(self.make())


@dataclass(frozen=True)
class TaskReport:
    """What became of a task, sent once its cells are committed.

    Attributes:
        task_id: the task's.
        row_count: how many rows were worked on.
        cells: values written, by table name.
        failures: failure cells written, by table name.
        reasons: up to ten lines ``<uri>: <reason>``, the first failures of this task.
        changed: up to ten uris whose bytes are no longer those that were planned, or that have gone; their cells stay
            empty.
        bad: ``bool [row_count]``, in row order: the rows that failed here or changed. Rows that failed upstream are not
            counted again.
        seconds: wall time from the first byte read to the last commit.
        bytes: payload bytes written.
        counts: what stages have counted (requests, tokens, a price), by table name.
        ended: why a stage computes no further cell; it ends the run. "" while it does.
        timings: where the task's time went, see :mod:`hoi_distill.workers.timings`.
    """

    task_id: str
    row_count: int
    cells: dict[str, int]
    failures: dict[str, int]
    reasons: tuple[str, ...]
    changed: tuple[str, ...]
    bad: np.ndarray
    seconds: float
    bytes: int
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    ended: str = ""
    timings: dict[str, float] = field(default_factory=dict)


class FailureLimit:
    """Stops a run whose inputs are mostly broken: more than 1 % of the rows tried, or 50 rows in a row.

    The percentage is judged once 100 rows were tried and 10 of them failed, so that a small folder with a few bad
    images is worked through and only counted. Rows whose bytes changed or went count as failed.
    """

    FRACTION = 0.01
    ROWS_FIRST = 100
    FAILURES_FIRST = 10
    IN_A_ROW = 50

    def __init__(self) -> None:
        self.tried = self.failed = self.streak = 0
        self.example = ""

    def add(self, report: TaskReport) -> UserError | None:
        """Count one report; the error that stops the run, if this was too much or a stage ends it."""
        if report.ended:
            return UserError(report.ended)
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
