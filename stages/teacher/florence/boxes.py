"""Boxes of objects by their names, by Florence-2's phrase grounding: the model writes the places of what it is asked for.

It writes an answer like ``a dog<loc_52><loc_332><loc_932><loc_774>``: words, then four places for each box (left, top, right,
bottom), each one of 1,000 steps along the image's width or height. It writes no score. What stands for one here is the geometric
mean of the probabilities of a box's four places; that is this project's own choice. The model was trained on phrases that are
there: of an object that is not, it may still write a box.

Shapes: B images, T tokens of an answer, K boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from hoi_distill.stages.batching import in_parts, taken
from hoi_distill.stages.keys import Columns, Count, Fraction
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import ArrowOutput, Batch, Values
from hoi_distill.stages.teacher.detectors.given import TOP
from hoi_distill.stages.teacher.detectors.open_vocabulary import (
    OBJECT_BOXES,
    object_boxes,
    put_in,
    refuse_nameless,
)
from hoi_distill.stages.teacher.florence.asking import FlorenceStage
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

STEPS = 1000
"""Places along a side of an image."""
Answer = tuple[list[int], list[float]]
"""Token ids, and the logarithm of the probability of each but the first."""


class FlorenceBoxes(FlorenceStage):
    """Boxes of objects by name, by Florence-2's phrase grounding. Each column is the name of an object.

    A cell holds the boxes that the model writes for the name, at most 100, by the mean probability of their places; an object
    that is not there may get a box too. ``open_vocabulary_detections`` makes the detections of a vocabulary of them.
    """

    name = "object_boxes"
    asks: ClassVar[str] = "object_names"
    output = ArrowOutput(OBJECT_BOXES)

    class Config(FlorenceStage.Config):
        columns: Columns
        """The names of objects, or ``object_names``, all of the vocabulary. Each is asked by itself."""
        prompt: str = "Locate the phrases in the caption: {phrase}"
        """How a name is put: with ``{name}``, or with ``{phrase}``, the name with its article. ``Locate {name} in the image.`` is
        the model's task of open-vocabulary detection."""
        max_new_tokens: Count = 256
        """Where an answer is cut."""
        least: Fraction = 0.0
        """Score from which a box is stored."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        refuse_nameless(config.prompt)
        self.prompt, self.least = config.prompt, config.least

    @override
    def sentence(self, column: str) -> str:
        return put_in(self.prompt, column)

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            **super().parameters(),
            "prompt": self.prompt,
            "asked": "each name by itself",
            "score": "geometric mean of the probabilities of four places",
            "least": self.least,
            "top": TOP,
        }

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        super().open(device, shared)
        ids = self.tokenizer.convert_tokens_to_ids([f"<loc_{step}>" for step in range(STEPS)])
        self.bins = {token: step for step, token in enumerate(ids) if token not in (None, self.tokenizer.unk_token_id)}
        if len(self.bins) < STEPS:
            raise UserError(
                f"{self.checkpoint.folder}: its tokenizer has {len(self.bins)} of the {STEPS} places <loc_0> to "
                f"<loc_{STEPS - 1}>; fetch the checkpoint again"
            )
        self.marks = set(self.tokenizer.added_tokens_decoder) - self.bins.keys()

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        sizes = [image.size for image in batch.images]
        frames = np.array(sizes, np.float32)
        found = {}
        with torch.inference_mode():
            seen = self.seen(batch)
            for column in columns:
                boxes = [self._boxes(answer) for answer in self._answers(seen, column)]
                boxes += boxes[-1:] * (len(sizes) - batch.count)
                found[column] = object_boxes(np.stack(boxes), frames, sizes, self.least)
        return found

    def _answers(self, seen: torch.Tensor, column: str) -> list[Answer]:
        """The answers about B images."""
        import torch

        def forward(positions: np.ndarray) -> list[Answer]:
            chances = _Chances()
            written = self.answers(taken(seen, positions), column, chances).tolist()
            of_steps = torch.stack(chances.of_steps, dim=1)
            if not of_steps.isfinite().all():
                raise FloatingPointError(f"table {self.name}: the model's answers are not finite at dtype {self.dtype}")
            return list(zip(written, of_steps.tolist(), strict=True))

        return [answer for part in in_parts(forward, len(seen), self.rows, self.device) for answer in part]

    def _boxes(self, answer: Answer) -> np.ndarray:
        """The best boxes of one answer, float32 ``[TOP, 5]``: cxcywh (fractions) and score, best first, then zeros."""
        boxes = np.zeros((TOP, 5), np.float32)
        found = sorted(places(*answer, self.bins, self.marks), key=lambda place: -place[1])[:TOP]
        for row, (steps, score) in zip(boxes, found, strict=False):
            row[:4] = box_ops.xyxy_to_cxcywh((np.array(steps, np.float32) + 0.5) / STEPS)
            row[4] = score
        return boxes


class _Chances:
    """Hears of the logits of each next token, and keeps the logarithm of the probability of the likeliest, which is written."""

    def __init__(self) -> None:
        self.of_steps: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.of_steps.append(logits.log_softmax(dim=-1).amax(dim=-1))
        return logits


def places(
    ids: Sequence[int], log_probabilities: Sequence[float], bins: Mapping[int, int], marks: set[int]
) -> list[tuple[list[int], float]]:
    """The boxes of an answer: places that stand behind words, four a box. What is left of a run is no box.

    Args:
        ids: T + 1 token ids; the first is where writing started.
        log_probabilities: of the T others.
        bins: the step of each token that is a place.
        marks: the other special tokens: the end, or the beginning of a polygon.

    Returns:
        Of each box four steps (left, top, right, bottom) and its score in [0, 1].
    """
    found: list[tuple[list[int], float]] = []
    run: list[tuple[int, float]] = []
    is_behind_words = False
    for token, chance in zip(ids[1:], log_probabilities, strict=True):
        if token not in bins:
            is_behind_words, run = token not in marks, []
            continue
        run.append((bins[token], chance))
        if len(run) == 4 and is_behind_words:
            found.append(([step for step, _ in run], math.exp(math.fsum(each for _, each in run) / 4)))
        if len(run) == 4:
            run = []
    return found
