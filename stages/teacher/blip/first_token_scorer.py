"""Scores many yes/no questions with BLIP's decoder, as :mod:`.itm_scorer` scores prompts with its matching head.

Keys and values of an image are projected once. Questions of equal length are batched. The last layer computes only the
final token, after which the answer stands.

Shapes: B images, P questions, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from hoi_distill.stages.teacher.blip.itm_scorer import BlipTextScorer


class FirstTokenScorer(BlipTextScorer):
    """Of a loaded ``BlipForConditionalGeneration`` (or a subclass) in evaluation mode.

    :meth:`score` gives three numbers: the log-sum-exps of the first-token logits of the no and of the yes variants, and the
    id of the likeliest first token.

    Args:
        model: The loaded model; only its text decoder is used.
        tokenizer: The checkpoint's tokenizer.
        yes: Token ids, see :func:`hoi_distill.stages.teacher.blip.first_token.answer_ids`.
        no: Token ids, as ``yes``.
        memory_mib: See :class:`hoi_distill.stages.teacher.blip.itm_scorer.PromptScorer`.
    """

    numbers = 3

    def __init__(self, model: Any, tokenizer: Any, yes: Sequence[int], no: Sequence[int], memory_mib: int) -> None:
        decoder = model.text_decoder
        config = model.config.text_config
        super().__init__(decoder.bert, config, tokenizer, causal=True, memory_mib=memory_mib)
        self.vocabulary_head, self.yes, self.no = decoder.cls, list(yes), list(no)

    @override
    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """[DEC] and each question's tokens, without the final separator."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._ids]:
            encoded = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._ids |= {prompt: [self.config.bos_token_id, *ids] for prompt, ids in zip(new, encoded, strict=True)}
        return [self._ids[prompt] for prompt in prompts]

    @override
    def head(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of "no" and "yes", and the likeliest token."""
        logits = self.vocabulary_head(x).float()
        groups = [logits[..., ids].logsumexp(-1) for ids in (self.no, self.yes)]
        return torch.stack([*groups, logits.argmax(-1).float()], -1)

    @override
    def bytes_per_prompt(self, length: int) -> int:
        """And its logits, in the model's precision and in float32."""
        return super().bytes_per_prompt(length) + int(self.config.vocab_size) * (4 + self.weight.element_size())
