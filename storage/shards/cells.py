"""Arrow columns as numpy values: the cell of a memory-mapped column as what a training loop wants to hold.

Numbers become Python numbers, strings ``str``, a list of numbers a 1-d array, a list of fixed-size lists an ``[n, k]``
array, a fixed-size list an array ``[k]``, a struct a dict, anything else a list. Arrays are read-only views of the
mapped file, which they keep mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa


def dense(array: pa.Array) -> np.ndarray | None:
    """A zero-copy view ``[N, ...]`` of numbers, or of (nested) fixed-size lists of them; None for other types, and
    where a value is null."""
    kind = array.type
    if array.null_count:
        return None
    if pa.types.is_fixed_size_list(kind):
        values = dense(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size))
        return None if values is None else values.reshape(len(array), kind.list_size, *values.shape[1:])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return array.to_numpy(zero_copy_only=True)
    return None


def cells(array: pa.Array) -> Callable[[int], Any]:
    """A function from a position in ``array`` to its value; null is None. Building it once makes each look-up cheap."""
    kind = array.type
    if array.null_count:
        # What lies under a null is undefined, so the values move together (a copy, of a small column) and are counted.
        value, present = cells(array.drop_null()), array.is_valid().to_numpy(zero_copy_only=False)
        packed = np.cumsum(present) - 1
        return lambda i: value(packed[i]) if present[i] else None
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name: cells(child) for i, child in enumerate(array.flatten())}
        return lambda i: {name: value(i) for name, value in fields.items()}
    view = dense(array)
    if view is not None:
        return view.item if view.ndim == 1 else view.__getitem__
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets, values = array.offsets.to_numpy(), dense(array.values)
        if values is not None:
            return lambda i: values[offsets[i] : offsets[i + 1]]
        element = cells(array.values)
        return lambda i: [element(j) for j in range(offsets[i], offsets[i + 1])]
    return lambda i: array[int(i)].as_py()
