"""The diagnosis of one detections file as tables: how often each error occurs, what it costs, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES, Diagnosis, Pairs, confusions, decisive
from hoi_distill.stages.evaluate.metrics.bootstrap import Weighted
from hoi_distill.stages.evaluate.metrics.curves import Ranking


@dataclass(frozen=True)
class ErrorRow:
    """One category of detections. ``decisive`` counts those among the n best of their class (see
    :func:`hoi_distill.stages.evaluate.diagnosis.errors.decisive`), ``all`` every counted one; ``gain`` is what the mean
    average precision would gain, in percentage points, if they were not there (0 for right ones)."""

    kind: str
    text: str
    decisive: int
    all: int
    gain: float


@dataclass(frozen=True)
class MissRow:
    """One reason for which annotated pairs were missed, and how many."""

    reason: str
    text: str
    pairs: int


@dataclass(frozen=True)
class ConfusionRow:
    """``count`` decisive detections said class ``said`` on a pair annotated as ``annotated``."""

    annotated: int
    said: int
    count: int


@dataclass(frozen=True, eq=False)
class ErrorSummary:
    """Tables of the whole file, and per class: ``class_kinds`` int [C, kinds] of decisive detections, ``class_misses`` int
    [C, reasons] of annotated pairs."""

    errors: Sequence[ErrorRow]
    misses: Sequence[MissRow]
    verbs: Sequence[ConfusionRow]
    objects: Sequence[ConfusionRow]
    class_kinds: np.ndarray
    class_misses: np.ndarray

    def as_json(self) -> dict[str, list[dict]]:
        return {
            "detections": [vars(row) | {"gain": round(row.gain, 6)} for row in self.errors],
            "missed_pairs": [vars(row) for row in self.misses],
            "verbs_confused": [vars(row) for row in self.verbs],
            "objects_confused": [vars(row) for row in self.objects],
        }


def summarise(
    detections: Detections,
    pairs: Pairs,
    ranking: Ranking,
    found: Diagnosis,
    ranked_pairs: np.ndarray,
    pictures: int,
    grid: np.ndarray | None,
    hoi_of: np.ndarray,
    averaged: int | None = None,
    most: int = 12,
) -> ErrorSummary:
    """Count, and measure what each kind of error costs under the default setting's ``ranking``.

    Args:
        ranked_pairs: ``int64 [G]`` rows of ``pairs`` that the ranking's pairs are.
        grid: recall levels of average precision, None for all points.
        hoi_of: ``int [V, O]`` class of a verb and an object, -1 where they are none; names both sides of a confusion.
        averaged: classes in the mean, by default those that have pairs.
        most: confusions to list of either sort.
    """
    kind, first = found.kind[ranking.row], decisive(ranking)
    weight = np.ones(pictures, np.int64)
    classes = averaged or max(1, int(np.count_nonzero(ranking.positives)))

    def mean(left: Ranking) -> float:
        return float(np.nansum(Weighted(left, pictures, grid).average_precision(weight))) / classes

    figure = mean(ranking)
    errors = []
    for number, (name, text) in enumerate(KINDS.items()):
        here = kind == number
        gain = 0.0
        if number and here.any():
            gain = 100 * (mean(ranking.without(here)) - figure)
        errors.append(ErrorRow(name, text, int((here & first).sum()), int(here.sum()), gain))
    misses = [
        MissRow(name, text, int((found.miss[ranked_pairs] == n).sum())) for n, (name, text) in enumerate(MISSES.items())
    ]

    verbs, objects = (
        _confused(detections, pairs, ranking.row[first & (kind == list(KINDS).index(name))], hoi_of, most)
        for name in ("wrong verb", "wrong object")
    )
    miss = found.miss[ranked_pairs]
    missed = miss >= 0
    return ErrorSummary(
        errors,
        misses,
        verbs,
        objects,
        _table(ranking.klass[first], kind[first], ranking.classes, len(KINDS)),
        _table(ranking.pair_class[missed], miss[missed], ranking.classes, len(MISSES)),
    )


def _confused(
    detections: Detections, pairs: Pairs, rows: np.ndarray, hoi_of: np.ndarray, most: int
) -> list[ConfusionRow]:
    row, pair = confusions(detections, pairs, rows)
    said = hoi_of[detections.verb[row], detections.object[row]]
    annotated = hoi_of[pairs.verb[pair], pairs.object[pair]]
    both, count = np.unique(np.stack([annotated, said], 1), axis=0, return_counts=True)
    order = np.argsort(-count, kind="stable")[:most]
    return [ConfusionRow(int(both[i, 0]), int(both[i, 1]), int(count[i])) for i in order]


def _table(klass: np.ndarray, category: np.ndarray, classes: int, categories: int) -> np.ndarray:
    return np.bincount(klass * categories + category, minlength=classes * categories).reshape(classes, categories)
