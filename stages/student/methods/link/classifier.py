"""LINK's head: cosines between pairs and the text embeddings of what people do.

Shape legend: P pairs, E their width, H interactions, V verbs, T text width, L layers.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.pairs.layers.text_classifier import TextClassifier


class InteractionClassifier(TextClassifier):
    """``[..., E]`` to interaction logits ``[..., H]``, of a row for each interaction or for each verb.

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
        if classes == "verb":
            # the sum points where the mean does
            rows = F.normalize(text.float(), dim=1)
            text = rows.new_zeros(int(verb.max()) + 1, rows.shape[1]).index_add(0, verb, rows)
        super().__init__(width, text, train_rows=train_rows, logit_scale=logit_scale, learn_scale=learn_scale)
        self.register_buffer("row", verb.clone() if classes == "verb" else torch.arange(len(verb)), persistent=False)
        self.row: Tensor
        self.expands = classes == "verb"

    @override
    def forward(self, pairs: Tensor) -> Tensor:
        logits = super().forward(pairs)
        return logits.index_select(-1, self.row) if self.expands else logits
