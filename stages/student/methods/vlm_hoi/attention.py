"""DETR's transformer layers as MUREN stacks them, under the names of transformers' DETR.

Layers are post-norm: attention, add, norm, feed-forward, add, norm (Carion et al. 2020). Positions are added to queries
and keys, never to values.

Shape legend: B sequences, S keys, Q queries, D width.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DetrConfig
from transformers.models.detr.modeling_detr import DetrCrossAttention, DetrEncoderLayer, DetrMLP
from typing_extensions import override


def layer_config(d_model: int, heads: int, ffn: int, dropout: float) -> DetrConfig:
    """What one of transformers' DETR layers reads; attention weights and hidden units drop out as in the original."""
    settings: dict[str, Any] = {
        "use_timm_backbone": False, "backbone_config": {"model_type": "resnet"}, "attn_implementation": "sdpa",
        "d_model": d_model, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
        "encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn,
        "dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout,
    }  # fmt: skip
    return DetrConfig(**settings)


class EncoderLayer(DetrEncoderLayer):
    """transformers' layer, but it does not ask after each forward whether all values are finite: the host would wait."""

    @override
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        spatial_position_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sequences attend to themselves.

        Args:
            hidden_states: float ``[B, S, D]``.
            attention_mask: bool ``[B, 1, 1, S]``, keys that are attended to; None: all.
            spatial_position_embeddings: float ``[B, S, D]``, positions.
            kwargs: what the attention takes beside these.
        """
        positions = spatial_position_embeddings
        seen, _ = self.self_attn(hidden_states, attention_mask=attention_mask, position_embeddings=positions, **kwargs)
        x = self.self_attn_layer_norm(hidden_states + F.dropout(seen, self.dropout, self.training))
        return self.final_layer_norm(x + self.mlp(x))


class CrossLayer(nn.Module):
    """A decoder layer without self-attention: float ``[B, Q, D]`` attends to memory ``[B, S, D]``."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        width = config.d_model
        self.encoder_attn = DetrCrossAttention(config, width, config.decoder_attention_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.mlp = DetrMLP(config, width, config.decoder_ffn_dim)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    @override
    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """``mask`` bool ``[B, 1, 1, S]``: keys that are attended to; ``positions`` ``[B, S, D]`` of the keys."""
        seen, _ = self.encoder_attn(x, memory, attention_mask=mask, encoder_position_embeddings=positions)
        x = self.encoder_attn_layer_norm(x + self.dropout(seen))
        return self.final_layer_norm(x + self.mlp(x))


def sine_positions(mask: Tensor, width: int, temperature: float = 10000) -> Tensor:
    """DETR's normalised positions: ``width / 2`` sines and cosines of the row, then as many of the column.

    Args:
        mask: bool ``[B, h, w]``, cells that lie in the image; it fills a rectangle from the top left corner.
        width: numbers of a position.
        temperature: the longest wave is this many times ``2 pi`` cells of a normalised axis.

    Returns:
        float32 ``[B, h * w, width]``; an image's positions do not depend on its padding.
    """
    half = width // 2
    rates = temperature ** (torch.arange(half, device=mask.device).div(2, rounding_mode="floor") * 2 / half)
    parts = []
    for axis in (1, 2):
        count = mask.cumsum(axis, dtype=torch.float32)
        angle = (2 * math.pi * count / (count.amax(axis, keepdim=True) + 1e-6))[..., None] / rates
        parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2))
    return torch.cat(parts, -1).flatten(1, 2)


class MLP(nn.Module):
    """``layers`` linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @override
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
