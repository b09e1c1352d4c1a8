"""Regions of a map as vectors."""

from __future__ import annotations

import torch

from hoi_distill.stages.ops.roi_align import roi_align
from hoi_distill.stages.student.pairs.layers.appearance import RegionPool


def test_a_region_is_the_linear_layer_of_its_channels_and_bins():
    pool = RegionPool(channels=6, roi_size=3, width=5)
    maps, size = torch.randn(2, 6, 8, 10), torch.tensor([[100.0, 80.0], [50.0, 80.0]])
    image, boxes = torch.tensor([0, 0, 1]), torch.tensor([[5.0, 5, 60, 70], [0, 0, 100, 80], [10, 20, 45, 60]])
    cells = boxes / size[image].repeat(1, 2) * torch.tensor([10.0, 8, 10, 8])
    pooled = roi_align(maps, torch.cat((image[:, None], cells), 1), 3, sampling_ratio=2)
    torch.testing.assert_close(pool(maps, size, image, boxes, (2, 1)), pool.project(pooled.flatten(1)))
