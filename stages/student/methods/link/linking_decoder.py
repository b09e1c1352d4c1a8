"""Pair queries, and the decoder that links them with the VLM's map (LINK, "VLM linking decoder").

Shape legend: B pictures, I instances and P pairs of all of them, S cells of the map, C its channels, D width of unary queries
and latent map, E width of pair queries, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig
from hoi_distill.stages.student.pairs.layers.attention import FeedForward, Padding, SelfAttention, attend, beside
from hoi_distill.stages.student.pairs.layers.box_encoding import box_encoding, grid_encoding
from hoi_distill.stages.student.pairs.layers.looks import pair_numbers
from hoi_distill.stages.student.pairs.regions import Regions


class Sight(NamedTuple):
    """What the pairs of a batch look at and are told.

    Attributes:
        latent: ``[B, S, D]``, native: ``[B, S, C]`` the map; grid: ``[S, D]`` encodings of its cells.
        boxes: ``[I, 2 * D]`` encodings of the instances' boxes; centres: ``[I, D]`` those of their centres, modulated.
        pairs: int64 ``[P, 2]``; padding: where pairs lie.
    """

    latent: Tensor
    native: Tensor
    grid: Tensor
    boxes: Tensor
    centres: Tensor
    pairs: Tensor
    padding: Padding


class PairLinear(nn.Module):
    """A linear layer on (human; object) side by side, computed on instances, of which there are fewer than pairs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.human, self.object = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

    @override
    def forward(self, instances: Tensor, pairs: Tensor) -> Tensor:
        """``[I, inputs]`` to ``[P, outputs]``."""
        human, object_ = pairs.unbind(1)
        return self.human(instances).index_select(0, human) + self.object(instances).index_select(0, object_)


class PairQuery(nn.Module):
    """Both instances and their pairwise geometry, fused: ``[P, E]`` (PViC's multi-modal fusion, UPT's geometry)."""

    def __init__(self, width: int, pair_width: int) -> None:
        super().__init__()
        self.look, self.look_norm = PairLinear(width, pair_width), nn.LayerNorm(pair_width)
        self.geometry = nn.Sequential(
            nn.Linear(36, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, pair_width), nn.ReLU(),
            nn.Linear(pair_width, pair_width), nn.LayerNorm(pair_width),
        )  # fmt: skip
        hidden = 3 * pair_width // 2
        self.fuse = nn.Sequential(
            nn.ReLU(), nn.Linear(2 * pair_width, hidden), nn.ReLU(), nn.Linear(hidden, pair_width)
        )

    @override
    def forward(self, unary_ID: Tensor, regions: Regions) -> Tensor:
        look = self.look_norm(self.look(unary_ID, regions.pairs))
        return self.fuse(torch.cat((look, self.geometry(pair_numbers(regions))), 1))


class PlainLook(nn.Module):
    """Cross-attention to the latent map, and no more: ``[P, E]`` to ``[P, E]``."""

    def __init__(self, config: LinkNetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.pair_width, config.pair_width)
        self.key_value = nn.Linear(config.width, 2 * config.pair_width)
        self.mix = nn.Linear(config.pair_width, config.pair_width)

    @override
    def forward(self, pairs_PE: Tensor, sight: Sight) -> Tensor:
        key, value = self.key_value(sight.latent).chunk(2, -1)
        seen = attend(sight.padding.pad(self.query(pairs_PE)), key, value, self.heads)
        return self.mix(sight.padding.rows(seen))


