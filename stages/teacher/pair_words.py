"""How pairs are put in words, and shown: for models that read images and write, in the worker or behind a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hoi_distill.stages.data.prompts import noun_phrase, this_one
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.teacher.pair_questions import AsksAboutPairs, Form
from hoi_distill.stages.teacher.pair_views import BLUR, MARGIN, VIEWS
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Coordinates = Literal["pixels", "thousandths", "fractions"]
View = Literal["whole", "blur", "crop"]
BOXES = ("{person_box}", "{object_box}")
MARKS: Mapping[str, str] = {
    "whole": "A person is at {person_box} and {object} is at {object_box}.",
    "blur": "A person and {object} are in focus.",
    "crop": "A person and {object} are in the image.",
}
"""What is said of a pair, by what is seen of it."""
QUESTIONS: Mapping[Form, str] = {
    "yes_no": "Is this person {action}? Answer with yes or no.",
    "likelihood": "What is this person doing?",
}
"""What is asked, by the form of the answer."""


@dataclass(frozen=True)
class PairQuestion:
    """One question about one pair.

    Attributes:
        number: the pair's number.
        pair: its human and object, positions among the instances.
        column: the verb's column.
        text: what is said of the pair, and asked.
        candidate: the answer whose likelihood is asked for; "" where the answer is yes or no.
    """

    number: int
    pair: tuple[int, int]
    column: str
    text: str
    candidate: str = ""


class AsksInWords(AsksAboutPairs):
    """A stage that says where a pair is, or shows it, and then asks about one verb."""

    class Config(AsksAboutPairs.Config):
        view: View = "whole"
        """What the model sees: the image; the image blurred around both boxes; or the part around them. The image is shared by
        all its pairs, the others go through the model once a pair."""
        marks: str | None = None
        """What is said of a pair before the questions, with ``{object}``, and ``{person_box}`` and ``{object_box}``, which a view
        other than ``whole`` may do without. Default: by the view."""
        question: str | None = None
        """How a verb is asked, with ``{action}``: "riding this bicycle". Default: "Is this person {action}? Answer with yes or
        no." """

    def __init__(self, config: Config, vocabulary: Vocabulary, form: Form = "yes_no") -> None:
        super().__init__(config, vocabulary)
        self.vocabulary, self.view, self.form = vocabulary, config.view, form
        self.question = QUESTIONS[form] if config.question is None else config.question
        self.marks = MARKS[config.view] if config.marks is None else config.marks
        needed = ("{object}", *(BOXES if self.view == "whole" else ()))
        action = ("{action}",) if form == "yes_no" else ()
        if form == "likelihood" and "{action}" in self.question:
            raise UserError("question: what likelihoods are asked for is the answer; leave {action} out")
        for key, said, marks in (("marks", self.marks, needed), ("question", self.question, action)):
            if absent := [mark for mark in marks if said.count(mark) != 1]:
                raise UserError(f"{key}: {said!r} must hold {absent[0]} once")
        if self.view == "crop" and any(mark in self.marks for mark in BOXES):
            raise UserError("marks: boxes are those of the image, of which view: crop shows a part; leave them out")

    def words(self, coordinates: Coordinates) -> dict[str, Any]:
        """What the fingerprint says of the words and the view; of ``coordinates`` only where boxes are written."""
        form = {"marks": self.marks, "question": self.question}
        if any(mark in self.marks for mark in BOXES):
            form |= {"coordinates": coordinates}
        seen = {"whole": {}, "blur": {"view": "blur", "blur": BLUR}, "crop": {"view": "crop", "margin": MARGIN}}
        return {**form, **seen[self.view]}

    def said(
        self, boxes: Sequence[str], instances: Mapping[str, Any], columns: Sequence[str], only: int | None = None
    ) -> list[PairQuestion]:
        """All questions about an image, or about the pair of one number, by pair, then by column.

        Args:
            boxes: of each instance, as it is written.
            instances: a cell of the table of boxes.
            columns: which questions.
            only: the number of a pair; None: all.
        """
        found = []
        for column in columns:
            verb = int(self.verbs[self.columns.index(column)])
            numbers, pairs = self.pairs_of(instances, column)
            for number, (human, object_) in zip(numbers.tolist(), pairs.tolist(), strict=True):
                if only not in (None, number):
                    continue
                name = self.vocabulary.objects[int(instances["labels"][object_])]
                where = self.marks.replace("{person_box}", boxes[human]).replace("{object_box}", boxes[object_])
                what = noun_phrase(name)
                action = self.vocabulary.action(verb, name).format(this_one(name))
                asked = self.question.replace("{action}", action)
                candidate = self.vocabulary.action(verb, name).format(what) if self.form == "likelihood" else ""
                text = f"{where.replace('{object}', what)} {asked}"
                found.append(PairQuestion(number, (human, object_), column, text, candidate))
        return sorted(found, key=lambda each: each.number)

    def view_of(self, image: Image.Image, instances: Mapping[str, Any], pair: Sequence[int]) -> Image.Image:
        """What is shown of a pair, where the view is not the whole image."""
        boxes = np.asarray(instances["boxes"], np.int64).reshape(-1, 4)
        return VIEWS[self.view](image, boxes[pair[0]], boxes[pair[1]])


def written(instances: Mapping[str, Any], coordinates: Coordinates, size: tuple[int, int]) -> list[str]:
    """The boxes of an image as they are written.

    Args:
        instances: a cell of the table of boxes.
        coordinates: see :class:`hoi_distill.stages.teacher.pair_answers.PairAnswers`.
        size: (width, height) in pixels of the image as the model gets it.
    """
    sides = np.array([instances["width"], instances["height"]] * 2, np.float64)
    boxes = np.asarray(instances["boxes"], np.float64).reshape(-1, 4) / np.maximum(sides, 1)
    if coordinates == "fractions":
        return [f"[{', '.join(f'{value:.2f}' for value in box)}]" for box in boxes.tolist()]
    scale = np.full(4, 1000.0) if coordinates == "thousandths" else np.tile(size, 2)
    return [str(box) for box in np.rint(boxes * scale).astype(int).tolist()]
