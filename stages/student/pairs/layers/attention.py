"""Attention within each image.

Rows (instances or pairs) of all images are concatenated, ``[N, D]``, so that linear layers see no gaps. Queries, keys and values
alone are taken image by image: on a CPU in a loop, which copies nothing and computes no gap; on a GPU padded, in one call.
There is no dropout of attention weights: fused kernels run on every device, and memory does not grow with the square of the
pairs. The heads come back concatenated; the caller applies the output projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class Padding:
    """The layout of N rows of B images, one image after another, in ``[B, most]``.

    Attributes:
        counts: how many rows each image has.
        mask: bool ``[B, 1, 1, most]``, keys that are attended to. An image without rows keeps one row of zeros, because a
            softmax over nothing is not finite.
    """

    def __init__(self, image: Tensor, counts_B: Sequence[int]) -> None:
        """``image``: int64 ``[N]``, rising; ``counts_B``: how many rows each image has."""
        self.counts = list(counts_B)
        self.shape = (len(counts_B), max(1, *counts_B))
        counts = image.new_zeros(len(counts_B)).index_add(0, image, torch.ones_like(image))
        first = counts.cumsum(0) - counts
        place = torch.arange(image.shape[0], device=image.device) - first[image]
        self.slot = image * self.shape[1] + place
        places = torch.arange(self.shape[1], device=image.device)
        self.mask = (places < counts.clamp(min=1)[:, None])[:, None, None]

    def pad(self, rows: Tensor) -> Tensor:
        """``[N, D]`` to ``[B, most, D]``, zeros in the gaps."""
        empty = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[1])
        return empty.index_copy(0, self.slot, rows).view(*self.shape, -1)

    def rows(self, padded: Tensor) -> Tensor:
        """``[B, most, D]`` to ``[N, D]``."""
        return padded.flatten(0, 1).index_select(0, self.slot)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Multi-head attention of the rows to those of the same image, or to its map.

        Args:
            query: float ``[N, K]``, projected.
            key: float ``[N, K]``, or ``[B, S, K]`` of the S cells of each map.
            value: float ``[N, V]`` or ``[B, S, V]``.
            heads: how many; they divide K and V.

        Returns:
            ``[N, V]``, the heads concatenated.
        """
        among = key.dim() == 2
        if query.is_cuda:
            if among:
                key, value = self.pad(key), self.pad(value)
            return self.rows(attend(self.pad(query), key, value, heads, self.mask if among else None))
        keys, values = (each.split(self.counts) if among else each.unbind() for each in (key, value))
        images = zip(query.split(self.counts), keys, values, strict=True)
        return torch.cat([attend(q[None], k[None], v[None], heads)[0] for q, k, v in images])


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of projected queries ``[B, Q, K]`` to keys ``[B, S, K]`` and values ``[B, S, V]``.

    Args:
        query: float.
        key: float.
        value: float.
        heads: how many; they divide K and V.
        mask: bool, keys that are attended to; None: all.

    Returns:
        ``[B, Q, V]``, the heads concatenated.
    """
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    if not query.is_cuda and mask is None and key.shape[-1] != value.shape[-1]:  # the CPU has no fused kernel for it
        weights = (query / query.shape[-1] ** 0.5 @ key.mT).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def concat_heads(content: Tensor, position: Tensor, heads: int) -> Tensor:
    """Content and position, both ``[..., E]``, concatenated within each head (Conditional DETR, Meng et al. 2021):
    ``[..., 2 * E]``. The product of two such is the sum of the products of contents and of positions."""
    content, position = (each.unflatten(-1, (heads, -1)) for each in torch.broadcast_tensors(content, position))
    return torch.cat((content, position), -1).flatten(-2)


class SelfAttention(nn.Module):
    """Rows ``[N, D]`` attend to those of the same image; add and norm. Positions go to queries and keys, not to values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, rows_ND: Tensor, padding: Padding, position: Tensor | None = None) -> Tensor:
        """``position``: ``[N, 2 * D]``, added to queries and keys."""
        width = rows_ND.shape[1]
        query_key, value = self.project(rows_ND).split((2 * width, width), 1)
        if position is not None:
            query_key = query_key + position
        query, key = query_key.chunk(2, 1)
        attended = padding.attend(query, key, value, self.heads)
        return self.norm(rows_ND + self.dropout(self.mix(attended)))


class FeedForward(nn.Module):
    """The transformer's block of two layers; add and norm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.block(x))
