"""Questions about each human-object pair of an image: which are asked, and how their answers are kept.

A row is an image and a column a verb. A cell has an answer for each pair whose object allows the verb. The pairs are those of
the cells of :mod:`hoi_distill.stages.derived.instances`, counted as in
:func:`hoi_distill.stages.ops.instances.ordered_pairs`.

Shapes: B images, C columns, O objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Columns, Rate
from hoi_distill.stages.ops.instances import ordered_pairs
from hoi_distill.stages.stage import ArrowOutput, Stage, Values
from hoi_distill.stages.teacher.pair_gates import Gate, PairGates
from hoi_distill.stages.teacher.seen_objects import PERSON
from hoi_distill.storage.errors import UserError

Form = Literal["yes_no", "likelihood"]
PAIR_ANSWERS = pa.struct(
    [("pair", pa.list_(pa.int16())), ("yes", pa.list_(pa.float32())), ("no", pa.list_(pa.float32()))]
)
"""A cell: the pairs that were asked about, rising, and of each the logarithm of the probability that the answer begins with yes,
and with no, however these are written. The two need not add up to 1. Of the form ``likelihood`` they are those of one answer,
with the image and without it."""


class AsksAboutPairs(Stage):
    """A stage whose columns are :meth:`hoi_distill.stages.data.vocabulary.Vocabulary.pair_questions`, asked of every pair whose
    object allows the verb."""

    name = "pair_answers"
    output = ArrowOutput(PAIR_ANSWERS)
    batch_size = 1
    """Each image wants questions of its own."""
    asks: ClassVar[str] = "pair_questions"
    """The columns of its example."""
    form: Form = "yes_no"
    """What a cell's two logarithms are of: a yes and a no, or an answer with the image and without it."""

    class Config(Stage.Config):
        columns: Columns
        """``pair_questions``, or some of them."""
        instances: str = "instances"
        """The configuration's name of the table of boxes, written by stage ``instances``."""
        gates: tuple[Gate, ...] = ()
        """What spares an image a verb; each has to let it through."""
        audit: Rate = 0.05
        """Share of what the gates spare that is asked all the same, so that ``pair-report`` can say what they cost."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        known = vocabulary.pair_questions()
        if strange := [column for column in config.columns if column not in known]:
            raise UserError(f"columns: {strange[0]!r} is no question about pairs; write columns: pair_questions")
        self.columns, self.instances = config.columns, config.instances
        self.verbs = np.array([known[column] for column in config.columns], np.int64)
        self.hoi_of = vocabulary.hoi_id()[self.verbs]
        """int16 ``[C, O]``: the interaction of a column's verb with an object, -1 where there is none."""
        self.gates = PairGates(config.gates, config.audit, vocabulary, config.columns, self.hoi_of)
        self.inputs = (config.instances, *self.gates.tables)

    @override
    def provenance(self) -> dict[str, Any]:
        return self.gates.record()

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        return {self.instances: ("value",)} if self.gates.tables else None

    @override
    def selection_inputs(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.instances: ("value",), **self.gates.inputs(column)}

    @override
    def select_cells(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray:
        """The verbs that some pair's object allows, and that every gate lets through; and the audited ones."""
        instances = inputs[self.instances]["value"]
        allowed = self.allowed(instances)
        return allowed & self.gates.asked(inputs, instances)

    def allowed(self, instances: pa.Array) -> np.ndarray:
        """bool ``[B, C]``: the verbs that the object of some pair allows."""
        objects = self.hoi_of.shape[1]
        labels = pc.struct_field(instances, "labels")
        row = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
        label = labels.flatten().to_numpy(zero_copy_only=False)
        count = np.zeros((len(instances), objects), np.int64)
        np.add.at(count, (row[label < objects], label[label < objects]), 1)
        shown = (count > 0) & (count[:, [PERSON]] > 0)
        shown[:, PERSON] = count[:, PERSON] > 1
        found: np.ndarray = (shown.astype(np.float32) @ (self.hoi_of >= 0).T.astype(np.float32)) > 0
        return found

    def pairs_of(self, instances: Mapping[str, Any], column: str) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of an image about which a column asks.

        Args:
            instances: a cell of the table of boxes.
            column: one of the stage's.

        Returns:
            int64 ``[N]``, the number of each pair, rising; int64 ``[N, 2]``, positions of human and object among the instances.
        """
        labels = np.asarray(instances["labels"], np.int64)
        pairs = ordered_pairs(int(instances["humans"]), len(labels))
        takes = np.zeros(int(labels.max(initial=0)) + 1, bool)
        known = self.hoi_of[self.columns.index(column)] >= 0
        takes[: len(known)] = known[: len(takes)]
        number = np.flatnonzero(takes[labels[pairs[:, 1]]])
        return number, pairs[number]


def answer_cells(answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> pa.Array:
    """:data:`PAIR_ANSWERS` of each row.

    Args:
        answers: of each row the numbers of N pairs, int ``[N]``, and float ``[N, 2]`` logarithms of yes and no.
    """
    offsets = pa.array(np.cumsum([0, *(len(number) for number, _ in answers)]), pa.int32())
    number = np.concatenate([np.empty(0, np.int16), *(number.astype(np.int16) for number, _ in answers)])
    logs = np.concatenate([np.empty((0, 2), np.float32), *(each.astype(np.float32) for _, each in answers)])
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(each)) for each in (number, logs[:, 0].copy(), logs[:, 1].copy())
    ]
    return pa.StructArray.from_arrays(lists, fields=list(PAIR_ANSWERS))
