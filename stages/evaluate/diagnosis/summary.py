"""The diagnosis of one detections file as tables: how often each error occurs, what it costs, and what is confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES, Diagnosis, confusions, decisive
from hoi_distill.stages.evaluate.metrics.bootstrap import WeightedPrecision
from hoi_distill.stages.evaluate.metrics.curves import Ranking

LISTED = 12
"""Confusions of verbs, or of objects, in a table."""


@dataclass(frozen=True)
class ErrorRow:
    """One category of detections.

    Attributes:
        kind: a key of :data:`hoi_distill.stages.evaluate.diagnosis.errors.KINDS`.
        text: its description.
        decisive: how many of them are among the n best of their class
            (:func:`hoi_distill.stages.evaluate.diagnosis.errors.decisive`).
        all: how many of them are counted.
        gain: percentage points that the mean average precision would rise without them; 0 for true positives.
    """

    kind: str
    text: str
    decisive: int
    all: int
    gain: float


@dataclass(frozen=True)
class MissRow:
    """One reason why annotated pairs were missed, and how many pairs.

    Attributes:
        reason: a key of :data:`hoi_distill.stages.evaluate.diagnosis.errors.MISSES`.
        text: its description.
        pairs: how many.
    """

    reason: str
    text: str
    pairs: int


@dataclass(frozen=True)
class ConfusionRow:
    """``count`` decisive detections said class ``said`` on a pair annotated as class ``annotated``."""

    annotated: int
    said: int
    count: int


@dataclass(frozen=True, eq=False)
class ErrorSummary:
    """The diagnosis as tables.

    Attributes:
        errors: categories of detections.
        misses: reasons of missed pairs.
        verbs: the most frequent confusions of verbs.
        objects: the most frequent confusions of objects.
        class_kinds: ``int [C, kinds]`` decisive detections of each class and category.
        class_misses: ``int [C, reasons]`` missed pairs of each class and reason.
    """

    errors: Sequence[ErrorRow]
    misses: Sequence[MissRow]
    verbs: Sequence[ConfusionRow]
    objects: Sequence[ConfusionRow]
    class_kinds: np.ndarray
    class_misses: np.ndarray

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """The tables of the whole file."""
        return {
            "detections": [vars(row) | {"gain": round(row.gain, 6)} for row in self.errors],
            "missed_pairs": [vars(row) for row in self.misses],
            "verbs_confused": [vars(row) for row in self.verbs],
            "objects_confused": [vars(row) for row in self.objects],
        }


def summarise(
    diagnosis: Diagnosis,
    ranking: Ranking,
    ranked_pairs: np.ndarray,
    *,
    grid: np.ndarray | None,
    hoi_of: np.ndarray,
    averaged: int | None = None,
) -> ErrorSummary:
    """Count the errors, and measure what each kind costs under the default setting's ranking.

    Args:
        diagnosis: of the whole file.
        ranking: of the default setting.
        ranked_pairs: ``int64 [G]`` rows of the diagnosis's pairs that the ranking's ground truth is.
        grid: recall levels of average precision, None for all points.
        hoi_of: ``int [V, O]`` class of a verb and an object, -1 where they are none; it names the classes of a
            confusion.
        averaged: number of classes in the mean, by default those that have pairs.
    """
    kind, miss, first = diagnosis.kind[ranking.row], diagnosis.miss[ranked_pairs], decisive(ranking)
    weight = np.ones(ranking.images, np.int64)
    classes = averaged or max(1, int(np.count_nonzero(ranking.positives)))

    def mean(part: Ranking) -> float:
        return float(np.nansum(WeightedPrecision(part, grid).average_precision(weight))) / classes

    whole = mean(ranking)
    errors = []
    for number, (name, text) in enumerate(KINDS.items()):
        here = kind == number
        gain = 100 * (mean(ranking.select(~here)) - whole) if number and here.any() else 0.0
        errors.append(ErrorRow(name, text, int((here & first).sum()), int(here.sum()), gain))
    verbs, objects = (
        _confused(diagnosis, ranking.row[first & (kind == list(KINDS).index(name))], hoi_of)
        for name in ("wrong verb", "wrong object")
    )
    missed = miss >= 0
    return ErrorSummary(
        errors=errors,
        misses=[MissRow(name, text, int((miss == n).sum())) for n, (name, text) in enumerate(MISSES.items())],
        verbs=verbs,
        objects=objects,
        class_kinds=_table(ranking.klass[first], kind[first], ranking.classes, len(KINDS)),
        class_misses=_table(ranking.gt_class[missed], miss[missed], ranking.classes, len(MISSES)),
    )


def _confused(diagnosis: Diagnosis, rows: np.ndarray, hoi_of: np.ndarray) -> list[ConfusionRow]:
    """The most frequent confusions of the detections ``rows``."""
    detections, pairs = diagnosis.detections, diagnosis.pairs
    row, pair = confusions(detections, pairs, rows)
    said = hoi_of[detections.verb[row], detections.object[row]]
    annotated = hoi_of[pairs.verb[pair], pairs.object[pair]]
    both, count = np.unique(np.stack([annotated, said], 1), axis=0, return_counts=True)
    order = np.argsort(-count, kind="stable")[:LISTED]
    return [ConfusionRow(int(both[i, 0]), int(both[i, 1]), int(count[i])) for i in order]


def _table(klass: np.ndarray, category: np.ndarray, classes: int, categories: int) -> np.ndarray:
    return np.bincount(klass * categories + category, minlength=classes * categories).reshape(classes, categories)
