"""The pair heads of UPT and PViC in plain torch, written from the sizes and equations of their papers, for their cost alone.

Both take an image's instances as a detector's queries (256 wide) and go image by image, with dropout of attention weights, as
published. What costs nothing beside the rest (priors, losses, the choice of instances) is left out. Weights are random.

Shape legend: N instances and P pairs of one image, A all N x N ordered pairs, S cells of the map, C its channels, D 256.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.pairs.candidates import pair_geometry
from hoi_distill.stages.student.pairs.layers.box_encoding import box_encoding, grid_encoding, unit_boxes
from hoi_distill.stages.student.pairs.regions import Regions

WIDTH, HEADS, DROPOUT = 256, 8, 0.1
VERBS = 117


def image_pairs(regions: Regions, image: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image: positions of its instances ``[N]``, pairs among them ``[P, 2]`` and all boxes' geometry ``[N, N, 36]``."""
    instances = (regions.image == image).nonzero().flatten()
    pairs = regions.pairs[regions.pair_image == image] - instances[0]
    boxes, count = regions.boxes[instances], len(instances)
    first, second = boxes.repeat_interleave(count, 0), boxes.repeat(count, 1)
    geometry = pair_geometry(first, second, regions.size[image].expand(count**2, 2)).clamp(-6, 6)
    return instances, pairs, geometry.view(count, count, 36)


def spatial_head(width: int) -> nn.Sequential:
    """36-128-256-width, as both papers have it."""
    return nn.Sequential(
        nn.Linear(36, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, width), nn.ReLU()
    )


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of projected ``[Q, K]`` to ``[S, K]`` and ``[S, V]``, whose weights drop out: ``[Q, V]``."""
    query, key, value = (each.unflatten(-1, (HEADS, -1)).transpose(0, 1) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=DROPOUT).transpose(0, 1).flatten(1)


class Fusion(nn.Module):
    """UPT's multi-branch fusion: 16 branches, each the product of two projections."""

    def __init__(self, appearance: int, width: int, branches: int = 16) -> None:
        super().__init__()
        self.branches = branches
        self.appearance, self.spatial = nn.Linear(appearance, width), nn.Linear(width, width)
        self.mix = nn.Linear(width, width)  # the sum over branches of a layer each is one layer over all of them

    @override
    def forward(self, appearance: Tensor, spatial: Tensor) -> Tensor:
        return F.relu(self.mix(F.relu(self.appearance(appearance) * self.spatial(spatial))))


class CooperativeLayer(nn.Module):
    """UPT's encoder layer over instances, which pairwise geometry modulates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        head = width // HEADS
        self.unary, self.pairwise = nn.Linear(WIDTH, width), nn.Linear(width, width)
        self.weight = nn.Parameter(torch.randn(HEADS, 3 * head) / head)
        self.message = nn.Parameter(torch.randn(HEADS, head, head) / head)
        self.aggregate, self.norm = nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH)
        self.block = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.block_norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

    @override
    def forward(self, unary_ND: Tensor, spatial_NNW: Tensor) -> Tensor:
        u = F.relu(self.unary(unary_ND)).unflatten(-1, (HEADS, -1))
        p = F.relu(self.pairwise(spatial_NNW)).unflatten(-1, (HEADS, -1))
        from_u, from_v, from_p = self.weight.chunk(3, -1)
        # the layer over (u_i; u_j; p_ij) side by side is the sum of three
        score = (u * from_u).sum(-1)[:, None] + (u * from_v).sum(-1)[None] + (p * from_p).sum(-1)
        message = torch.einsum("ijhc,hcd->ijhd", u[:, None] * p, self.message)
        gathered = F.relu((score.softmax(0)[..., None] * message).sum(0).flatten(1))
        unary_ND = self.norm(unary_ND + self.dropout(self.aggregate(gathered)))
        return self.block_norm(unary_ND + self.dropout(self.block(unary_ND)))


class UptHead(nn.Module):
    """UPT (Zhang et al. 2022): width 512, two cooperative layers, one competitive layer of width 1,024."""

    def __init__(self, channels: int, width: int = 512) -> None:
        super().__init__()
        self.spatial = spatial_head(width)
        self.cooperative = nn.ModuleList(CooperativeLayer(width) for _ in range(2))
        self.look, self.look_round = Fusion(2 * WIDTH, width), Fusion(channels, width)
        self.competitive = nn.TransformerEncoderLayer(2 * width, HEADS, 2048, DROPOUT, "gelu")
        self.classify = nn.Linear(2 * width, VERBS)

    @override
    def forward(self, regions: Regions, hidden_ID: Tensor) -> Tensor:
        """Verb logits ``[pairs, 117]``; ``hidden_ID``: the detector's queries of all instances."""
        means = regions.maps.float().mean((2, 3))
        tokens = []
        for image in range(len(means)):
            instances, pairs, geometry = image_pairs(regions, image)
            spatial, unary = self.spatial(geometry), hidden_ID[instances]
            for layer in self.cooperative:
                unary = layer(unary, spatial)
            human, thing = pairs.unbind(1)
            near = spatial[human, thing]
            looks = (
                self.look(torch.cat((unary[human], unary[thing]), 1), near),
                self.look_round(means[image, None], near),
            )
            tokens.append(self.competitive(torch.cat(looks, 1)))
        return self.classify(torch.cat(tokens))


