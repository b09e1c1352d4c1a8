"""Computed tensors on their way to the host. From a GPU they are copied behind what it computes next."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hoi_distill.stages.stage import ArrowOutput, TensorOutput, Values


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
    values = values.detach()
    values = values.half() if output.codec == "fp16" else values.float()
    if not values.is_cuda:
        return values.numpy(), None
    import torch

    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    stream = _stream(values.device)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host.copy_(values, non_blocking=True)
        copied = stream.record_event()
    values.record_stream(stream)  # its memory goes to no other tensor before the copy is done
    return host.numpy(), copied


@lru_cache(maxsize=8)
def _stream(device: Any) -> Any:
    """The stream of a device on which results are copied."""
    import torch

    return torch.cuda.Stream(device)
