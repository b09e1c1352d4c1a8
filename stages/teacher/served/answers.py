"""Answers of a model behind a server, in the cells of the local models' answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count
from hoi_distill.stages.stage import ArrowOutput, Values
from hoi_distill.stages.teacher.blip.first_token import CELL, YES_NO, cells
from hoi_distill.stages.teacher.served.endpoint import Request
from hoi_distill.stages.teacher.served.replies import GRADING, first_token, grade_of, text_of
from hoi_distill.stages.teacher.served.stage import INSTALL, Served

__all__ = ["INSTALL", "ServedAnswers"]

Answer = tuple[str, float]
"""Text, and the score of yes (NaN where no yes/no question was asked)."""


class ServedAnswers(Served):
    """Answers of a model behind any OpenAI-compatible server, one request a cell. Each column is a question.

    A cell is ``{text, score}``, as in :class:`hoi_distill.stages.teacher.answers.Answers`: a yes/no question is answered by
    its first token, with the probability of yes as ``score``, if the server gives log-probabilities. With ``scores: graded``
    the model writes a number instead; that is another table. An answer that is cut, refused or of another form is a recorded
    failure with its reason.
    """

    name = "captions"
    output = ArrowOutput(CELL)

    class Config(Served.Config):
        instruction: str = ""
        """What follows a yes/no question, "Answer with yes or no." say."""
        scores: Literal["logprobs", "graded"] = "logprobs"
        """How yes/no questions are scored: by the first token's log-probabilities, or by a number from 0 to 100 that the
        model writes."""
        top_logprobs: Count = 20
        """How many first tokens the server lists; hosted models list 20 at most."""
        keep_cut: bool = False
        """Whether an answer that is cut at ``max_new_tokens`` is kept. Otherwise it is a recorded failure."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.settings = config

    @override
    def parameters(self) -> dict[str, Any]:
        settings, instruction = self.settings, self.settings.instruction.strip()
        graded = settings.scores == "graded"
        return {
            **super().parameters(),
            **({"instruction": instruction} if instruction else {}),
            **({"scores": GRADING} if graded else {"scores": "logprobs", "top_logprobs": settings.top_logprobs}),
            **({"keep_cut": True} if settings.keep_cut else {}),
        }

    @override
    def request(self, image: str, column: str) -> Request[Answer]:
        if not YES_NO.search(column):
            return Request(lambda: self.body(image, column), self._told)
        asked = f"{column} {self.settings.instruction.strip()}".strip()
        if self.settings.scores == "graded":
            return Request(lambda: self.body(image, f"{asked} {GRADING}"), self._graded)
        fields = {"limit": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": self.settings.top_logprobs}
        return Request(lambda: self.body(image, asked, **fields), first_token)

    def _told(self, completion: Any) -> Answer:
        return text_of(completion, self.settings.keep_cut), float("nan")

    def _graded(self, completion: Any) -> Answer:
        text = text_of(completion)
        return text, grade_of(text)

    @override
    def cells(self, answers: Sequence[Answer | None]) -> Values:
        texts = [("", float("nan")) if answer is None else answer for answer in answers]
        values = cells([text for text, _ in texts], np.array([score for _, score in texts]))
        return pc.if_else(pa.array([answer is not None for answer in answers]), values, None)
