"""vLLM inside a worker: the prompts of the ``answers`` stage through vLLM's offline interface, for clusters without a server.

Written against vLLM's public interface (``LLM``, ``SamplingParams``) and tested with a stand-in of it. *It has never been run
with vLLM itself*, which needs a GPU.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pip install 'hoi-distill[vllm]'"
LISTED = 20
"""First tokens whose log-probabilities are asked for."""
MEMORY_SHARE = 0.9
"""Of a GPU, what vLLM may take where one worker has it alone."""


@dataclass(frozen=True)
class Question:
    """One prompt about one image.

    Attributes:
        ids: token ids; the image's mark is a single one among them, which vLLM widens.
        image: RGB.
        is_yes_no: whether the first token is the answer.
    """

    ids: Sequence[int]
    image: Image.Image
    is_yes_no: bool


def require_vllm() -> None:
    """Raises UserError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"engine: vllm is not installed here; install it with: {INSTALL}, or write engine: transformers"
        )


class VllmEngine:
    """A model that vLLM holds, greedily decoded.

    Args:
        folder: of the checkpoint.
        dtype: of weights and arithmetic.
        max_pixels: bound on an image's pixels after resizing (Qwen only); None: the checkpoint's.
        gpus: share of a GPU that the worker has; 0: all of it.
    """

    def __init__(self, folder: Path, dtype: str, *, max_pixels: int | None, gpus: float) -> None:
        require_vllm()
        from vllm import LLM, SamplingParams

        sizes = {} if max_pixels is None else {"mm_processor_kwargs": {"max_pixels": max_pixels}}
        self.model = LLM(
            model=str(folder),
            dtype=dtype,
            seed=0,
            limit_mm_per_prompt={"image": 1},
            max_logprobs=LISTED,
            gpu_memory_utilization=MEMORY_SHARE * min(gpus or 1.0, 1.0),
            generation_config="vllm",  # nothing of the checkpoint's own temperature or penalties
            **sizes,
        )
        self.first = SamplingParams(temperature=0.0, max_tokens=1, logprobs=LISTED)

    def answer(
        self, questions: Sequence[Question], yes: Sequence[int], no: Sequence[int], *, max_new_tokens: int
    ) -> list[tuple[str, float | None]]:
        """Answer all questions together; vLLM makes batches of them and reads what prompts begin with alike once.

        Args:
            questions: N.
            yes: token ids that say yes.
            no: token ids that say no.
            max_new_tokens: where an answer is cut.

        Returns:
            N texts, each with the probability of yes against no: NaN where no yes/no question was asked, None where neither
            is among the first tokens that are listed.
        """
        from vllm import SamplingParams

        whole = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
        prompts = [
            {"prompt_token_ids": list(each.ids), "multi_modal_data": {"image": each.image}} for each in questions
        ]
        wishes = [self.first if each.is_yes_no else whole for each in questions]
        outputs = [each.outputs[0] for each in self.model.generate(prompts, wishes, use_tqdm=False)]
        return [
            (output.text, _yes_score(output.logprobs[0], yes, no) if question.is_yes_no else math.nan)
            for question, output in zip(questions, outputs, strict=True)
        ]


def _yes_score(listed: Any, yes: Sequence[int], no: Sequence[int]) -> float | None:
    """The probability of yes against no.

    Args:
        listed: ``{token id: log-probability}`` of the likeliest first tokens, as vLLM has it.
        yes: token ids that say yes.
        no: token ids that say no.
    """
    mass = [math.fsum(math.exp(listed[token].logprob) for token in tokens if token in listed) for tokens in (yes, no)]
    return mass[0] / sum(mass) if sum(mass) else None
