"""MURE, the multiplex relation embedding module, and attentive fusion (Kim et al., CVPR 2023, sections 3.3 and 3.4).

Shape legend: B images, N queries of each branch, S cells of the map, D width. The three tokens h, o, r (human, object,
interaction) of one query index describe one HOI.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DetrConfig
from typing_extensions import override

from hoi_distill.stages.student.methods.vlm_hoi.attention import CrossLayer, EncoderLayer

BRANCHES = ("human", "object", "relation")
PAIRS = {"human_object": (0, 1), "human_relation": (0, 2), "object_relation": (1, 2)}


def mixer(inputs: int, width: int) -> nn.Sequential:
    """Several tokens side by side to one: ``[..., inputs]`` to ``[..., width]``."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))


class MultiplexRelation(nn.Module):
    """The context of each HOI from its tokens by themselves (unary), by two (pairwise), all three (ternary) and the image.

    One instance serves all decoder layers.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        width = config.d_model
        self.ternary = mixer(3 * width, width)
        self.pairs = nn.ModuleDict({name: mixer(2 * width, width) for name in PAIRS})
        self.unary = EncoderLayer(config)
        self.pairwise = EncoderLayer(config)
        self.unary_cross = CrossLayer(config)
        self.pairwise_cross = CrossLayer(config)
        self.context = CrossLayer(config)

    @override
    def forward(self, tokens: tuple[Tensor, Tensor, Tensor], memory: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Context ``[B, N, D]`` of h, o, r, each ``[B, N, D]``.

        Args:
            tokens: h, o and r.
            memory: float ``[B, S, D]``, the encoded image.
            mask: bool ``[B, 1, 1, S]``, cells that lie in the image.
            positions: float ``[B, S, D]``, encodings of the cells.
        """
        shape = tokens[0].shape
        ternary = self.ternary(torch.cat(tokens, -1)).view(-1, 1, shape[-1])
        unary = self.unary(torch.stack(tokens, 2).flatten(0, 1), None)  # [B * N, 3, D]
        pairs = [self.pairs[name](unary[:, index].flatten(1)) for name, index in PAIRS.items()]
        pairwise = self.pairwise(torch.stack(pairs, 1), None)
        ternary = self.pairwise_cross(self.unary_cross(ternary, unary), pairwise)
        return self.context(ternary.view(shape), memory, mask, positions)


class AttentiveFusion(nn.Module):
    """``x + gate([x; c]) * update([x; c])``: each branch takes from the context what it needs; ``[B, N, D]`` all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.update = mixer(2 * width, width)

    @override
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        both = torch.cat((x, context), -1)
        return x + self.gate(both).sigmoid() * self.update(both)
