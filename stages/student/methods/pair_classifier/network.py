"""The pair classifier: regions of a cached feature map and pair geometry in, one logit per pair and interaction out.

Four modules in a row, each replaceable by itself: :class:`~hoi_distill.stages.student.pairs.layers.appearance.UnaryEncoder` (the
appearance of each instance), :class:`PairEncoder` (appearance and geometry of each pair), :class:`PairDecoder` (refines the
pairs) and :class:`TextHead` (the interactions).

Shape suffixes: B images, I instances and P pairs of all images together, C channels of the map, D width,
H interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.pairs.layers.appearance import (
    RegionPool,
    UnaryEncoder,
    geometry_network,
    spatial_encoding,
)
from hoi_distill.stages.student.pairs.regions import Regions


class PairEncoder(nn.Module):
    """Each pair: both instances, the region around them and their geometry. ``[P, D]``.

    The geometry network is UPT's (36-128-256-D); the fusion, norms before a ReLU and an MLP, is PViC's.
    """

    def __init__(self, channels: int, roi_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.union = RegionPool(channels, roi_size, width)
        self.look = nn.Sequential(nn.Linear(3 * width, width), nn.LayerNorm(width))
        self.geometry = geometry_network(width)
        self.fuse = nn.Sequential(
            nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    @override
    def forward(self, maps: Tensor, regions: Regions, unary_ID: Tensor) -> Tensor:
        human, object_ = regions.pairs.unbind(1)
        boxes_h, boxes_o, image = regions.boxes[human], regions.boxes[object_], regions.pair_image
        union = self.union(maps, regions.size, image, box_ops.enclosing(boxes_h, boxes_o), regions.counts.pairs)
        appearance = self.look(torch.cat((unary_ID[human], unary_ID[object_], F.relu(union)), 1))
        return self.fuse(torch.cat((appearance, self.geometry(spatial_encoding(regions))), 1))


class PairDecoder(nn.Module):
    """Refines the pairs, ``[P, D]`` to ``[P, D]``: here a residual feed-forward block, blind to the map."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )

    @override
    def forward(self, pairs_PD: Tensor, maps: Tensor, regions: Regions) -> Tensor:
        return pairs_PD + self.block(pairs_PD)


class TextHead(nn.Module):
    """A cosine classifier with one row per interaction: ``[P, D]`` to logits ``[P, H]``.

    Each row is the sum of an interaction's own vector and its verb's, so that a rare interaction learns from the verb's
    other objects. With text embeddings the rows start from them, less their mean, which all prompts share.
    """

    def __init__(self, width: int, verb: Tensor, text: Tensor | None, logit_scale: float) -> None:
        super().__init__()
        verbs = int(verb.max()) + 1
        if text is None:
            own, shared = 0.1 * torch.randn(len(verb), width), torch.randn(verbs, width)
        else:
            own = F.normalize(text - text.mean(0), dim=1)
            count = torch.bincount(verb, minlength=verbs).clamp(min=1)
            shared = torch.zeros(verbs, text.shape[1]).index_add(0, verb, own) / count[:, None]
        self.project = nn.Linear(width, own.shape[1])
        self.own, self.shared = nn.Parameter(own), nn.Parameter(shared)
        self.scale = nn.Parameter(torch.tensor(float(logit_scale)).log())
        self.bias = nn.Parameter(torch.full((len(verb),), -2.0))
        self.register_buffer("verb", verb)
        self.verb: Tensor

    @override
    def forward(self, pairs_PD: Tensor) -> Tensor:
        rows = F.normalize(self.own + self.shared[self.verb], dim=1)
        return self.scale.exp() * F.normalize(self.project(pairs_PD), dim=1) @ rows.T + self.bias


@dataclass(frozen=True)
class Shape:
    """What the network's tensors depend on beside its vocabulary; written into a checkpoint's ``config.json``."""

    channels: int
    objects: int
    text_width: int | None
    roi_size: int
    width: int
    dropout: float
    feature_dropout: float
    logit_scale: float


class PairClassifier(nn.Module):
    """See the module's docstring.

    Args:
        verb: int64 ``[H]``, the verb of each interaction.
        text: float ``[H, T]`` text embeddings of the interactions' prompts, or None for random rows; when a checkpoint
            is to be loaded over it, only the width matters.
    """

    def __init__(self, shape: Shape, verb: Tensor, text: Tensor | None = None) -> None:
        super().__init__()
        if text is None and shape.text_width is not None:
            text = torch.zeros(len(verb), shape.text_width)
        self.shape = shape
        self.map_norm = nn.LayerNorm(shape.channels)
        self.map_dropout = nn.Dropout2d(shape.feature_dropout)
        self.unary_encoder = UnaryEncoder(shape.channels, shape.roi_size, shape.width, shape.objects)
        self.pair_encoder = PairEncoder(shape.channels, shape.roi_size, shape.width, shape.dropout)
        self.decoder = PairDecoder(shape.width, shape.dropout)
        self.head = TextHead(shape.width, verb, text, shape.logit_scale)

    @override
    def forward(self, regions: Regions) -> Tensor:
        """Interaction logits O, float ``[P, H]``, of every pair for every class; the caller masks by the prior."""
        maps = self.map_norm(regions.maps.float().movedim(1, -1)).movedim(-1, 1)
        maps = self.map_dropout(maps)
        unary_ID = self.unary_encoder(maps, regions)
        pairs_PD = self.pair_encoder(maps, regions, unary_ID)
        return self.head(self.decoder(pairs_PD, maps, regions))
