"""Unary queries: the appearance of each instance, and where the instances of an image lie to each other.

Shape legend: B images, I instances of all of them, C channels of the h x w map, D width, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.ops.roi_align import roi_align
from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig
from hoi_distill.stages.student.pairs.layers.attention import FeedForward, Padding, SelfAttention
from hoi_distill.stages.student.pairs.layers.box_encoding import in_cells
from hoi_distill.stages.student.pairs.regions import Regions


class UnaryQuery(nn.Module):
    """The mean of the map inside each box (RoIAlign), projected: ``[I, D]``. Nothing comes from a detector's queries."""

    def __init__(self, channels: int, width: int, roi_size: int) -> None:
        super().__init__()
        # the mean over the bins of a grid with 2 x 2 samples in each is one bin with all of the samples
        self.samples = 2 * roi_size
        self.project = nn.Linear(channels, width)

    @override
    def forward(self, maps_BChw: Tensor, regions: Regions) -> Tensor:
        grid = maps_BChw.shape[-2], maps_BChw.shape[-1]
        cells = in_cells(regions.boxes, regions.size[regions.image], grid)
        rois = torch.cat((regions.image[:, None].to(cells.dtype), cells), 1)
        pooled = roi_align(maps_BChw, rois, 1, sampling_ratio=self.samples, counts=regions.counts.instances)
        return self.project(pooled.flatten(1))


class EncoderLayer(nn.Module):
    def __init__(self, config: LinkNetworkConfig) -> None:
        super().__init__()
        guided = config.geometric_encoder and config.box_encoding == "keys"
        self.position = nn.Linear(2 * config.width, 2 * config.width) if guided else None
        self.attention = SelfAttention(config.width, config.heads, config.dropout)
        self.feed_forward = FeedForward(config.width, config.ffn, config.dropout)

    @override
    def forward(self, unary_ID: Tensor, boxes: Tensor, padding: Padding) -> Tensor:
        position = None if self.position is None else self.position(boxes)
        return self.feed_forward(self.attention(unary_ID, padding, position))


class GeometricEncoder(nn.Module):
    """Self-attention over an image's instances, which knows their boxes.

    With ``box_encoding: keys`` the queries and keys of every layer contain the projected encoding of each box (PViC's
    encoder). With ``sum`` the layers get ``Q + PE(centre) + PE(size)`` (LINK as it is written). With ``geometric_encoder``
    off no box enters.
    """

    def __init__(self, config: LinkNetworkConfig) -> None:
        super().__init__()
        self.summed = config.geometric_encoder and config.box_encoding == "sum"
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    @override
    def forward(self, unary_ID: Tensor, boxes: Tensor, padding: Padding) -> Tensor:
        """After each layer, ``[L, I, D]``; ``boxes``: float ``[I, 2 * D]`` encodings."""
        if self.summed:
            unary_ID = unary_ID + boxes.unflatten(1, (2, -1)).sum(1)
        after = []
        for layer in self.layers:
            unary_ID = layer(unary_ID, boxes, padding)
            after.append(unary_ID)
        return torch.stack(after)
