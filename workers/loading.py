"""The batches of a task: which rows go together, and their images or texts, read and prepared ahead in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hoi_distill.stages.data.image import decode, frame_of
from hoi_distill.stages.stage import Batch, Stage
from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import InputFailure
from hoi_distill.storage.files.uri import read_bytes
from hoi_distill.workers.task import TEXT_PREFIX, Task

Item = TypeVar("Item")
Made = TypeVar("Made")


class Changed(Exception):
    """A source's bytes are not those that were planned, or it has gone. Its cells stay empty."""


class Loaded(NamedTuple):
    """A row's input.

    Attributes:
        source: the image or text; None where no stage looks at it.
        prepared: what :meth:`Stage.prepare` made of the image; None where the stage was not open yet.
        read_seconds: that reading took.
        prepare_seconds: that decoding and preparing took.
    """

    source: Any
    prepared: Any = None
    read_seconds: float = 0.0
    prepare_seconds: float = 0.0


def prefetch(
    readers: ThreadPoolExecutor, load: Callable[[Item], Made], items: Iterable[Item], depth: int
) -> Generator[Made, None, None]:
    """``load(item)`` in order, at most ``depth`` of them begun and not yet taken. Loading starts at once."""
    waiting = iter(items)
    begun: deque[Future[Made]] = deque(readers.submit(load, item) for item in islice(waiting, depth))

    def drain() -> Generator[Made, None, None]:
        try:
            while begun:
                loaded = begun.popleft().result()
                begun.extend(readers.submit(load, item) for item in islice(waiting, 1))
                yield loaded
        finally:
            for future in begun:
                future.cancel()

    return drain()


FEW_PATTERNS = 8


def batches_of(needed: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Which rows of a task go together.

    A batch computes every column that one of its rows lacks. So rows that lack the same cells go together. Where there are
    few such groups, no batch holds rows of two: nothing that is there is computed again, for the price of some padding. Of
    many small groups (each row wants cells of its own) neighbours share batches.

    Args:
        needed: ``bool [R, cells]``.
        batch_size: the largest batch.

    Returns:
        Positions of the rows that need something, a batch at a time.
    """
    active = np.flatnonzero(needed.any(axis=1))
    _, pattern, sizes = np.unique(np.packbits(needed[active], axis=1), axis=0, return_inverse=True, return_counts=True)
    order = active[np.argsort(pattern.reshape(-1), kind="stable")]
    ends = np.cumsum(sizes)[:-1] if len(sizes) <= FEW_PATTERNS else np.zeros(0, np.int64)
    return [
        group[start : start + batch_size]
        for group in np.split(order, ends)
        for start in range(0, len(group), batch_size)
    ]


def batch_of(task: Task, rows: np.ndarray, loaded: Sequence[Loaded]) -> Batch:
    """The batch of some rows, padded to the stages' batch size.

    Args:
        task: whose rows.
        rows: ``int [b]`` positions.
        loaded: what :func:`load_row` gave for each.
    """
    repeated = padded(rows, task.batch_size)
    stage = task.tables[0].stage
    sources = [each.source for each in loaded]
    sources += sources[-1:] * (len(repeated) - len(sources))
    return Batch(
        row_ids=task.row_ids[repeated],
        keys=[task.keys[row] for row in repeated],
        count=len(rows),
        images=sources if stage.source == "images" and stage.decodes else (),
        ahead=[each.prepared for each in loaded],
        texts=sources if stage.source == "texts" else (),
    )


def padded(rows: np.ndarray, length: int) -> np.ndarray:
    """The last row repeated up to ``length``."""
    return np.concatenate([rows, np.repeat(rows[-1:], length - len(rows))])


def is_read(task: Task) -> bool:
    """Whether the task's stages look at the images or texts."""
    stage = task.tables[0].stage
    return stage.source == "texts" or stage.decodes


def load_row(task: Task, row: int, opened: Stage | None = None) -> Loaded | Changed | InputFailure:
    """Read and decode one row's image or text, and prepare the image.

    Args:
        task: whose row. Its stages look at what is read (:func:`is_read`).
        row: its position.
        opened: a stage of the task that is open; None leaves the image to be prepared by ``compute``.

    Returns:
        ``Changed`` or ``InputFailure`` where the input is at fault: everything else raises.
    """
    stage, uri = task.tables[0].stage, task.uris[row]
    began = time.perf_counter()
    try:
        data = uri[len(TEXT_PREFIX) :].encode() if stage.source == "texts" else read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return Changed()
    read = time.perf_counter()
    frame = frame_of(task.row_ids[row].tobytes(), digest_bytes(data))
    if frame is None:
        return Changed()
    if stage.source == "texts":
        return Loaded(uri[len(TEXT_PREFIX) :], read_seconds=read - began)
    try:
        image = decode(data, frame=frame)
        prepared = None if opened is None else opened.prepare(image)
        return Loaded(image, prepared, read - began, time.perf_counter() - read)
    except InputFailure as failure:
        return failure
