"""The Interaction Cognition Network: pairs with their geometry, their appearance and the context of the image.

In the CL-HOI style: the three relations (spatial, visual, context) are the paper's, each removable by its own switch; their
form is ours: UPT's pair geometry and multiplicative fusion (Zhang et al. 2022), RoIAlign of human, object and union, a
decoder that attends to the translator's tokens and to the map inside the union box, a text classifier and an interactiveness
branch (RegFormer).

Shape legend: B images, I instances, P pairs, C channels of the h x w map, S cells, Q context tokens, D width, T text
width, H interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.methods.cl_hoi.config import CognitionConfig
from hoi_distill.stages.student.methods.cl_hoi.translator import Attention, PreNormFeedForward, Translator
from hoi_distill.stages.student.pairs.layers.appearance import (
    RegionPool,
    UnaryEncoder,
    geometry_network,
    spatial_encoding,
)
from hoi_distill.stages.student.pairs.layers.attention import Padding
from hoi_distill.stages.student.pairs.layers.box_encoding import grid_encoding, in_cells
from hoi_distill.stages.student.pairs.layers.text_classifier import TextClassifier
from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.pairs.regions import Regions


class Cognition(NamedTuple):
    """The network's output for P pairs.

    Attributes:
        logits: float ``[P, H]``, z of every class; the caller masks by the pair's object.
        embeddings: float ``[P, T]``, W e, the pairs in the text encoder's space.
        log_r: float ``[P]``, log of the interactiveness r; 0 with that branch off.
        classes: float ``[H, T]`` of length 1, the classifier's rows.
    """

    logits: Tensor
    embeddings: Tensor
    log_r: Tensor
    classes: Tensor


class Spatial(nn.Module):
    """UPT's 36 numbers of a pair's boxes through its network 36-128-256-D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = geometry_network(width)

    @override
    def forward(self, regions: Regions) -> Tensor:
        pairs: Tensor = self.block(spatial_encoding(regions))
        return pairs


class Visual(nn.Module):
    """The appearance of human, object and the box around both, with the classes of both instances: ``[P, D]``."""

    def __init__(self, channels: int, objects: int, config: CognitionConfig) -> None:
        super().__init__()
        self.unary = UnaryEncoder(channels, config.roi_size, config.width, objects)
        self.union = RegionPool(channels, config.roi_size, config.width)
        self.fuse = nn.Sequential(nn.Linear(3 * config.width, config.width), nn.LayerNorm(config.width))

    @override
    def forward(self, maps: Tensor, regions: Regions) -> Tensor:
        human, object_ = regions.pairs.unbind(1)
        instances = self.unary(maps, regions)
        around = box_ops.enclosing(regions.boxes[human], regions.boxes[object_])
        union = self.union(maps, regions.size, regions.pair_image, around, regions.counts.pairs)
        return self.fuse(torch.cat((instances[human], instances[object_], F.relu(union)), 1))


class Layer(nn.Module):
    """Pairs of an image attend to each other, to the context and to the map inside their union box."""

    def __init__(self, config: CognitionConfig, context: int | None) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        self.among = Attention(width, heads, dropout)
        self.read = None if context is None else Attention(width, heads, dropout)
        self.look = Attention(width, heads, dropout) if config.visual else None
        self.feed_forward = PreNormFeedForward(width, config.ffn, dropout)

    @override
    def forward(
        self, pairs: Tensor, context: Tensor | None, cells: Tensor | None, present: Tensor, inside: Tensor
    ) -> Tensor:
        """``pairs``: ``[B, most, D]`` with gaps; ``present``: bool, keys that are pairs; ``inside``: bool ``[B, 1, most, S]``."""
        pairs = self.among(pairs, mask=present)
        if self.read is not None:
            pairs = self.read(pairs, context)
        if self.look is not None:
            pairs = self.look(pairs, cells, inside)
        return self.feed_forward(pairs)


def union_cells(regions: Regions, h: int, w: int) -> Tensor:
    """bool ``[P, h * w]``: the map's cells that a pair's union box touches, at least one."""
    human, object_ = regions.boxes[regions.pairs].unbind(1)
    around = box_ops.enclosing(human, object_)
    x1, y1, x2, y2 = in_cells(around, regions.size[regions.pair_image], (h, w)).unbind(1)

    def touched(low: Tensor, high: Tensor, count: int) -> Tensor:
        first = low.floor().clamp(0, count - 1)
        last = torch.maximum(high.ceil().clamp(max=count), first + 1)
        cell = torch.arange(count, device=low.device)
        return (cell >= first[:, None]) & (cell < last[:, None])

    return (touched(y1, y2, h)[:, :, None] & touched(x1, x2, w)[:, None]).flatten(1)


