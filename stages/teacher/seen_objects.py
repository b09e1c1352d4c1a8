"""Questions about objects that are there: which interactions a picture's detections leave possible.

A question about a bicycle is asked where a bicycle was detected (CL-HOI style, after mllms-zs-hoi): a pair needs a person
and the object, a pair of persons two persons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.stage import Stage, Values
from storage.errors import UserError

PERSON = 0
"""Label of a person, in detections as in vocabularies."""


EMPTY: Mapping[str, int] = MappingProxyType({})
"""No questions."""


@dataclass(frozen=True)
class AskedWhere:
    """Ask a picture only what concerns an object that was detected in it.

    Attributes:
        table: the configuration's name of the detections.
        least: score from which a box counts.
    """

    table: str
    least: float = 0.1


class AsksAboutSeen(Stage):
    """A stage whose columns may be :meth:`stages.data.vocabulary.Vocabulary.questions`, put only where their object was
    seen. Detections choose cells and change none, so they enter neither fingerprint nor digests."""

    asked_where: AskedWhere | None = None

    def ask_where(
        self, asked_where: AskedWhere | None, questions: Mapping[str, int], hois: Sequence[tuple[int, int]]
    ) -> None:
        """Set up by the constructor. Pictures are then looked at one at a time, since each wants questions of its own.

        Args:
            questions: ``{question: interaction}``. hois: (verb, object) of each interaction.

        Raises:
            UserError: a column is none of the questions.
        """
        self.asked_where = asked_where
        if asked_where is None:
            return
        if strange := [column for column in self.columns if column not in questions]:
            raise UserError(
                f"asked_where: {strange[0]!r} is no question about an interaction; ask it in a table of its own, "
                "without asked_where"
            )
        self.asked_objects = np.array([hois[questions[column]][1] for column in self.columns], np.int64)
        self.inputs, self.batch_size = (asked_where.table,), 1

    def needs(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        return None if self.asked_where is None else {}

    def chosen_by(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {} if self.asked_where is None else {self.asked_where.table: ("value",)}

    def wants(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray | None:
        """The questions about objects that were seen; none where the detections are a recorded failure."""
        if self.asked_where is None:
            return None
        detections = inputs[self.asked_where.table]["value"]
        seen = seen_objects(detections, self.asked_where.least, int(self.asked_objects.max(initial=PERSON)) + 1)
        return seen[:, self.asked_objects]


def seen_objects(detections: pa.Array, least: float, objects: int) -> np.ndarray:
    """``bool [B, objects]``: whether somebody could be doing something with such an object, by the boxes of at least the
    score ``least``. That takes a person, and two for the object person. Null cells have seen nothing."""
    labels = pc.struct_field(detections, "labels")
    row = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
    label = labels.flatten().to_numpy(zero_copy_only=False)
    score = pc.struct_field(detections, "scores").flatten().to_numpy(zero_copy_only=False)
    counted = (score >= np.float32(least)) & (label < objects)
    count = np.zeros((len(detections), objects), np.int64)
    np.add.at(count, (row[counted], label[counted]), 1)
    seen = (count > 0) & (count[:, [PERSON]] > 0)
    seen[:, PERSON] = count[:, PERSON] > 1
    return seen
