"""Values reach the host in the form that their codec wants."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from hoi_distill.stages.stage import ArrowOutput, TensorOutput
from hoi_distill.workers.host_copies import begin_copy, to_numpy


@pytest.mark.parametrize(("codec", "dtype"), [("fp16", np.float16), ("bf16", np.float32), ("int8", np.float32)])
def test_tensors_of_any_float_become_what_the_codec_takes(codec, dtype):
    tokens = torch.linspace(-3, 3, 2 * 5 * 4).reshape(2, 5, 4).bfloat16()
    maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    array = to_numpy(maps, TensorOutput((4, 2, 2), codec))
    assert array.dtype == dtype
    assert np.array_equal(array, maps.float().numpy().astype(dtype))


@pytest.mark.parametrize(("codec", "space"), [("fp16", 32), ("int8", 16)])
def test_tokens_of_a_map_lie_a_cache_line_further_apart_than_a_power_of_two(codec, space):
    array = to_numpy(torch.ones(2, 4, 1024).transpose(1, 2).unflatten(2, (2, 2)), TensorOutput((1024, 2, 2), codec))
    assert array.strides[-1] == (1024 + space) * array.itemsize


def test_what_is_on_the_host_is_there_at_once():
    array, arrow = np.ones((2, 3)), pa.array([1, 2])
    assert begin_copy(array, TensorOutput((3,)))[0] is array
    assert begin_copy(arrow, ArrowOutput(pa.int64()))[0] is arrow
    assert begin_copy(torch.ones(2, 3), TensorOutput((3,)))[1] is None