class LinkingLook(nn.Module):
    """``MLP(spatial beside semantic)``: ``[P, E]`` to ``[P, E]``.

    The spatial branch looks at the latent map where the boxes of human and object say (PViC's box-guided attention);
    per head, content and position lie side by side. The semantic branch looks at the map in its native channels, by
    content alone.
    """

    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        width, pair_width = config.width, config.pair_width
        self.heads = config.heads
        self.query, self.key_value = nn.Linear(pair_width, pair_width), nn.Linear(width, 2 * pair_width)
        self.query_position, self.key_position = PairLinear(width, pair_width), nn.Linear(width, pair_width)
        self.native_query, self.native_key_value = nn.Linear(pair_width, channels), nn.Linear(channels, 2 * channels)
        self.mix = nn.Sequential(
            nn.Linear(pair_width + channels, pair_width), nn.ReLU(), nn.Linear(pair_width, pair_width)
        )

    @override
    def forward(self, pairs_PE: Tensor, sight: Sight) -> Tensor:
        pad, heads = sight.padding.pad, self.heads
        key, value = self.key_value(sight.latent).chunk(2, -1)
        query = beside(self.query(pairs_PE), self.query_position(sight.centres, sight.pairs), heads)
        spatial = attend(pad(query), beside(key, self.key_position(sight.grid), heads), value, heads)
        key, value = self.native_key_value(sight.native).chunk(2, -1)
        native = attend(pad(self.native_query(pairs_PE)), key, value, heads)
        return self.mix(sight.padding.rows(torch.cat((spatial, native), -1)))


class DecoderLayer(nn.Module):
    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        width = config.pair_width
        guided = config.pair_self_attention and config.linking_decoder
        self.position = PairLinear(2 * config.width, 2 * width) if guided else None
        self.attention = SelfAttention(width, config.heads, config.dropout) if config.pair_self_attention else None
        self.look = LinkingLook(config, channels) if config.linking_decoder else PlainLook(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, config.pair_ffn, config.dropout)

    @override
    def forward(self, pairs_PE: Tensor, sight: Sight) -> Tensor:
        if self.attention is not None:
            position = None if self.position is None else self.position(sight.boxes, sight.pairs)
            pairs_PE = self.attention(pairs_PE, sight.padding, position)
        return self.feed_forward(self.norm(pairs_PE + self.dropout(self.look(pairs_PE, sight))))


class LinkingDecoder(nn.Module):
    """Pairs look at each other and at the map, layer by layer; one norm for what comes out of all layers.

    With ``linking_decoder`` off boxes guide nothing here, and the latent map is all there is to see.
    """

    def __init__(self, config: LinkNetworkConfig, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config, channels) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.pair_width)
        self.extent = (
            nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 2))
            if config.linking_decoder
            else None
        )

    @override
    def forward(
        self, pairs_PE: Tensor, look_ID: Tensor, unit_I4: Tensor, latent: Tensor, native: Tensor, regions: Regions
    ) -> Tensor:
        """After each layer, ``[L, P, E]``.

        Args:
            pairs_PE: float, queries of the pairs.
            look_ID: float, unary queries as they came from the map.
            unit_I4: float, see :func:`~.box_encoding.unit_boxes`.
            latent: float ``[B, D, h, w]`` latent maps.
            native: float ``[B, C, h, w]`` feature maps.
            regions: the batch.
        """
        h, w = native.shape[-2:]
        boxes = box_encoding(unit_I4, look_ID.shape[1])
        sight = Sight(
            latent.flatten(2).transpose(1, 2),
            native.flatten(2).transpose(1, 2),
            grid_encoding(h, w, look_ID.shape[1], native.device),
            boxes,
            self._modulated(boxes, look_ID, unit_I4, (h, w)),
            regions.pairs,
            Padding(regions.pair_picture, len(native)),
        )
        after = []
        for layer in self.layers:
            pairs_PE = layer(pairs_PE, sight)
            after.append(self.norm(pairs_PE))
        return torch.stack(after)

    def _modulated(self, boxes: Tensor, look_ID: Tensor, unit_I4: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encodings of centres ``[I, D]``, each axis scaled by the extent that the look asks for, over the box's own
        (DAB-DETR, Liu et al. 2022): a narrow box is looked at narrowly, yet never more so than a cell is wide."""
        centre = boxes[:, : look_ID.shape[1]]
        if self.extent is None:
            return centre
        extent = torch.maximum(unit_I4[:, 2:], 1 / unit_I4.new_tensor(grid))
        share = self.extent(look_ID).sigmoid() / extent
        return (centre.unflatten(1, (2, -1)) * share[..., None]).flatten(1)
