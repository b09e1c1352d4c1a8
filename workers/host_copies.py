"""Computed tensors on their way to the host. From a GPU they are copied behind what it computes next."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hoi_distill.stages.stage import ArrowOutput, TensorOutput, Values

_CACHE_LINE = 64  # bytes


def to_numpy(values: Values, output: TensorOutput) -> np.ndarray:
    """Values as an array on the host. Torch values become float16 on the device where the codec is fp16, else float32."""
    array, copied = begin_copy(values, output)
    if copied is not None:
        copied.synchronize()
    return np.asarray(array)


def begin_copy(values: Values, output: ArrowOutput | TensorOutput) -> tuple[Values, Any]:
    """Begin what :func:`to_numpy` does.

    Returns:
        The array, and the CUDA event after which it is filled: None where it is filled already. What is on the host already
        (Arrow, numpy) stays as it is.
    """
    if isinstance(output, ArrowOutput) or isinstance(values, np.ndarray):
        return values, None
    import torch

    values = values.detach()
    dtype = torch.float16 if output.codec == "fp16" else torch.float32
    if not values.is_cuda:
        return _converted(values, dtype).numpy(), None
    values = values.to(dtype)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    stream = _stream(values.device)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host.copy_(values, non_blocking=True)
        copied = stream.record_event()
    values.record_stream(stream)  # its memory goes to no other tensor before the copy is done
    return host.numpy(), copied


def _converted(values: Any, dtype: Any) -> Any:
    """A tensor of the host in another dtype. Maps ``[B, D, h, w]`` whose channels lie innermost, as a tower's tokens do, get
    a cache line of space between tokens: whoever lays out a channel after the other reads each token's line D times, and the
    lines of tokens that lie a power of two apart drive each other out of the processor's caches."""
    import torch

    if values.dim() < 3 or values.stride(1) != 1 or values.stride(-1) == 1:
        return values.to(dtype)
    tokens = values.movedim(1, -1)
    width = tokens.shape[-1]
    spaced = torch.empty((*tokens.shape[:-1], width + _CACHE_LINE // dtype.itemsize), dtype=dtype)[..., :width]
    return spaced.copy_(tokens).movedim(-1, 1)


@lru_cache(maxsize=8)
def _stream(device: Any) -> Any:
    """The stream of a device on which results are copied."""
    import torch

    return torch.cuda.Stream(device)
