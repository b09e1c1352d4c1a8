"""LINK's head: cosines between pairs and the text embeddings of what people do.

Shape legend: P pairs, E their width, H interactions, V verbs, T text width, L layers.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextClassifier(nn.Module):
    """``[..., E]`` to interaction logits ``[..., H]``: scale times cosine, and one bias that all classes share.

    Args:
        verb: int64 ``[H]``, the verb of each interaction.
        text: float ``[H, T]`` embeddings of the interactions' prompts. With ``classes: verb`` a verb's row is the mean over
            its interactions, and each interaction has its verb's logit.
    """

    def __init__(
        self,
        width: int,
        verb: Tensor,
        text: Tensor,
        classes: Literal["hoi", "verb"],
        *,
        train_rows: bool,
        logit_scale: float,
        learn_scale: bool,
    ) -> None:
        super().__init__()
        rows = F.normalize(text.float(), dim=1)
        if classes == "verb":
            # the sum points where the mean does
            rows = F.normalize(rows.new_zeros(int(verb.max()) + 1, rows.shape[1]).index_add(0, verb, rows), dim=1)
        self.project = nn.Linear(width, rows.shape[1])
        self.rows = nn.Parameter(rows, requires_grad=train_rows)
        self.scale = nn.Parameter(torch.tensor(float(logit_scale)).log(), requires_grad=learn_scale)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.register_buffer("row", verb.clone() if classes == "verb" else torch.arange(len(verb)), persistent=False)
        self.row: Tensor
        self.expands = classes == "verb"

    def forward(self, pairs: Tensor) -> Tensor:
        cosine = F.normalize(self.project(pairs), dim=-1) @ F.normalize(self.rows, dim=1).T
        logits = self.scale.exp() * cosine + self.bias
        return logits.index_select(-1, self.row) if self.expands else logits
