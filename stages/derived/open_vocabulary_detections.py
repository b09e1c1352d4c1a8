"""Detections of a vocabulary's objects, made of the boxes that an open-vocabulary detector found for each name.

A cell is what every detector of this project stores (:data:`hoi_distill.stages.teacher.detectors.given.DETECTIONS`), with the
vocabulary's own objects as labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count, Fraction
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.detectors.transformers import cells
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import UserError, did_you_mean


class OpenVocabularyDetections(Stage):
    """Detections of the vocabulary's objects, from the boxes of their names; pure arithmetic, without images.

    Of each object the boxes above its threshold are kept that overlap no better one; of an image the best 100.
    """

    name = "detections"
    decodes = False
    columns = ("value",)
    output = ArrowOutput(DETECTIONS)

    class Config(Stage.Config):
        boxes: str = "object_boxes"
        """The configuration's name of the table of boxes by name."""
        least: Fraction = 0.0
        """Score from which a box counts."""
        least_of: dict[str, Fraction] = Field(default={})
        """The same of single objects, ``{person: 0.2}``."""
        also: dict[str, tuple[str, ...]] = Field(default={})
        """Other names whose boxes count as an object's, ``{person: [man, woman]}``; columns of ``boxes`` too."""
        overlap: Fraction = 0.5
        """Largest intersection over union of two boxes of one object that both stay."""
        batch_size: Count = 256
        """Rows per step."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        names = vocabulary.object_names()
        for key in ("least_of", "also"):
            for name in getattr(config, key):
                if name not in names:
                    raise UserError(f"{key}.{name}: the vocabulary has no such object{did_you_mean(name, names)}")
        for name, others in config.also.items():
            if known := [other for other in others if other in names]:
                raise UserError(f"also.{name}: {known[0]!r} is an object of the vocabulary itself; leave it out")
        self.names, self.inputs, self.batch_size = names, (config.boxes,), config.batch_size
        self.also, self.overlap = dict(config.also), config.overlap
        self.least, self.least_of = config.least, dict(config.least_of)

    @property
    def asked(self) -> dict[str, int]:
        """``{column of the boxes: label}``."""
        labels = {name: label for label, name in enumerate(self.names)}
        return labels | {other: labels[name] for name, others in self.also.items() for other in others}

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            "detector": "boxes of names",
            "objects": fingerprint({"asked": self.asked}),
            "least": self.least,
            "least_of": self.least_of,
            "overlap": self.overlap,
            "top": TOP,
        }

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.inputs[0]: tuple(self.asked)}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        given = inputs[self.inputs[0]]
        row, label, boxes, scores = self._counting(given)
        order = np.argsort(row, kind="stable")
        ends = np.searchsorted(row[order], np.arange(batch.count + 1))
        found = []
        for start, stop in itertools.pairwise(ends):
            here = order[start:stop]
            best = here[box_ops.best_apart(boxes[here], scores[here], label[here], self.overlap, TOP)]
            found.append((boxes[best], scores[best], label[best]))
        found += found[-1:] * (len(batch.row_ids) - batch.count)
        first = given[self.names[0]]
        sides = [pc.fill_null(pc.struct_field(first, side), 0).to_pylist() for side in ("width", "height")]
        return {"value": cells(found, list(zip(*sides, strict=True)), DETECTIONS)}

    def _counting(self, given: Mapping[str, Values]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Row int64, label int16, box float32 ``[N, 4]`` and score float32 of every box that is above its threshold."""
        parts = []
        for column, label in self.asked.items():
            scores = pc.struct_field(given[column], "scores")
            row = pc.list_parent_indices(scores).to_numpy(zero_copy_only=False)
            if not len(row):
                continue
            score = scores.flatten().to_numpy(zero_copy_only=False)
            box = pc.struct_field(given[column], "boxes").flatten().flatten().to_numpy(zero_copy_only=False)
            counts = score >= np.float32(self.least_of.get(self.names[label], self.least))
            parts.append(
                (row[counts], np.full(counts.sum(), label, np.int16), box.reshape(-1, 4)[counts], score[counts])
            )
        if not parts:
            none = np.zeros(0, np.float32)
            return none.astype(np.int64), none.astype(np.int16), none.reshape(0, 4), none
        rows, labels, boxes, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        return rows, labels, boxes, scores
