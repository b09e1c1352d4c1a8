"""Yes/no answers about each human-object pair by a BLIP that is shown the pair's boxes, or by one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count
from hoi_distill.stages.stage import Batch, Values
from hoi_distill.stages.teacher.blip.first_token import answer_ids, log_probabilities
from hoi_distill.stages.teacher.blip.stages import BlipStage
from hoi_distill.stages.teacher.pair_questions import AsksAboutPairs, answer_cells
from hoi_distill.storage.shards.cells import cells

MARKED = "ForPairQuestions"
"""How the name of an architecture ends that is shown boxes."""


class BlipPairAnswers(AsksAboutPairs, BlipStage):
    """Answers of a BLIP about each human-object pair. Each column is a verb; a cell is that of stage ``pair_answers``.

    The teacher is asked each interaction's verification question ("is there anybody riding a bicycle?"). One with marks
    (``stages/teacher/pico/marked``) is shown the boxes of the pair. Any other captioner answers about the image, and every pair
    of its objects gets that answer: a control, by which to see what the boxes are worth.
    """

    families: ClassVar[tuple[str, ...]] = ("",)
    architectures: ClassVar[tuple[str, ...]] = (
        "BlipForConditionalGeneration", "PicoBlipForConditionalGeneration", f"PicoBlip{MARKED}",
    )  # fmt: skip
    example: ClassVar[str] = "stages/teacher/pico/marked"

    class Config(AsksAboutPairs.Config, BlipStage.Config):
        batch_size: BatchSize = 1
        """Without effect: images are looked at one at a time, since each wants questions of its own."""
        questions_at_once: Count = 64
        """Questions about an image in one forward: it bounds the memory, and changes no value beyond rounding."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        BlipStage.__init__(self, config)
        AsksAboutPairs.__init__(self, config, vocabulary)
        self.batch_size = AsksAboutPairs.batch_size
        self.marked = self.checkpoint.architecture.endswith(MARKED)
        self.at_once = config.questions_at_once
        self.question_of = {hoi: question for question, hoi in vocabulary.questions().items()}

    @override
    def parameters(self) -> dict[str, Any]:
        told = {"question": "verification question", "answer": "log-probabilities of the first token"}
        return {**BlipStage.parameters(self), "marks": "boxes" if self.marked else "none", **told}

    @override
    def provenance(self) -> dict[str, Any]:
        return {**BlipStage.provenance(self), **AsksAboutPairs.provenance(self)}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key not in ("ids_of", "answer_ids")}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        super().open(device, shared)
        self.answer_ids = answer_ids(self.tokenizer, self.checkpoint.folder)
        first = self.model.config.text_config.bos_token_id
        encoded = self.tokenizer([*self.question_of.values()], add_special_tokens=False)["input_ids"]
        self.ids_of = {hoi: [first, *ids] for hoi, ids in zip(self.question_of, encoded, strict=True)}

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        found = cells(inputs[self.instances]["value"])
        with torch.inference_mode():
            states = self.encode(batch)
            rows = [self.answers(states[row : row + 1], found(row), columns) for row in range(len(states))]
        return {column: answer_cells([row[column] for row in rows]) for column in columns}

    def answers(
        self, state: Any, instances: Mapping[str, Any] | None, columns: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The answers about one image, see :meth:`hoi_distill.stages.teacher.pair_answers.PairAnswers.answers`.

        Args:
            state: float ``[1, 1 + h*w, D]``, the vision tower's last hidden state.
            instances: its cell of the table of boxes; None: it has none.
            columns: the questions.
        """
        if instances is None:
            return dict.fromkeys(columns, (np.empty(0, np.int64), np.empty((0, 2), np.float32)))
        labels = np.asarray(instances["labels"], np.int64)
        asked = [self.pairs_of(instances, column) for column in columns]
        pairs = np.concatenate([pairs for _, pairs in asked])
        hoi = np.concatenate(
            [
                self.hoi_of[self.columns.index(column)][labels[pairs[:, 1]]]
                for column, (_, pairs) in zip(columns, asked, strict=True)
            ]
        )
        sides = np.maximum(np.array([instances["width"], instances["height"]] * 2, np.float32), 1)
        boxes = np.asarray(instances["boxes"], np.float32).reshape(-1, 4) / sides
        told = self.told(state, hoi, boxes[pairs])
        ends = np.cumsum([len(number) for number, _ in asked])[:-1]
        parts = np.split(told, ends)
        return {column: (number, part) for column, (number, _), part in zip(columns, asked, parts, strict=True)}

    def told(self, state: Any, hoi: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """float32 ``[Q, 2]``, logarithms of yes and no.

        Args:
            state: as above.
            hoi: int ``[Q]``, what is asked.
            boxes: float32 ``[Q, 2, 4]``, human and object, xyxy as fractions of the image's sides.
        """
        import torch

        from hoi_distill.stages.teacher.blip.question_decoder import answer_logits, padded

        place = np.arange(len(hoi))
        if not self.marked:
            hoi, place = np.unique(hoi, return_inverse=True)
        told = [np.empty((0, 2), np.float32)]
        for start in range(0, len(hoi), self.at_once):
            part = slice(start, start + self.at_once)
            ids, lengths = (
                each.to(self.device) for each in padded([[self.ids_of[each] for each in hoi[part].tolist()]])
            )
            if self.marked:
                logits = self.model.answers(state, ids, lengths, torch.from_numpy(boxes[None, part]).to(self.device))
            else:
                logits = answer_logits(self.model.text_decoder, state, ids, lengths)
            told.append(log_probabilities(logits[0], *self.answer_ids).cpu().numpy())
        found: np.ndarray = np.concatenate(told)[place]
        return found
