"""The batches of a training, read ahead while the network works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hoi_distill.storage.files.stores import loaders_start

T = TypeVar("T")
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
    start = loaders_start(workers)
    loaded = iter(
        DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, multiprocessing_context=start)
    )

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


def pinned(batch: T) -> T:
    """A copy of a batch whose tensors lie in pinned memory."""
    return with_tensors(batch, Tensor.pin_memory)


def moved(batch: T, device: torch.device | str) -> T:
    """A batch on a device. The host does not wait for the copies: they come before whatever is computed there next."""
    return with_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with other tensors: of those in dataclasses, dicts, lists and tuples what ``change`` makes of them."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: with_tensors(getattr(value, field.name), change) for field in fields(value) if field.init}
        return replace(value, **held)
    if isinstance(value, dict):
        return {key: with_tensors(each, change) for key, each in value.items()}
    if isinstance(value, tuple):
        parts = [with_tensors(each, change) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [with_tensors(each, change) for each in value] if isinstance(value, list) else value
