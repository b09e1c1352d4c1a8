"""Appearance and geometry of instances and pairs: regions of a feature map and boxes, as vectors.

Shape suffixes: I instances and P pairs of all images together, C channels of the map, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.ops.roi_align import roi_align
from hoi_distill.stages.student.pairs.candidates import pair_geometry
from hoi_distill.stages.student.pairs.layers.box_encoding import in_cells
from hoi_distill.stages.student.pairs.regions import Regions


class RegionPool(nn.Module):
    """RoIAlign of boxes on a map, then a linear layer over the grid: ``[N, 4]`` pixels to ``[N, D]``."""

    def __init__(self, channels: int, roi_size: int, width: int) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.project = nn.Linear(channels * roi_size**2, width)

    @override
    def forward(self, maps: Tensor, size: Tensor, image: Tensor, boxes: Tensor, counts: Sequence[int]) -> Tensor:
        """The regions of N boxes.

        Args:
            maps: float ``[B, C, h, w]``.
            size: float ``[B, 2]`` (width, height) of the images in pixels.
            image: int64 ``[N]``, rising, the image of each box.
            boxes: float ``[N, 4]`` xyxy pixels.
            counts: how many boxes each image has.
        """
        cells = in_cells(boxes, size[image], (maps.shape[-2], maps.shape[-1]))
        regions = torch.cat((image[:, None].to(cells.dtype), cells), 1)
        return self.projected(roi_align(maps, regions, self.roi_size, sampling_ratio=2, counts=counts))

    def projected(self, pooled_NCpq: Tensor) -> Tensor:
        """The linear layer over channels and bins. Weights are turned to the order that the bins lie in memory: there are
        fewer of them."""
        bins_first = self.project.weight.unflatten(1, (-1, self.roi_size**2)).mT.flatten(1)
        return F.linear(pooled_NCpq.permute(0, 2, 3, 1).flatten(1), bins_first, self.project.bias)


class UnaryEncoder(nn.Module):
    """Each instance by itself, from its region and its class: ``[I, D]``."""

    def __init__(self, channels: int, roi_size: int, width: int, objects: int) -> None:
        super().__init__()
        self.pool = RegionPool(channels, roi_size, width)
        self.label = nn.Embedding(objects, width)
        self.norm = nn.LayerNorm(width)

    @override
    def forward(self, maps: Tensor, regions: Regions) -> Tensor:
        appearance = self.pool(maps, regions.size, regions.image, regions.boxes, regions.counts.instances)
        return F.relu(self.norm(appearance + self.label(regions.labels)))


def spatial_encoding(regions: Regions) -> Tensor:
    """UPT's spatial encoding of each pair's boxes, float ``[P, 36]``, clamped to [-6, 6]: log(0 + 1e-10) is -23 and thin
    boxes give ratios in the hundreds, which destabilises training."""
    human, object_ = regions.boxes[regions.pairs].unbind(1)
    return pair_geometry(human, object_, regions.size[regions.pair_image]).clamp(-6, 6)


def geometry_network(width: int) -> nn.Sequential:
    """UPT's network of the spatial encoding, 36-128-256-D, and a norm."""
    return nn.Sequential(
        nn.Linear(36, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, width), nn.LayerNorm(width)
    )
