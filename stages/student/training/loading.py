"""The batches of a training, read ahead while the network works."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

_AHEAD = 2
_END = object()


def batches_ahead(batches: Dataset[Any], steps: range, *, workers: int, pin: bool) -> Iterator[Any]:
    """The batches of some steps, in order. A thread reads the next two while one is used.

    Args:
        batches: the batches by step.
        steps: the steps.
        workers: processes that load batches for the thread. 0: it loads them itself.
        pin: whether tensors lie in pinned memory, from which a GPU copies at full speed.

    Raises:
        Exception: what a batch raises, when it is its turn.
    """
    loaded = iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers))

    def load() -> Any:
        batch = next(loaded, _END)
        return pinned(batch) if pin else batch

    # As many threads as the caller computes with: a batch may hold what a network says.
    reader = ThreadPoolExecutor(1, "batches", torch.set_num_threads, (torch.get_num_threads(),))
    begun: deque[Future[Any]] = deque(reader.submit(load) for _ in range(_AHEAD))
    try:
        while (batch := begun.popleft().result()) is not _END:
            begun.append(reader.submit(load))
            yield batch
    finally:
        reader.shutdown(cancel_futures=True)


def pinned(value: Any) -> Any:
    """A copy of a batch whose tensors lie in pinned memory: those in dataclasses, dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: pinned(getattr(value, field.name)) for field in fields(value) if field.init}
        )
    if isinstance(value, dict):
        return {key: pinned(each) for key, each in value.items()}
    if isinstance(value, tuple):
        held = [pinned(each) for each in value]
        return type(value)(*held) if hasattr(value, "_fields") else tuple(held)
    return [pinned(each) for each in value] if isinstance(value, list) else value
