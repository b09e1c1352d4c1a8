"""The pico captioner with two marks: it is asked about one human-object pair, whose boxes it is shown.

A box becomes a token of its own, which stands after the question's first token, and a bias on the attention to the cells
that it covers. The bias starts at zero. All else is the captioner, whose vision tower stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from hoi_distill.stages.teacher.blip.question_decoder import Marks, answer_logits
from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipConfig, PicoBlipForConditionalGeneration

OCTAVES = 6
"""A coordinate enters as sines and cosines of so many frequencies, each twice the one before."""


class BoxMarks(nn.Module):
    """What two boxes become.

    Args:
        width: D, of the text model.
        layers: of the text model.
        heads: H, of its attention.
        side: cells of the image's grid in a row and in a column.
    """

    def __init__(self, width: int, layers: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.place = nn.Linear(4 * 2 * OCTAVES, width)
        self.role = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.gamma = nn.Parameter(torch.zeros(layers, heads, 2))

    @override
    def forward(self, boxes: torch.Tensor) -> Marks:
        """Marks of Q pairs of B images.

        Args:
            boxes: float ``[B, Q, 2, 4]``, human and object, xyxy as fractions of the image's sides.
        """
        angle = boxes[..., None] * (math.pi * 2.0 ** torch.arange(OCTAVES, device=boxes.device))
        waves = torch.cat((angle.sin(), angle.cos()), -1).flatten(-2)
        tokens = self.norm(self.place(waves.to(self.gamma.dtype)) + self.role.weight)
        return Marks(tokens, torch.einsum("lhr,bqrn->lbqhn", self.gamma, self.covered(boxes).to(self.gamma.dtype)))

    def covered(self, boxes: torch.Tensor) -> torch.Tensor:
        """float ``[B, Q, 2, 1 + side * side]``: the share of each cell, row by row, that a box covers; 0 of the class token."""
        start = torch.arange(self.side, device=boxes.device) / self.side
        low, high = boxes[..., :2, None], boxes[..., 2:, None]
        along = (torch.minimum(high, start + 1 / self.side) - torch.maximum(low, start)).clamp(min=0) * self.side
        cells = (along[..., 1, :, None] * along[..., 0, None, :]).flatten(-2)
        return nn.functional.pad(cells, (1, 0))


class PicoBlipForPairQuestions(PicoBlipForConditionalGeneration):
    """Answers yes or no to a question about one marked pair."""

    def __init__(self, config: PicoBlipConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        side = vision.image_size // vision.patch_size
        self.marks = BoxMarks(text.hidden_size, text.num_hidden_layers, text.num_attention_heads, side)
        self.post_init()

    def answers(
        self, states: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """The logits of each answer's first token, see :func:`answer_logits`, of pairs with ``boxes`` as of :class:`BoxMarks`."""
        return answer_logits(self.text_decoder, states, ids, lengths, self.marks(boxes))
