"""Gates: which verbs an image is not asked about pair by pair, because something cheaper says that it does not show them.

A gate chooses cells and changes none, so it enters neither fingerprint nor digests; the commit records name it. A share of what
the gates spare is asked all the same.

Shapes: B images, C columns (verbs), H interactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.stage import Values
from hoi_distill.stages.teacher.seen_objects import PERSON
from hoi_distill.storage.digests import combine64, digest64
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        by: ``question``: the probability of yes about the whole image, largest over the verb's interactions; ``match``: the
            same of image-text matching; ``prior``: the product of the scores of the best person and the best object that the
            verb takes.
        table: the configuration's name of the yes/no answers (columns ``verification_questions``), of the matching scores
            (columns ``prompts``) or of the detections.
        least: the least value that is let through. What was not asked there is let through.
    """

    by: Literal["question", "match", "prior"]
    table: str
    least: float


class PairGates:
    """All gates of a table.

    Args:
        gates: the gates.
        audit: share of what they spare that is asked all the same.
        vocabulary: whose interactions.
        columns: the C questions.
        hoi_of: int16 ``[C, O]``, the interaction of each column's verb with an object, -1 where there is none.

    Raises:
        UserError: a gate's ``least`` is no probability, or two gates read one table.
    """

    def __init__(
        self, gates: Sequence[Gate], audit: float, vocabulary: Vocabulary, columns: Sequence[str], hoi_of: np.ndarray
    ) -> None:
        for gate in gates:
            if not 0 <= gate.least <= 1:
                raise UserError(f"gates: least is {gate.least:g} for {gate.table}; it is a probability, from 0 to 1")
        self.gates, self.audit, self.hoi_of = tuple(gates), audit, hoi_of
        self.tables = tuple(gate.table for gate in gates)
        if len(set(self.tables)) < len(self.tables):
            raise UserError(f"gates: two read the table {self.tables[0]}; give one of them")
        self.columns = tuple(columns)
        prompts = {prompt: hoi for hoi, prompt in enumerate(vocabulary.prompts())}
        self.said = {"question": vocabulary.questions(), "match": prompts, "prior": {}}
        """By kind of gate: the interaction that each upstream column is about."""

    def record(self) -> dict[str, Any]:
        """For the commit records."""
        return {"gates": [asdict(gate) for gate in self.gates], "audit": self.audit} if self.gates else {}

    def inputs(self, column: str) -> dict[str, tuple[str, ...]]:
        """The upstream columns by which a question is let through, by table."""
        about = set(self.hoi_of[self.columns.index(column)].tolist())
        read = {
            gate.table: tuple(text for text, hoi in self.said[gate.by].items() if hoi in about) for gate in self.gates
        }
        return read | {gate.table: ("value",) for gate in self.gates if gate.by == "prior"}

    def asked(self, inputs: Mapping[str, Mapping[str, Values]], instances: pa.Array) -> np.ndarray:
        """bool ``[B, C]``: what is let through, and what is audited."""
        passed = self.passed(inputs, len(instances))
        return passed | self.audited(instances) if self.gates else passed

    def passed(self, inputs: Mapping[str, Mapping[str, Values]], rows: int) -> np.ndarray:
        """bool ``[B, C]``: what every gate lets through.

        Args:
            inputs: the upstream cells of B rows.
            rows: B.
        """
        through = np.ones((rows, len(self.hoi_of)), bool)
        for gate in self.gates:
            values = inputs[gate.table]
            likely = self._prior(values["value"]) if gate.by == "prior" else self._image(gate, values, rows)
            through &= ~(likely < gate.least)
        return through

    def audited(self, instances: pa.Array) -> np.ndarray:
        """bool ``[B, C]``: what is asked whatever the gates say; drawn by an image's boxes and the column, so that the same
        cells are drawn every time."""
        image = np.array([digest64(repr(cell).encode()) for cell in instances.to_pylist()], np.uint64)
        column = np.array([digest64(text.encode()) for text in self.columns], np.uint64)
        drawn: np.ndarray = combine64(image[:, None], column[None]) < np.uint64(self.audit * 2.0**63) * np.uint64(2)
        return drawn

    def _image(self, gate: Gate, values: Mapping[str, Values], rows: int) -> np.ndarray:
        """float32 ``[B, C]``: what is said of the whole image; NaN where nothing was asked."""
        likely = np.full((rows, len(self.columns)), np.nan, np.float32)
        told = {text: probabilities(answers) for text, answers in values.items()}
        for column, hois in enumerate(self.hoi_of):
            about = set(hois[hois >= 0].tolist())
            for text, hoi in self.said[gate.by].items():
                if hoi in about and text in told:
                    likely[:, column] = np.fmax(likely[:, column], told[text])
        return likely

    def _prior(self, detections: pa.Array) -> np.ndarray:
        """float32 ``[B, C]``: the largest product of scores of a person and an object that the verb takes."""
        objects = self.hoi_of.shape[1]
        best, second = best_scores(detections, objects)
        found = best * best[:, [PERSON]]
        found[:, PERSON] = second * best[:, PERSON]
        takes = self.hoi_of >= 0
        prior: np.ndarray = np.where(takes[None], found[:, None], 0).max(axis=2)
        return prior


def probabilities(answers: pa.Array) -> np.ndarray:
    """float32 ``[B]``: the probability of yes, or of a match; NaN where nothing was asked.

    Args:
        answers: cells with a ``score``, or of two matching logits (no match, match).
    """
    if pa.types.is_struct(answers.type):
        found: np.ndarray = pc.struct_field(answers, "score").to_numpy(zero_copy_only=False)
        return found.astype(np.float32)
    logits = np.array([(np.nan, np.nan) if pair is None else pair for pair in answers.to_pylist()], np.float64)
    match: np.ndarray = 1 / (1 + np.exp(logits.reshape(-1, 2) @ (1.0, -1.0)))
    return match.astype(np.float32)


def best_scores(detections: pa.Array, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """The best score of each object, float32 ``[B, objects]``, and of the second best person, float32 ``[B]``; 0 without one."""
    best, second = np.zeros((len(detections), objects), np.float32), np.zeros(len(detections), np.float32)
    for row, cell in enumerate(detections.to_pylist()):
        if cell is not None:
            scores, labels = np.asarray(cell["scores"], np.float32), np.asarray(cell["labels"], np.int64)
            np.maximum.at(best[row], labels[labels < objects], scores[labels < objects])
            second[row] = np.sort(np.append(scores[labels == PERSON], (0, 0)))[-2]
    return best, second
