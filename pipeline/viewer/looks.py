"""Where a student looks for a pair, and how like a prompt the cells of a feature map are: what takes more than reading.

A student's checkpoint is loaded, on the CPU, when somebody first asks where it looks. No teacher is ever loaded: the vector of
a prompt is read from the cache.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.pipeline.viewer.tables import ViewedTable
from hoi_distill.stages.student.method import METHODS, method_named
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.student.student import PairAttention, Student

LOADED, REMEMBERED = 2, 16
"""Students, and their attentions of one image each, that stay in memory."""
SAME = 1.5
"""Pixels by which the edges of a written detection and of the student's own pair may differ."""


@dataclass(frozen=True, eq=False)
class Looked:
    """Where a student looks for one pair.

    Attributes:
        human_box: xyxy pixels.
        object_box: xyxy pixels.
        weights: by layer and branch, float32 ``[h, w]`` that sum to 1.
    """

    human_box: list[float]
    object_box: list[float]
    weights: dict[str, np.ndarray]


class Looks:
    """Answers about attention and likeness, of one library."""

    def __init__(self, library: Library) -> None:
        """
        Args:
            library: what is looked at.
        """
        self.library = library
        self._students: OrderedDict[str, Student] = OrderedDict()
        self._attentions: OrderedDict[tuple[str, int], PairAttention] = OrderedDict()

    # ---- attention ----

    @functools.cached_property
    def attending(self) -> frozenset[str]:
        """The names of the runs whose students can tell where they look."""
        attends = {name: method_named(name).attends for name in METHODS}
        methods = {run.name: str(run.student.get("method")).replace("-", "_") for run in self.library.runs.values()}
        return frozenset(name for name, method in methods.items() if attends.get(method))

    def at(self, run: str, row: int) -> tuple[int, Looked]:
        """Where a student looks for the pair of one of its detections.

        Args:
            run: the student's name.
            row: of the detection, as it was written.

        Returns:
            The image's entry, and the attention.

        Raises:
            UserError: there is no such detection; the student has no attention; what it reads is not in the cache; or it
                makes other pairs of what it reads today.
        """
        with self.library.lock:
            errors = self.library.errors(run)
            if not 0 <= row < len(errors.entry) or errors.entry[row] < 0:
                raise UserError(f"pair: {run} has no detection {row} on a shown image")
            entry, found = int(errors.entry[row]), errors.detections
            seen = self._attention(run, entry)
            boxes = np.concatenate([seen.human_box, seen.object_box], axis=1).reshape(-1, 8)
            wanted = np.concatenate([found.human_box[row], found.object_box[row]])
            off = np.abs(boxes - wanted).max(axis=1)
            if not len(off) or off.min() > SAME:
                raise UserError(
                    f"pair: {run} makes no such pair of the boxes that are in the cache today; train or predict anew"
                )
            pair = int(off.argmin())
            weights = {name: each[pair] for name, each in seen.weights.items()}
            return entry, Looked(seen.human_box[pair].tolist(), seen.object_box[pair].tolist(), weights)

    def _attention(self, run: str, entry: int) -> PairAttention:
        key = (run, entry)
        if key not in self._attentions:
            student = self._student(run)
            cells = {role: self._cell(run, role, columns, entry) for role, columns in student.tables().items()}
            self._attentions[key] = student.pair_attention(cells["detections"], cells["features"])
            while len(self._attentions) > REMEMBERED:
                self._attentions.popitem(last=False)
        self._attentions.move_to_end(key)
        return self._attentions[key]

    def _student(self, run: str) -> Student:
        if run not in self.attending:
            raise UserError(
                f"pair: students of {self.library.run(run).student.get('method')} do not tell where they look"
            )
        if run not in self._students:
            from hoi_distill.stages.student.pretrained import load_student

            self._students[run] = load_student(
                self.library.run(run).folder / "checkpoint", self.library.entries.vocabulary
            )
            while len(self._students) > LOADED:
                self._students.popitem(last=False)
        self._students.move_to_end(run)
        return self._students[run]

    def _cell(self, run: str, role: str, columns: tuple[str, ...] | None, entry: int) -> Any:
        """The value that a student reads of one image, from the very table that it was trained with."""
        record = self.library.run(run).folder / "checkpoint" / "config.json"
        fingerprint = json.loads(record.read_text())["identities"].get(role, {}).get("fingerprint")
        table = next((each for each in self.library.tables.values() if each.fingerprint == fingerprint), None)
        answers = [] if table is None else table.answers(entry)
        column = columns[0] if columns else answers[0].column if answers else ""
        value = next((answer.value for answer in answers if answer.column == column), None)
        if value is None:
            raise UserError(
                f"pair: the {role} that {run} reads (table {str(fingerprint)[:16]}) are not in this cache for this image"
            )
        return value

    # ---- likeness to a prompt ----

    def texts_of(self, table: ViewedTable) -> TablePlan | None:
        """The table of text embeddings whose space a table of maps shares; None where there is none, or it is empty.

        That is so of tokens that the teacher's own projection has put beside its texts (``width: projected``), and of the
        embeddings by the same checkpoint.
        """
        stage = None if table.plan is None else table.plan.node.stage
        if getattr(stage, "width", "") != "projected":
            return None
        own = getattr(getattr(stage, "checkpoint", None), "digest", None)
        return next(
            (
                plan
                for plan in self.library.plans.values()
                if plan.node.stage.name == "text_embeddings"
                and plan.table is not None
                and getattr(getattr(plan.node.stage, "checkpoint", None), "digest", "") == own
            ),
            None,
        )

    def prompt_vector(self, table: ViewedTable, interaction: str) -> np.ndarray:
        """float32 ``[C]``: the embedding of an interaction's prompt, in the space of a table's maps.

        Raises:
            UserError: no such interaction; the maps share no space with texts; the embedding is not computed yet.
        """
        prompt = self.library.entries.vocabulary.prompt(self.library.class_of("prompt", interaction))
        plan = self.texts_of(table)
        if plan is None:
            raise UserError(f"prompt: the maps of {table.name} share no space with texts of this configuration")
        source = self.library.workspace.sources["texts"]
        rows = np.array([source.keys.index(prompt)])
        if not plan.readable(rows)[0]:
            raise UserError(f"prompt: {prompt!r} has no embedding yet; {self.library.workspace.mending_command()}")
        return np.asarray(plan.read(rows)["value"].to_pylist()[0], np.float32)
