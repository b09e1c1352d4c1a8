"""Where the tasks of a worker are, for those who wait for them. Light to import."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

READING, LOADING, COMPUTING, WRITING, WRITTEN = "reading", "loading", "computing", "writing", "written"


@dataclass(frozen=True)
class Beat:
    """One task that is under way.

    Attributes:
        doing: ``reading`` (values above), ``loading`` (models), ``computing``, ``writing`` or ``written`` (and not yet
            reported).
        batches: batches that are computed, ``of`` so many.
        cells: computed and not yet reported, by name of table; every table of the task is there.
        seconds: since its first step.
        since: seconds since its last step: models loaded, a batch computed.
        pace: seconds a batch, None before the first one.
    """

    task_id: str
    doing: str
    batches: int
    of: int
    cells: Mapping[str, int]
    seconds: float
    since: float
    pace: float | None

    @property
    def place(self) -> tuple[object, ...]:
        """What changes with every step and at no other time."""
        return self.task_id, self.doing, self.batches, tuple(self.cells.values())

    def left(self, waited: float = 0.0) -> float | None:
        """Seconds until the batch ends, ``waited`` seconds after this was said; None where nobody knows."""
        return None if self.pace is None else max(self.pace - self.since - waited, 0.0)


@dataclass
class _Place:
    doing: str
    of: int
    cells: dict[str, int]
    began: float
    moved: float
    batches: int = 0
    computing: float = field(default=0.0)


class Pulse:
    """The places of a worker's tasks. Written by its threads, read by any.

    Args:
        tell: called with every task under way after each step, in the thread that made it.
    """

    def __init__(self, tell: Callable[[Sequence[Beat]], None] | None = None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}

    def step(self, task_id: str, doing: str, of: int = 0, cells: Mapping[str, int] | None = None) -> None:
        """A task begins to do this. ``of``: its batches; ``cells``: as in :class:`Beat`."""
        now = time.monotonic()
        with self._lock:
            place = self._places.setdefault(task_id, _Place(doing, of, {}, now, now))
            place.doing, place.of, place.moved = doing, of or place.of, now
            place.cells = dict(cells) if cells is not None else place.cells
            place.computing = now if doing == COMPUTING else place.computing
        self._told()

    def batch(self, task_id: str, cells: Mapping[str, int], whole: bool = True) -> None:
        """A batch is computed, or (not ``whole``) one table's share of it."""
        with self._lock:
            place = self._places[task_id]
            place.batches += whole
            place.cells, place.moved = dict(cells), time.monotonic()
        self._told()

    def end(self, task_id: str) -> None:
        """Nobody waits for the task any longer."""
        with self._lock:
            self._places.pop(task_id, None)
        self._told()

    def beats(self) -> tuple[Beat, ...]:
        """The tasks under way, in the order in which they began."""
        now = time.monotonic()
        with self._lock:
            return tuple(
                Beat(
                    task_id,
                    place.doing,
                    place.batches,
                    place.of,
                    dict(place.cells),
                    now - place.began,
                    now - place.moved,
                    (place.moved - place.computing) / place.batches
                    if place.batches and place.doing == COMPUTING
                    else None,
                )
                for task_id, place in self._places.items()
            )

    def _told(self) -> None:
        if self._tell is not None:
            self._tell(self.beats())
