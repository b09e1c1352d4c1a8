"""A classifier whose rows are text embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class TextClassifier(nn.Module):
    """``[..., D]`` to logits ``[..., R]``: scale times cosine, and one bias that all classes share.

    Args:
        width: D.
        rows: float ``[R, T]``, where the classes' rows start: embeddings of their texts.
        train_rows: whether the rows learn.
        logit_scale: where the scale starts.
        logit_bias: where the bias starts.
        learn_scale: whether the scale learns.
    """

    def __init__(
        self,
        width: int,
        rows: Tensor,
        *,
        train_rows: bool,
        logit_scale: float,
        logit_bias: float = -2.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(width, rows.shape[1])
        self.rows = nn.Parameter(F.normalize(rows.float(), dim=1), requires_grad=train_rows)
        self.scale = nn.Parameter(torch.tensor(float(logit_scale)).log(), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.tensor(float(logit_bias)))

    def classes(self) -> Tensor:
        """float ``[R, T]`` of length 1."""
        return F.normalize(self.rows, dim=1)

    @override
    def forward(self, pairs: Tensor) -> Tensor:
        rows = self.scale.exp() * self.classes()  # scaled here: there are fewer rows than logits
        return F.linear(F.normalize(self.project(pairs), dim=-1), rows, self.bias.expand(len(rows)))
