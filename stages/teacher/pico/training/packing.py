"""Many short texts about one image in one sequence.

A block-diagonal mask keeps the texts apart and positions restart with each, so the answers equal the stock forward of
one text at a time (to rounding) while the image's states are projected once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CLOSED = -1e4  # additive; far below any logit, representable in bf16


@dataclass(frozen=True)
class Packed:
    """Texts of B images.

    Attributes:
        ids: int64 ``[B, L]`` tokens.
        positions: int64 ``[B, L]`` within each text, from 0.
        segments: int64 ``[B, L]`` number of the text, from 1; 0 is padding.
        starts: int64 ``[T]``, each text's first token in the flattened ``[B * L]``, image after image.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    starts: Tensor

    def mask(self, *, causal: bool) -> Tensor:
        """Additive float attention mask ``[B, 1, L, L]``: a token sees its own text, up to itself if ``causal``."""
        allowed = self.segments[:, :, None] == self.segments[:, None, :]
        if causal:
            allowed = allowed.tril()
        return torch.zeros(allowed.shape).masked_fill_(~allowed, _CLOSED)[:, None]


def pack(texts: Sequence[Sequence[Sequence[int]]], pad: int = 0) -> Packed:
    """``texts[picture][text]`` is a list of token ids. TokenizedSentences without any token are not allowed."""
    length = max(sum(map(len, row)) for row in texts)
    ids, positions, segments, starts = [], [], [], []
    for b, row in enumerate(texts):
        flat_ids: list[int] = []
        flat_positions: list[int] = []
        flat_segments: list[int] = []
        for number, text in enumerate(row, 1):
            starts.append(b * length + len(flat_ids))
            flat_ids += text
            flat_positions += range(len(text))
            flat_segments += [number] * len(text)
        padding = length - len(flat_ids)
        ids.append(flat_ids + [pad] * padding)
        positions.append(flat_positions + [0] * padding)
        segments.append(flat_segments + [0] * padding)
    return Packed(torch.tensor(ids), torch.tensor(positions), torch.tensor(segments), torch.tensor(starts))
