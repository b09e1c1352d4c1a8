"""Attention of BLIP's vision tower in one fused kernel. transformers computes it in steps and keeps ``H x N x N`` weights."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hoi_distill.stages.teacher.blip.itm_scorer import merge


def fuse(tower: Any) -> None:
    """Change the layers of a loaded ``BlipVisionModel``. Values stay equal up to rounding."""
    for layer in tower.encoder.layers:
        layer.self_attn.forward = MethodType(_attend, layer.self_attn)


def _attend(attention: Any, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
    """``BlipAttention.forward`` of ``[B, N, D]``, without the weights."""
    heads = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.projection(merge(scaled_dot_product_attention(*heads))), None
