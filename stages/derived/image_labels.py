"""Image-level labels from what a teacher said and answered, with their doubts: what a student learns in place of annotations.

A reimplementation in the CL-HOI style (arXiv 2410.15657 publishes no such rules; these are a reconstruction). Only
interactions with an object that was detected are judged; of these

    target = (extracted + p_yes) / 2            extracted: the weight of the triplet read from the text, else 0
    target >= 0.5 positive, <= 0.1 negative, in between ignored: a text leaves true interactions out

and where the question was not asked

    target = extracted                          >= 0.5 positive; else a negative that weighs little, for silence is no denial

The target of no_interaction is the product of (1 - p) over the other verbs of its object, p being p_yes or else what was
extracted, times the detector's score: nothing else says that the object is there at all. Interactions with objects that
were not detected are ordinary negatives and are not listed.

Shapes: B images, H interactions, O objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from typing_extensions import override

from hoi_distill.stages.data.label_kinds import IGNORED, NEGATIVE, POSITIVE
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.stages.teacher.seen_objects import PERSON, presence
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import UserError

NOT_SEEN = "object or person not detected"
LABELS = pa.struct(
    [
        ("hoi", pa.list_(pa.int16())),
        ("target", pa.list_(pa.float32())),
        ("kind", pa.list_(pa.int8())),
        ("weight", pa.list_(pa.float32())),
        ("dropped", pa.list_(pa.struct([("phrase", pa.string()), ("reason", pa.string())]))),
    ]
)
"""A cell: the judged interactions, ascending, each with its target in [0, 1], its kind (1 positive, 0 negative, -1 ignored)
and its weight in a loss (0 where ignored); what was read from the text but concerns nothing that was detected."""


@dataclass(frozen=True)
class Rules:
    """When a target is a label.

    Attributes:
        least: The detector's score from which an object counts.
        positive: The least target of a positive.
        negative: The largest target of a negative, where the question was asked.
        silence: The weight of what rests on the text's silence alone.
    """

    least: float = 0.1
    positive: float = 0.5
    negative: float = 0.1
    silence: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.negative < self.positive <= 1:
            raise UserError(
                f"image_labels: 0 <= negative < positive <= 1 is needed; got {self.negative} and {self.positive}"
            )


@dataclass(frozen=True)
class InteractionLabels:
    """Labels of B images. What is not listed has target 0, kind negative and weight 1.

    Attributes:
        listed: bool ``[B, H]``, whether the interaction's object was detected, so that the label is stored.
        target: float32 ``[B, H]`` in [0, 1].
        kind: int8 ``[B, H]``, see :mod:`hoi_distill.stages.data.label_kinds`.
        weight: float32 ``[B, H]``, 0 where ignored.
    """

    listed: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    weight: np.ndarray


def label_interactions(
    extracted: np.ndarray,
    p_yes: np.ndarray,
    there: np.ndarray,
    *,
    nothing: np.ndarray,
    objects: np.ndarray,
    rules: Rules,
) -> InteractionLabels:
    """Labels of every interaction.

    Args:
        extracted: float32 ``[B, H]`` in [0, 1], 0 where the text says nothing.
        p_yes: float32 ``[B, H]`` in [0, 1], NaN where nothing was asked.
        there: float32 ``[B, O]``, see :func:`hoi_distill.stages.teacher.seen_objects.presence`.
        nothing: bool ``[H]``, the interactions that are no_interaction.
        objects: int ``[H]``, the object of each interaction.
        rules: When a target is a label.
    """
    asked = ~np.isnan(p_yes)
    p = np.where(asked, p_yes, extracted)
    target = np.where(asked, 0.5 * (extracted + p), extracted).astype(np.float32)
    silent = ~asked & (extracted < rules.positive)
    graded = asked.copy()  # where a middling target is a doubt and not a silence
    for hoi in np.flatnonzero(nothing):  # one an object
        others = ~nothing & (objects == objects[hoi])
        target[:, hoi] = np.prod(1 - p[:, others], axis=1) * there[:, objects[hoi]]
        silent[:, hoi] = ~asked[:, others].all(axis=1) & (target[:, hoi] >= rules.positive)
        graded[:, hoi] = True
    listed = there[:, objects] >= np.float32(rules.least)
    positive = target >= rules.positive
    negative = np.where(graded, target <= rules.negative, ~positive)
    kind = np.where(positive, POSITIVE, np.where(negative, NEGATIVE, IGNORED)).astype(np.int8)
    weight = np.where(kind == IGNORED, 0, np.where(silent, rules.silence, 1)).astype(np.float32)
    return InteractionLabels(
        listed,
        np.where(listed, target, 0).astype(np.float32),
        np.where(listed, kind, NEGATIVE).astype(np.int8),
        np.where(listed, weight, 1).astype(np.float32),
    )


class ImageLabels(Stage):
    """HOI labels of whole images, from triplets and, where there are any, yes/no answers. One column, ``value``; pure
    arithmetic, without images.
    """

    name = "image_labels"
    decodes = False
    columns = ("value",)
    output = ArrowOutput(LABELS)

    class Config(Stage.Config):
        texts: Annotated[tuple[str, ...], Field(min_length=1)]
        """The columns of the triplets table to read (the caption and the list, say)."""
        triplets: str = "triplets"
        """The configuration's name of the triplets table."""
        detections: str = "detections"
        """The configuration's name of the detections table."""
        verification: str | None = None
        """The configuration's name of the table of yes/no answers, whose columns are ``verification_questions``. Default:
        labels of the text alone."""
        least: float = Rules.least
        """Detector's score from which an object counts."""
        positive: float = Rules.positive
        """Least target of a positive."""
        negative: float = Rules.negative
        """Largest target of a negative, where the question was asked."""
        silence: float = Rules.silence
        """Weight of what rests on the text's silence alone."""
        batch_size: Count = 256
        """Rows per step."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        self.texts = config.texts
        self.rules = Rules(config.least, config.positive, config.negative, config.silence)
        self.triplets, self.detections, self.verification = config.triplets, config.detections, config.verification
        self.inputs = tuple(name for name in (self.triplets, self.detections, self.verification) if name)
        self.batch_size, self.questions = config.batch_size, dict(vocabulary.questions())
        self.hois = vocabulary.hois.astype(np.int64)
        self.nothing = ~vocabulary.actions()
        self.hoi_of = np.zeros(self.hois.max(axis=0, initial=0) + 1, np.int64)
        self.hoi_of[self.hois[:, 0], self.hois[:, 1]] = np.arange(len(self.hois))
        self.names = fingerprint({"verbs": list(vocabulary.verbs), "hois": self.hois.tolist()})

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            "vocabulary": self.names,
            **asdict(self.rules),
            "no_interaction": "nobody does anything else, times the score of the box",
        }

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]]:
        needed: dict[str, tuple[str, ...]] = {self.triplets: self.texts, self.detections: ("value",)}
        return needed if self.verification is None else {**needed, self.verification: tuple(self.questions)}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {"value": label_cells(self.judged(inputs), self.dropped(inputs))}

    def judged(self, inputs: Mapping[str, Mapping[str, Values]], verified: bool = True) -> InteractionLabels:
        """The labels of these rows; without the answers to questions where ``verified`` is False."""
        extracted = self._extracted(inputs[self.triplets])
        p_yes = np.full(extracted.shape, np.nan, np.float32)
        if verified and self.verification is not None:
            for question, answers in inputs[self.verification].items():
                p_yes[:, self.questions[question]] = pc.struct_field(answers, "score").to_numpy(zero_copy_only=False)
        return label_interactions(
            extracted, p_yes, self._there(inputs), nothing=self.nothing, objects=self.hois[:, 1], rules=self.rules
        )

    def _there(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray:
        return presence(inputs[self.detections]["value"], int(self.hois[:, 1].max(initial=PERSON)) + 1)

    def _extracted(self, triplets: Mapping[str, Values]) -> np.ndarray:
        """float32 ``[B, H]``: the largest weight of each interaction in any of the texts."""
        found = np.zeros((len(triplets[self.texts[0]]), len(self.hois)), np.float32)
        for text in self.texts:
            row, hoi = self._entries(triplets[text])
            np.maximum.at(found, (row, hoi), _values(triplets[text], "weight").to_numpy(zero_copy_only=False))
        return found

    def dropped(self, inputs: Mapping[str, Mapping[str, Values]]) -> list[list[dict[str, str]]]:
        """Of each row the phrases whose triplets concern nothing that was detected, each once, and why."""
        seen = self._there(inputs) >= np.float32(self.rules.least)
        found: list[dict[str, str]] = [{} for _ in range(len(seen))]
        for text in self.texts:
            row, hoi = self._entries(inputs[self.triplets][text])
            unseen = np.flatnonzero(~seen[row, self.hois[hoi, 1]])
            phrases = _values(inputs[self.triplets][text], "phrase").take(pa.array(unseen)).to_pylist()
            for index, phrase in zip(row[unseen].tolist(), phrases, strict=True):
                found[index][phrase] = NOT_SEEN
        return [[{"phrase": phrase, "reason": reason} for phrase, reason in each.items()] for each in found]

    def _entries(self, cells: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Row and interaction of every triplet of a column, int64 each."""
        row = pc.list_parent_indices(pc.struct_field(cells, "verb")).to_numpy(zero_copy_only=False)
        verb, obj = (_values(cells, name).to_numpy(zero_copy_only=False) for name in ("verb", "object"))
        return row, self.hoi_of[verb, obj]


def label_cells(judged: InteractionLabels, dropped: Sequence[Sequence[Mapping[str, str]]]) -> pa.Array:
    """:data:`LABELS` of each row."""
    row, hoi = np.nonzero(judged.listed)
    offsets = pa.array(np.cumsum([0, *judged.listed.sum(axis=1)]), pa.int32())
    entries = [pa.array(values[row, hoi]) for values in (judged.target, judged.kind, judged.weight)]
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (pa.array(hoi, pa.int16()), *entries)]
    said = pa.array(list(map(list, dropped)), LABELS.field("dropped").type)
    return pa.StructArray.from_arrays([*lists, said], fields=list(LABELS))


def _values(cells: pa.Array, name: str) -> pa.Array:
    """What the lists of one field hold, all cells one after another; a null cell holds nothing."""
    return pc.struct_field(cells, name).flatten()