class CognitionNetwork(nn.Module):
    """See the module's docstring.

    Args:
        channels: C of the maps.
        objects: number of object classes.
        context: D of the translator's tokens; None without it.
        text: float ``[H, T]`` embeddings of the interactions' prompts.
        config: shape and switches.
    """

    def __init__(self, channels: int, objects: int, context: int | None, text: Tensor, config: CognitionConfig) -> None:
        super().__init__()
        width = config.width
        self.map_norm, self.map_dropout = nn.LayerNorm(channels), nn.Dropout2d(config.feature_dropout)
        self.spatial = Spatial(width) if config.spatial else None
        self.visual = Visual(channels, objects, config) if config.visual else None
        self.where = nn.Linear(width, width) if config.spatial else None
        self.what = nn.Linear(width, width) if config.visual else None
        self.fuse = nn.Linear(width, width)
        self.context = None if context is None else nn.Linear(context, width)
        self.cells = nn.Linear(channels, width) if config.visual else None
        self.layers = nn.ModuleList(Layer(config, context) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = TextClassifier(
            width, text - text.mean(0) if config.centred else text,
            train_rows=config.classes == "trained", logit_scale=config.logit_scale, logit_bias=config.logit_bias,
        )  # fmt: skip
        self.interacts = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) if config.interactiveness else None
        )

    @override
    def forward(self, regions: Regions, context: Tensor | None) -> Cognition:
        """``context``: float ``[B, Q, D]`` tokens of the translator."""
        pairs = self.reason(regions, context)
        head, embeddings, classes = self.classifier, self.classifier.project(pairs), self.classifier.classes()
        # scaled before the product, unlike the classifier's own forward: another order moves last bits of trained students
        logits = head.scale.exp() * F.normalize(embeddings, dim=1) @ classes.T + head.bias
        log_r = (
            embeddings.new_zeros(len(embeddings))
            if self.interacts is None
            else F.logsigmoid(self.interacts(pairs)[:, 0])
        )
        return Cognition(logits, embeddings, log_r, classes)

    def reason(self, regions: Regions, context: Tensor | None) -> Tensor:
        """The pairs' embeddings e, float ``[P, D]``."""
        h, w = regions.maps.shape[-2:]
        maps = self.map_dropout(self.map_norm(regions.maps.float().movedim(1, -1)).movedim(-1, 1))
        padding = Padding(regions.pair_image, regions.counts.pairs)
        pairs = padding.pad(self.start(maps, regions))
        cells, inside = None, padding.mask
        if self.cells is not None:
            cells = self.cells(maps.flatten(2).transpose(1, 2))
            cells = cells + grid_encoding(h, w, cells.shape[-1], cells.device)
            rows = union_cells(regions, h, w).to(cells.dtype)
            # gaps attend to everything, as a softmax over nothing is not finite
            touched = padding.pad(rows) > 0
            inside = (touched | ~touched.any(-1, keepdim=True))[:, None]
        tokens = None if self.context is None or context is None else self.context(context)
        for layer in self.layers:
            pairs = layer(pairs, tokens, cells, padding.mask, inside)
        return self.norm(padding.rows(pairs))

    def start(self, maps: Tensor, regions: Regions) -> Tensor:
        """Spatial and visual relations, fused by multiplication: ``[P, D]``. UPT sums sixteen branches, each narrower by as
        much: together one product of this width and one linear layer."""
        parts = []
        if self.spatial is not None and self.where is not None:
            parts.append(self.where(self.spatial(regions)))
        if self.visual is not None and self.what is not None:
            parts.append(self.what(self.visual(maps, regions)))
        return self.fuse(F.relu(parts[0] * parts[1] if len(parts) > 1 else parts[0]))


@dataclass(frozen=True)
class ClHoiShape:
    """What the tensors depend on beside vocabulary and configuration; written into a checkpoint's ``config.json``.

    Attributes:
        channels: C of the maps.
        text_width: T of the classes' embeddings.
        context_width: width of the texts that the translator learns.
    """

    channels: int
    text_width: int
    context_width: int


class ClHoi(nn.Module):
    """Translator and network as one student. A frozen translator drops nothing out and gets no gradient."""

    def __init__(self, translator: Translator | None, network: CognitionNetwork, frozen: bool) -> None:
        super().__init__()
        self.translator, self.network, self.frozen = translator, network, frozen
        if translator is not None and frozen:
            translator.requires_grad_(requires_grad=False)

    @override
    def train(self, mode: bool = True) -> ClHoi:
        super().train(mode)
        if self.translator is not None and self.frozen:
            self.translator.eval()
        return self

    @override
    def forward(self, regions: Regions) -> Cognition:
        result: Cognition = self.network(regions, None if self.translator is None else self.translator(regions.maps))
        return result


class Scorer(nn.Module):
    """A student's answer as the logit of ``sigmoid(z) * r ** gamma``, float ``[P, H]``."""

    def __init__(self, model: ClHoi, gamma: float) -> None:
        super().__init__()
        self.model, self.gamma = model, gamma

    @override
    def forward(self, regions: Regions) -> Tensor:
        answer = self.model(regions)
        return final_logit(answer.logits, (self.gamma * answer.log_r).exp().clamp(min=1e-12)[:, None])