class Attended(nn.Module):
    """A block of PViC: what attention brought, and a feed-forward block, each with add and norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out, self.norm, self.block_norm = nn.Linear(width, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.block = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(DROPOUT)

    @override
    def forward(self, rows: Tensor, attended: Tensor) -> Tensor:
        rows = self.norm(rows + self.dropout(self.out(attended)))
        return self.block_norm(rows + self.dropout(self.block(rows)))


class PvicEncoderLayer(nn.Module):
    """Self-attention over instances with box encodings in queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.position = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.after = Attended(WIDTH)

    @override
    def forward(self, unary_ND: Tensor, boxes: Tensor) -> Tensor:
        query, key, value = self.project(unary_ND).chunk(3, -1)
        query_position, key_position = self.position(boxes).chunk(2, -1)
        return self.after(unary_ND, attention(query + query_position, key + key_position, value))


class PvicDecoderLayer(nn.Module):
    """Pairs attend to each other, then to the map, guided by their boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project, self.position = nn.Linear(width, 3 * width), nn.Linear(4 * WIDTH, 2 * width)
        self.out, self.norm, self.dropout = nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(DROPOUT)
        self.query, self.query_position = nn.Linear(width, width), nn.Linear(2 * WIDTH, width)
        self.key_value, self.key_position = nn.Linear(WIDTH, 2 * width), nn.Linear(WIDTH, width)
        self.after = Attended(width)

    @override
    def forward(self, pairs_PW: Tensor, memory_SD: Tensor, boxes: Tensor, centres: Tensor, grid: Tensor) -> Tensor:
        query, key, value = self.project(pairs_PW).chunk(3, -1)
        query_position, key_position = self.position(boxes).chunk(2, -1)
        attended = attention(query + query_position, key + key_position, value)
        pairs_PW = self.norm(pairs_PW + self.dropout(self.out(attended)))

        def in_heads(content: Tensor, position: Tensor) -> Tensor:
            return torch.cat([each.unflatten(-1, (HEADS, -1)) for each in (content, position)], -1).flatten(1)

        key, value = self.key_value(memory_SD).chunk(2, -1)
        query = in_heads(self.query(pairs_PW), self.query_position(centres))
        return self.after(pairs_PW, attention(query, in_heads(key, self.key_position(grid)), value))


class PvicHead(nn.Module):
    """PViC (Zhang et al. 2023): width 384, two encoder and two decoder layers.

    Its feature head is here one 1 x 1 projection of the map. The published one has a 3 x 3 convolution and a windowed
    attention layer more, so that what is measured here is in its favour.
    """

    def __init__(self, channels: int, width: int = 384) -> None:
        super().__init__()
        self.spatial = spatial_head(width)
        self.extent = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
        self.encoder = nn.ModuleList(PvicEncoderLayer() for _ in range(2))
        self.look = nn.Sequential(nn.Linear(2 * WIDTH, width), nn.LayerNorm(width))
        self.geometry = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        hidden = 3 * width // 2
        self.fuse = nn.Sequential(
            nn.ReLU(), nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU()
        )
        self.memory = nn.Linear(channels, WIDTH)
        self.decoder, self.norm = nn.ModuleList(PvicDecoderLayer(width) for _ in range(2)), nn.LayerNorm(width)
        self.classify = nn.Linear(width, VERBS)

    @override
    def forward(self, regions: Regions, hidden_ID: Tensor) -> Tensor:
        """Verb logits ``[2, pairs, 117]`` after each decoder layer; ``hidden_ID``: the detector's queries."""
        grid = grid_encoding(*regions.maps.shape[-2:], WIDTH)
        memory_BSD = self.memory(regions.maps.float().flatten(2).transpose(1, 2))
        tokens = []
        for image, memory in enumerate(memory_BSD):
            instances, pairs, geometry = image_pairs(regions, image)
            unit = unit_boxes(regions.boxes[instances], regions.size[image].expand(len(instances), 2))
            boxes, unary = box_encoding(unit, WIDTH), hidden_ID[instances]
            share = self.extent(unary).sigmoid() / unit[:, 2:]
            centres = (boxes[:, :WIDTH].unflatten(1, (2, -1)) * share[..., None]).flatten(1)
            for layer in self.encoder:
                unary = layer(unary, boxes)
            human, thing = pairs.unbind(1)
            spatial = self.spatial(geometry)[human, thing]
            look = self.look(torch.cat((unary[human], unary[thing]), 1))
            rows, after = self.fuse(torch.cat((look, self.geometry(spatial)), 1)), []
            for layer in self.decoder:
                both = [torch.cat((each[human], each[thing]), 1) for each in (boxes, centres)]
                rows = layer(rows, memory, *both, grid)
                after.append(self.norm(rows))
            tokens.append(torch.stack(after))
        return self.classify(torch.cat(tokens, 1))
