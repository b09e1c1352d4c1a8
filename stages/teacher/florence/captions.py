"""What Florence-2 says of an image in words: its captioning and reading tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from hoi_distill.stages.batching import in_parts, taken
from hoi_distill.stages.keys import Columns
from hoi_distill.stages.stage import ArrowOutput, Batch, Values
from hoi_distill.stages.teacher.blip.first_token import CELL, YES_NO, cells
from hoi_distill.stages.teacher.florence.asking import FlorenceStage
from hoi_distill.storage.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

TASKS = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OCR>": "What is the text in the image?",
}
"""The tasks that are answered in words, and the sentence that Florence-2 was trained to read for each."""


class FlorenceCaptions(FlorenceStage):
    """Florence-2's captions, greedily decoded. Each column is one of its tasks.

    Those are ``<CAPTION>``, ``<DETAILED_CAPTION>``, ``<MORE_DETAILED_CAPTION>`` and ``<OCR>``. A cell is ``{text, score}``, as in
    :class:`hoi_distill.stages.teacher.blip.stages.BlipCaptions`; ``score`` is null. A column that is no task is put as it
    stands, for checkpoints that were trained to answer it.
    """

    name = "captions"
    asks: ClassVar[str] = '["<MORE_DETAILED_CAPTION>"]'
    output = ArrowOutput(CELL)

    class Config(FlorenceStage.Config):
        columns: Columns
        """``<CAPTION>``, ``<DETAILED_CAPTION>``, ``<MORE_DETAILED_CAPTION>``, ``<OCR>``, or a sentence."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for column in self.columns:
            if column.startswith("<") and column not in TASKS:
                raise UserError(
                    f"columns: {column!r} is no task that is answered in words; there are {', '.join(TASKS)}"
                    f"{did_you_mean(column, TASKS)}; boxes are stage: florence_boxes"
                )
            if YES_NO.search(column):
                raise UserError(
                    f"columns: Florence-2 was not trained to answer yes or no; ask {column!r} with stage: answers"
                )

    @override
    def sentence(self, column: str) -> str:
        return TASKS.get(column, column)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        with torch.inference_mode():
            seen = self.seen(batch)
            texts = {column: self._texts(seen, column) for column in columns}
        nothing = np.full(len(batch.row_ids), np.nan)
        padding = len(batch.row_ids) - batch.count
        return {column: cells([*said, *said[-1:] * padding], nothing) for column, said in texts.items()}

    def _texts(self, seen: torch.Tensor, column: str) -> list[str]:
        """The answers about B images."""

        def forward(positions: np.ndarray) -> list[str]:
            written = self.answers(taken(seen, positions), column)
            said: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            return said

        return [text for part in in_parts(forward, len(seen), self.rows, self.device) for text in part]
