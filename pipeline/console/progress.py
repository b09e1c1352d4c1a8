"""What a run says while it fills the cache: a line per table with its pace and the time left.

A terminal gets lines that renew themselves. Anything else gets the lines that have changed, every five seconds for the
first ten minutes and every thirty from then on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from typing_extensions import override

from hoi_distill.stages.quantities import duration, pace
from hoi_distill.workers.pulse import COMPUTING, LOADING, READING, WRITTEN, Beat
from hoi_distill.workers.task import TaskReport

RENEW_SECONDS = 0.5
LINE_SECONDS = 5.0
LATER_SECONDS = 30.0
LATER_FROM = 600.0
LONG_SECONDS = 5.0
"""A step that has taken this long is shown with its time."""


@dataclass
class TableProgress:
    """How far one table is.

    Attributes:
        todo: its empty cells at the start.
        done: cells that were computed.
        failed: cells that were recorded as failures.
        started: when its first batch began, in seconds of the monotonic clock.
        ended: when its last cell was done, likewise.
    """

    todo: int
    done: int = 0
    failed: int = 0
    started: float | None = None
    ended: float | None = None


@dataclass
class Progress:
    """What a run does. A thread of its own draws it within a ``with`` block.

    Log lines of warnings and worse stand above the lines that renew themselves.

    Args:
        todo: empty cells by table.
        stop: once set, a line says what the run waits for.
        out: the stream that the lines go to; default: ``sys.stderr``.
        every: seconds between two drawings; by default as the module says.
    """

    todo: Mapping[str, int]
    stop: threading.Event = field(default_factory=threading.Event)
    out: IO[str] | None = None
    every: float | None = None

    def __post_init__(self) -> None:
        self._out = self.out or sys.stderr
        self._terminal = self._out.isatty()
        self.tables = {name: TableProgress(cells) for name, cells in self.todo.items() if cells}
        self.began = self._heard = time.monotonic()
        self._beats: Sequence[Beat] = ()
        self._drawn: list[str] = []
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._log = _Above(self)

    def __enter__(self) -> Progress:
        logging.getLogger().addHandler(self._log)
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._ticker.join()
        logging.getLogger().removeHandler(self._log)
        self._beats = ()
        if kind is None:
            self.draw()

    def _tick(self) -> None:
        while not self._ended.wait(self._interval()):
            self.draw()

    def _interval(self) -> float:
        if self.every is not None:
            return self.every
        if self._terminal:
            return RENEW_SECONDS
        return LINE_SECONDS if time.monotonic() - self.began < LATER_FROM else LATER_SECONDS

    def under_way(self, beats: Sequence[Beat]) -> None:
        """Take what all workers do now."""
        now = time.monotonic()
        with self._lock:
            self._beats, self._heard = beats, now
            for name in {name for beat in beats if beat.doing != READING for name in beat.cells}:
                if name in self.tables and self.tables[name].started is None:
                    self.tables[name].started = now

    def advance(self, report: TaskReport) -> None:
        """Count a finished task."""
        now = time.monotonic()
        with self._lock:
            self._beats = [beat for beat in self._beats if beat.task_id != report.task_id]
            for name, number in report.cells.items():
                if name in self.tables:
                    table = self.tables[name]
                    table.done += number
                    table.failed += report.failures.get(name, 0)
                    if table.done + table.failed >= table.todo:
                        table.ended = now

    def say(self, line: str) -> None:
        """A line that stays, above those that renew themselves."""
        with self._lock:
            self._erase()
            self._write([line])
            if self._terminal:
                self._write(self._drawn)

    def draw(self) -> None:
        """Write the lines of all tables: in the place of the last ones on a terminal, else those that have changed."""
        with self._lock:
            now = time.monotonic()
            lines = [self.line(name, table, now) for name, table in self.tables.items()]
            if note := self._note(now):
                lines.append(note)
            if self._terminal:
                self._erase()
                self._write(lines)
            else:
                self._write([line for line in lines if line not in self._drawn])
            self._drawn = lines

    def line(self, name: str, table: TableProgress, now: float) -> str:
        """One table: ``  itm   1,024 / 290,000 cells   577/s  8 min 21 s left``."""
        mine = [beat for beat in self._beats if name in beat.cells]
        finished = min(table.done + table.failed + sum(beat.cells[name] for beat in mine), table.todo)
        text = f"  {name:16s} {finished:>9,} / {table.todo:,} cells"
        if finished:
            rate = finished / max((table.ended or now) - (table.started or self.began), 1e-9)
            left = table.todo - finished
            text += f"  {pace(rate, 'cell'):>12s}  " + (f"{duration(left / rate)} left" if left else "done")
        if table.failed:
            text += f"  {table.failed} failed"
        steps = [beat for beat in mine if beat.doing not in (READING, WRITTEN)]
        longest = max(steps, key=lambda beat: beat.since, default=None)
        if longest is not None and (not finished or longest.since + now - self._heard >= LONG_SECONDS):
            text += f"  ({self._step(longest, now)})"
        return text

    def _step(self, beat: Beat, now: float) -> str:
        """What a task is at: ``batch 3 of 8, 40 s``."""
        what = {LOADING: "loading models", COMPUTING: f"batch {min(beat.batches + 1, beat.of)} of {beat.of}"}
        since = beat.since + now - self._heard
        return what.get(beat.doing, beat.doing) + (f", {duration(since)}" if since >= LONG_SECONDS else "")

    def _note(self, now: float) -> str:
        """What is waited for, where the tables' lines do not say it."""
        unwritten = [beat for beat in self._beats if beat.doing != WRITTEN]
        if self.stop.is_set() and unwritten:
            last = max(unwritten, key=lambda beat: beat.left(now - self._heard) or 0.0)
            left = last.left(now - self._heard)
            rest = "time left unknown" if left is None else f"about {duration(left)} left"
            return f"  Stopping: waiting for task {last.task_id}: {self._step(last, now)}; {rest}"
        if not self._beats and not self._ended.is_set() and any(table.ended is None for table in self.tables.values()):
            return f"  waiting for a worker to begin ({duration(now - self._heard)})"
        return ""

    def _erase(self) -> None:
        if self._terminal and self._drawn:
            width = 0
            with contextlib.suppress(OSError):
                width = os.get_terminal_size(self._out.fileno()).columns
            rows = sum(
                -(-len(line) // (width or sys.maxsize)) for line in self._drawn
            )  # a long line takes more than one
            self._write_text(f"\x1b[{rows}F\x1b[J")

    def _write(self, lines: Sequence[str]) -> None:
        self._write_text("".join(line + "\n" for line in lines))

    def _write_text(self, text: str) -> None:
        """A terminal that has gone away takes no run with it."""
        with contextlib.suppress(OSError):
            self._out.write(text)
            self._out.flush()


class _Above(logging.Handler):
    """Log records as lines above the progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(self.format(record))
