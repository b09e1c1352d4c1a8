"""Pair queries, and the decoder that links them with the VLM's map (LINK, "VLM linking decoder").

Shape legend: B images, I instances and P pairs of all of them, S cells of the map, C its channels, D width of unary queries
and latent map, E width of pair queries, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig
from hoi_distill.stages.student.pairs.layers.appearance import spatial_encoding
from hoi_distill.stages.student.pairs.layers.attention import FeedForward, Padding, SelfAttention, concat_heads
from hoi_distill.stages.student.pairs.layers.box_encoding import box_encoding, grid_encoding, grid_size
from hoi_distill.stages.student.pairs.regions import Regions

BRANCHES = ("spatial", "semantic")
"""Of the linking attention, in the order in which they are concatenated."""


class DecoderContext(NamedTuple):
    """What the decoder's layers attend to.

    Attributes:
        latent: float ``[B, S, D]``, cells of the latent map.
        native: float ``[B, S, C]``, cells of the feature map.
        grid: float ``[S, D]``, encodings of the cells' positions.
        boxes: float ``[I, 2 * D]``, encodings of the instances' boxes.
        centres: float ``[I, D]``, encodings of their centres, modulated.
        pairs: int64 ``[P, 2]`` (human, object) positions among the instances.
        padding: the layout of the pairs.
    """

    latent: Tensor
    native: Tensor
    grid: Tensor
    boxes: Tensor
    centres: Tensor
    pairs: Tensor
    padding: Padding


class Look(NamedTuple):
    """One attention of the pairs to the cells of their image's map.

    Attributes:
        branch: one of :data:`BRANCHES`; "" where there are none.
        query: float ``[P, K]``, of each pair.
        key: float ``[B, S, K]``, of each cell.
        value: float ``[B, S, V]``, of each cell.
    """

    branch: str
    query: Tensor
    key: Tensor
    value: Tensor


class PairLinear(nn.Module):
    """A linear layer on (human; object) concatenated, computed on instances, of which there are fewer than pairs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.human, self.object = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    @override
    def forward(self, instances: Tensor, pairs: Tensor) -> Tensor:
        """``[I, inputs]`` to ``[P, outputs]``."""
        human, object_ = pairs.unbind(1)
        return self.human(instances).index_select(0, human) + self.object(instances).index_select(0, object_)


class PairQuery(nn.Module):
    """Both instances and their pairwise geometry, fused: ``[P, E]`` (PViC's multi-modal fusion, UPT's geometry).

    With ``pair_geometry`` off the fusing layers see the instances alone.
    """

    def __init__(self, config: LinkNetworkConfig) -> None:
        super().__init__()
        width, pair_width = config.width, config.pair_width
        self.look, self.look_norm = PairLinear(width, pair_width), nn.LayerNorm(pair_width)
        self.geometry = None
        if config.pair_geometry:
            self.geometry = nn.Sequential(
                nn.Linear(36, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, pair_width), nn.ReLU(),
                nn.Linear(pair_width, pair_width), nn.LayerNorm(pair_width),
            )  # fmt: skip
        inputs, hidden = pair_width * (2 if config.pair_geometry else 1), 3 * pair_width // 2
        self.fuse = nn.Sequential(nn.ReLU(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, pair_width))

    @override
    def forward(self, unary_ID: Tensor, regions: Regions) -> Tensor:
        query = self.look_norm(self.look(unary_ID, regions.pairs))
        if self.geometry is not None:
            query = torch.cat((query, self.geometry(spatial_encoding(regions))), 1)
        return self.fuse(query)


class CrossAttention(nn.Module):
    """Cross-attention to the latent map, and no more: ``[P, E]`` to ``[P, E]``."""

    def __init__(self, config: LinkNetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.pair_width, config.pair_width)
        self.key_value = nn.Linear(config.width, 2 * config.pair_width)
        self.mix = nn.Linear(config.pair_width, config.pair_width)

    @override
    def forward(self, pairs_PE: Tensor, context: DecoderContext) -> Tensor:
        (look,) = self.looks(pairs_PE, context)
        return self.mix(context.padding.attend(look.query, look.key, look.value, self.heads))

    def looks(self, pairs_PE: Tensor, context: DecoderContext) -> Iterator[Look]:
        """The one attention of this layer."""
        key, value = self.key_value(context.latent).chunk(2, -1)
        yield Look("", self.query(pairs_PE), key, value)


