"""The batches of a task: which rows go together, and their pictures or texts, read ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from hoi_distill.stages.data.image import decode, frame_of
from hoi_distill.stages.stage import Batch, TensorOutput, Values
from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import InputFailure
from hoi_distill.workers.task import TEXT_PREFIX, Task

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class Changed(Exception):
    """A source's bytes are not those that were planned, or it has gone. Its cells stay empty."""


def prefetch(
    readers: ThreadPoolExecutor, load: Callable[[Item], Loaded], items: Iterable[Item], depth: int
) -> Generator[Loaded, None, None]:
    """``load(item)`` in order, at most ``depth`` of them begun and not yet taken. Loading starts at once."""
    waiting = iter(items)
    begun: deque[Future[Loaded]] = deque(readers.submit(load, item) for item in islice(waiting, depth))

    def drain() -> Generator[Loaded, None, None]:
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
    """Positions of the rows of ``bool [R, cells]`` that lack something, in batches.

    A batch computes every column that one of its rows lacks, so rows that lack the same cells go together, and where there
    are few such groups no batch holds rows of two: nothing that is there is computed again, for the price of some padding.
    Of many small groups (each row wants cells of its own) neighbours share batches.
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


def batch_of(task: Task, positions: np.ndarray, sources: Sequence[Any]) -> Batch:
    whole = padded(positions, batch_size_of(task))
    stage = task.parts[0].stage
    sources = [*sources, *[sources[-1]] * (len(whole) - len(sources))]
    return Batch(
        row_ids=task.rows[whole],
        keys=[task.keys[position] for position in whole],
        count=len(positions),
        images=sources if stage.source == "images" and stage.decodes else (),
        texts=sources if stage.source == "texts" else (),
    )


def padded(positions: np.ndarray, length: int) -> np.ndarray:
    """The last position repeated up to ``length``."""
    return np.concatenate([positions, np.repeat(positions[-1:], length - len(positions))])


def batch_size_of(task: Task) -> int:
    return task.parts[0].stage.batch_size


def load_row(task: Task, position: int) -> Any:
    """One row's picture or text (None where no stage looks at it), or why there is none: what an input does wrong is
    returned, everything else raises."""
    stage, uri = task.parts[0].stage, task.uris[position]
    if stage.source == "images" and not stage.decodes:
        return None
    try:
        data = uri[len(TEXT_PREFIX) :].encode() if stage.source == "texts" else Path(uri).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return Changed()
    frame = frame_of(task.rows[position].tobytes(), digest_bytes(data))
    if frame is None:
        return Changed()
    if stage.source == "texts":
        return uri[len(TEXT_PREFIX) :]
    try:
        return decode(data, frame=frame)
    except InputFailure as failure:
        return failure


def to_numpy(values: Values, output: TensorOutput) -> np.ndarray:
    """Of numpy or torch values a host array; halved on the device where the codec is fp16 anyway."""
    if isinstance(values, np.ndarray):
        return values
    values = values.detach()
    return (values.half() if output.codec == "fp16" else values.float()).cpu().numpy()


@dataclass(frozen=True)
class UpstreamColumn:
    """One upstream column: its cells, and for each row of the task its place among them (-1 where it was not read)."""

    cells: Values
    slot: np.ndarray = field(repr=False)

    def has_any(self, positions: np.ndarray) -> bool:
        return bool((self.slot[positions] >= 0).any())

    def take(self, positions: np.ndarray) -> Values:
        """The cells of these rows; null or zero for a row whose cells do not need them."""
        slots = self.slot[positions]
        missing = slots < 0
        if isinstance(self.cells, pa.Array):
            return self.cells.take(pa.array(slots, mask=missing))
        values = self.cells[np.maximum(slots, 0)]
        values[missing] = 0
        return values
