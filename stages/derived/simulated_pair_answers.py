"""Answers about pairs that are read off the annotations and then spoilt: a teacher of known quality, for study.

Two knobs spoil them: the share of answers that belong to another pair of the same objects, so that they say what is in the image
and not where, and the share that is turned round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from typing_extensions import override

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import CountOrNone, Fraction, Positive
from hoi_distill.stages.ops.instances import associate, ordered_pairs
from hoi_distill.stages.stage import Batch, Values
from hoi_distill.stages.teacher.pair_questions import AsksAboutPairs, answer_cells
from hoi_distill.storage.digests import digest64
from hoi_distill.storage.shards.cells import cells


class SimulatedPairAnswers(AsksAboutPairs):
    """Answers about pairs that are read off the annotations, of all images, and spoilt by known shares. A control, no teacher."""

    decodes = False

    class Config(AsksAboutPairs.Config):
        elsewhere: Fraction = 0.0
        """Share of answers that are those to another pair of the image whose object is of the same class."""
        flipped: Fraction = 0.0
        """Share of answers that are turned round."""
        sure: Positive = 4.0
        """Log-odds of every answer, positive or negative."""
        iou: Fraction = 0.5
        """Least overlap of both boxes with those of an annotated pair."""
        seed: CountOrNone = 0

    def __init__(self, config: Config, vocabulary: Vocabulary, annotations: Annotations) -> None:
        super().__init__(config, vocabulary)
        self.annotations = annotations
        self.elsewhere, self.flipped, self.sure = config.elsewhere, config.flipped, config.sure
        self.iou, self.seed = config.iou, config.seed

    @override
    def parameters(self) -> dict[str, Any]:
        spoilt = {"elsewhere": self.elsewhere, "flipped": self.flipped, "sure": self.sure, "seed": self.seed}
        return {"teacher": "annotations", "iou": self.iou, **spoilt}

    @cached_property
    def _record_of(self) -> dict[str, int]:
        return {str(key): record for record, key in enumerate(self.annotations.image_id)}

    @override
    def source_digests(self, keys: Sequence[str]) -> np.ndarray:
        digests = self.annotations.digests()
        return np.array([digest64(digests[self._record_of[key]].tobytes()) for key in keys], np.uint64)

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        found = cells(inputs[self.instances]["value"])
        rows = [self.told(key, found(row), columns) for row, key in enumerate(batch.keys)]
        return {column: answer_cells([row[column] for row in rows]) for column in columns}

    def told(
        self, key: str, instances: Mapping[str, Any] | None, columns: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The answers about one image, see :meth:`hoi_distill.stages.teacher.pair_answers.PairAnswers.answers`."""
        instances = {"boxes": (), "labels": (), "humans": 0} if instances is None else instances
        boxes = np.asarray(instances["boxes"], np.float32).reshape(-1, 4)
        labels = np.asarray(instances["labels"], np.int64)
        human, other = ordered_pairs(int(instances["humans"]), len(labels)).T
        own = self.annotations.pairs(self._record_of[key])
        hoi = self.annotations.hoi[own]
        true = associate(
            boxes[human],
            boxes[other],
            self.annotations.human_box[own],
            self.annotations.object_box[own],
            hoi,
            iou=self.iou,
        )
        found = {}
        for column in columns:
            place = self.columns.index(column)
            number, pairs = self.pairs_of(instances, column)
            asked = self.hoi_of[place][labels[pairs[:, 1]]]
            yes = (number[:, None] == true[:, 0]) & (asked[:, None] == true[:, 1])
            answer = self.spoilt(yes.any(1), asked, f"{key} {column}")
            sure = np.where(answer, self.sure, -self.sure)
            found[column] = number, -np.logaddexp(0, np.stack((-sure, sure), 1))
        return found

    def spoilt(self, yes: np.ndarray, hoi: np.ndarray, name: str) -> np.ndarray:
        """bool ``[N]``: true answers ``[N]`` about pairs that are asked for interactions (int ``[N]``), spoilt; always alike for
        one ``name``."""
        draw = np.random.default_rng([self.seed, digest64(name.encode())])
        told = yes.copy()
        for each in np.unique(hoi):
            places = np.flatnonzero(hoi == each)
            if len(places) > 1:
                moved = draw.random(len(places)) < self.elsewhere
                others = places[(np.arange(len(places)) + draw.integers(1, len(places), len(places))) % len(places)]
                told[places[moved]] = yes[others[moved]]
        flips: np.ndarray = told ^ (draw.random(len(told)) < self.flipped)
        return flips
