"""Questions about objects that are there: which interactions an image's detections leave possible.

A question about a bicycle is asked where a bicycle was detected (CL-HOI style, after mllms-zs-hoi): a pair needs a person
and the object, a pair of persons two persons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.stage import Stage, Values
from hoi_distill.storage.errors import UserError

PERSON = 0
"""Label of a person, in detections as in vocabularies."""


@dataclass(frozen=True)
class AskedWhere:
    """Ask an image only what concerns an object that was detected in it.

    Attributes:
        table: the configuration's name of the detections.
        least: score from which a box counts.
    """

    table: str
    least: float = 0.1


class AsksAboutSeen(Stage):
    """A stage whose columns may be :meth:`hoi_distill.stages.data.vocabulary.Vocabulary.questions`, put only where
    their object was seen. Detections choose cells and change none, so they enter neither fingerprint nor digests."""

    asked_where: AskedWhere | None = None

    def ask_where(self, asked_where: AskedWhere | None, vocabulary: Vocabulary) -> None:
        """Set up by the constructor. Images are then looked at one at a time, since each wants questions of its own.

        Args:
            asked_where: Which detections choose the questions; None asks every question everywhere.
            vocabulary: Whose questions the columns are.

        Raises:
            UserError: a column is none of the vocabulary's questions.
        """
        self.asked_where = asked_where
        if asked_where is None:
            return
        questions = vocabulary.questions()
        if strange := [column for column in self.columns if column not in questions]:
            raise UserError(
                f"asked_where: {strange[0]!r} is no question about an interaction; ask it in a table of its own, "
                "without asked_where"
            )
        self.asked_objects = np.array([vocabulary.hois[questions[column]][1] for column in self.columns], np.int64)
        self.inputs, self.batch_size = (asked_where.table,), 1

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        return None if self.asked_where is None else {}

    @override
    def selection_inputs(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {} if self.asked_where is None else {self.asked_where.table: ("value",)}

    @override
    def select_cells(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray | None:
        """The questions about objects that were seen; none where the detections are a recorded failure."""
        if self.asked_where is None:
            return None
        detections = inputs[self.asked_where.table]["value"]
        found = presence(detections, int(self.asked_objects.max(initial=PERSON)) + 1)
        return found[:, self.asked_objects] >= np.float32(self.asked_where.least)


def presence(detections: pa.Array, objects: int) -> np.ndarray:
    """float32 ``[B, objects]``: how surely such an object is there and somebody who could be doing something with it.

    The score of the object's best box or, if that is lower, of the best person; for the object person that of the second
    best person. 0 where one of them is missing; null cells have seen nothing.
    """
    labels = pc.struct_field(detections, "labels")
    row = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
    label = labels.flatten().to_numpy(zero_copy_only=False)
    score = pc.struct_field(detections, "scores").flatten().to_numpy(zero_copy_only=False)
    best = np.zeros((len(detections), objects), np.float32)
    known = label < objects
    np.maximum.at(best, (row[known], label[known]), score[known])
    person = np.flatnonzero(label == PERSON)
    person = person[np.lexsort((-score[person], row[person]))]
    _, first = np.unique(row[person], return_index=True)
    second = first[np.diff(first, append=len(person)) > 1] + 1
    found = np.minimum(best, best[:, [PERSON]])
    found[:, PERSON] = 0
    found[row[person[second]], PERSON] = score[person[second]]
    return found
