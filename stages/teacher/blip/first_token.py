"""Questions that a teacher answers by its first token, and the cells of a captions table.

The score of a yes/no question is the softmax over the first-token logits of yes, Yes, no and No, summed over the yes
variants (after mllms-zs-hoi).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

YES_NO = re.compile(r"^(is|are|was|were|do|does|did|can|has|have|will)\b.*\?|\byes or no\b", re.IGNORECASE)
"""Questions answered by their first token, with a score; every other one is answered in words."""
YES, NO = ("yes", "Yes"), ("no", "No")
CELL = pa.struct([("text", pa.string()), ("score", pa.float32())])
"""One answer. ``score`` in [0, 1] is that of yes; null where no yes/no question was asked."""


def answer_ids(tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    """Token ids of the yes and the no variants that are single tokens, at a text's beginning or after a space.

    Raises:
        UserError: the tokenizer of the checkpoint ``where`` has no such token.
    """
    found: list[list[int]] = []
    for words in (YES, NO):
        forms = [form for word in words for form in (word, f" {word}")]
        encoded = [tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in forms]
        ids = sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
        if not ids:
            raise UserError(f"{where}: no token for '{words[0]}'; ask this teacher no yes/no question")
        found.append(ids)
    return found[0], found[1]


def yes_score(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> np.ndarray:
    """Probability of yes against no, float32 ``[B]``, of first-token logits ``[B, V]``."""
    chosen = logits[:, [*yes, *no]].float().softmax(-1)[:, : len(yes)].sum(-1).clamp(0, 1)
    return np.asarray(chosen.cpu().numpy(), np.float32)


def log_probabilities(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> torch.Tensor:
    """float32 ``[B, 2]``, logarithms of the probabilities that a yes and that a no comes first, of logits ``[B, V]``."""
    import torch

    found = logits.float().log_softmax(-1)
    return torch.stack([found[:, list(ids)].logsumexp(-1) for ids in (yes, no)], 1)


def cells(texts: Sequence[str], scores: np.ndarray) -> pa.Array:
    """:data:`CELL` of each answer; a score that is NaN becomes null."""
    text = pa.array([text.strip() for text in texts], pa.string())
    score = pa.array(scores.astype(np.float32), mask=np.isnan(scores))
    return pa.StructArray.from_arrays([text, score], fields=list(CELL))