class LinkingAttention(nn.Module):
    """``MLP(concat(spatial, semantic))``: ``[P, E]`` to ``[P, E]``.

    The spatial branch attends to the latent map, guided by the boxes of human and object (PViC's box-guided attention).
    Content and position are concatenated within each head. The semantic branch attends to the map in its native channels,
    by content alone. ``linking_branches`` leaves one of them out.
    """

    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        width, pair_width = config.width, config.pair_width
        self.heads, self.starts_spatial = config.heads, config.semantic_start == "zero"
        self.has_spatial, self.has_semantic = (config.linking_branches in ("both", name) for name in BRANCHES)
        inputs = 0
        if self.has_spatial:
            self.query, self.key_value = nn.Linear(pair_width, pair_width), nn.Linear(width, 2 * pair_width)
            self.query_position, self.key_position = PairLinear(width, pair_width), nn.Linear(width, pair_width)
            inputs += pair_width
        if self.has_semantic:
            self.native_query = nn.Linear(pair_width, channels)
            self.native_key_value = nn.Linear(channels, 2 * channels)
            inputs += channels
        self.mix = nn.Sequential(nn.Linear(inputs, pair_width), nn.ReLU(), nn.Linear(pair_width, pair_width))

    def start(self) -> None:
        """Set the weights that do not start at random."""
        joint = self.mix[0]
        assert isinstance(joint, nn.Linear)
        if self.starts_spatial:  # the spatial branch is as wide as the answer, and comes first
            nn.init.zeros_(joint.weight[:, joint.out_features :])

    @override
    def forward(self, pairs_PE: Tensor, context: DecoderContext) -> Tensor:
        return self.mix(torch.cat(self.branches(pairs_PE, context), 1))

    def branches(self, pairs_PE: Tensor, context: DecoderContext) -> list[Tensor]:
        """What each branch has seen: ``[P, E]`` of the spatial one, ``[P, C]`` of the semantic one."""
        attend = context.padding.attend
        return [attend(look.query, look.key, look.value, self.heads) for look in self.looks(pairs_PE, context)]

    def looks(self, pairs_PE: Tensor, context: DecoderContext) -> Iterator[Look]:
        """The attention of each branch that there is."""
        if self.has_spatial:
            key, value = self.key_value(context.latent).chunk(2, -1)
            query = concat_heads(self.query(pairs_PE), self.query_position(context.centres, context.pairs), self.heads)
            yield Look("spatial", query, concat_heads(key, self.key_position(context.grid), self.heads), value)
        if self.has_semantic:
            key, value = self.native_key_value(context.native).chunk(2, -1)
            yield Look("semantic", self.native_query(pairs_PE), key, value)


class DecoderLayer(nn.Module):
    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        width = config.pair_width
        guided = config.pair_self_attention and config.linking_decoder
        self.position = PairLinear(2 * config.width, 2 * width) if guided else None
        self.attention = SelfAttention(width, config.heads, config.dropout) if config.pair_self_attention else None
        self.look = LinkingAttention(config, channels) if config.linking_decoder else CrossAttention(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, config.pair_ffn, config.dropout)

    @override
    def forward(self, pairs_PE: Tensor, context: DecoderContext) -> Tensor:
        if self.attention is not None:
            position = None if self.position is None else self.position(context.boxes, context.pairs)
            pairs_PE = self.attention(pairs_PE, context.padding, position)
        return self.feed_forward(self.norm(pairs_PE + self.dropout(self.look(pairs_PE, context))))


class LinkingDecoder(nn.Module):
    """Pairs attend to each other and to the map, layer by layer. All layers share one output norm.

    With ``linking_decoder`` off no box guides the attention, which is to the latent map alone.
    """

    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config, channels) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.pair_width)
        self.extent = (
            nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 2))
            if config.linking_decoder and config.linking_branches != "semantic"
            else None
        )

    def start(self) -> None:
        """Set the weights that do not start at random."""
        for layer in self.layers:
            if isinstance(layer.look, LinkingAttention):
                layer.look.start()

    @override
    def forward(
        self, pairs_PE: Tensor, appearance_ID: Tensor, unit_I4: Tensor, latent: Tensor, native: Tensor, regions: Regions
    ) -> Tensor:
        """After each layer, ``[L, P, E]``.

        Args:
            pairs_PE: float, queries of the pairs.
            appearance_ID: float, unary queries as they came from the map.
            unit_I4: float, see :func:`~.box_encoding.unit_boxes`.
            latent: float ``[B, D, h, w]`` latent maps.
            native: float ``[B, C, h, w]`` feature maps.
            regions: the batch.
        """
        h, w = native.shape[-2:]
        boxes = box_encoding(unit_I4, appearance_ID.shape[1])
        context = DecoderContext(
            latent.flatten(2).transpose(1, 2),
            native.flatten(2).transpose(1, 2),
            grid_encoding(h, w, appearance_ID.shape[1], native.device),
            boxes,
            self._modulated(boxes, appearance_ID, unit_I4, (h, w)),
            regions.pairs,
            Padding(regions.pair_image, regions.counts.pairs),
        )
        after = []
        for layer in self.layers:
            pairs_PE = layer(pairs_PE, context)
            after.append(self.norm(pairs_PE))
        return torch.stack(after)

    def _modulated(self, boxes: Tensor, appearance_ID: Tensor, unit_I4: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encodings of centres ``[I, D]``. Each axis is scaled by the extent that the appearance predicts, over the box's own
        (DAB-DETR, Liu et al. 2022): attention to a narrow box is narrow, yet no narrower than a cell."""
        centre = boxes[:, : appearance_ID.shape[1]]
        if self.extent is None:
            return centre
        extent = torch.maximum(unit_I4[:, 2:], 1 / grid_size(grid, unit_I4).flip(0))
        share = self.extent(appearance_ID).sigmoid() / extent
        return (centre.unflatten(1, (2, -1)) * share[..., None]).flatten(1)
