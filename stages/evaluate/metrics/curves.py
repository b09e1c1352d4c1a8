"""Precision and recall along a ranking, class by class: what average precision sums up, as something to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np


def undecided(klass: np.ndarray, score: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``bool [M]``: detections of a class that share their score with others of it, some of them right, some wrong, so that
    the order among equals is up to the evaluator and may move average precision.

    Args:
        klass, score, right: of M detections as they are judged: by class, then by falling score.
    """
    if not len(klass):
        return np.zeros(0, bool)
    begins = np.flatnonzero(np.append(True, (klass[1:] != klass[:-1]) | (score[1:] != score[:-1])))
    size = np.diff(np.append(begins, len(klass)))
    found = np.add.reduceat(right.astype(np.int64), begins)
    return np.repeat((found > 0) & (found < size), size)


@dataclass(frozen=True, eq=False)
class Ranking:
    """M counted detections of one setting in the order in which they are judged: by class, then by falling score.

    Attributes:
        row: ``int64 [M]`` position among the stored detections.
        klass: ``int64 [M]``, non-decreasing.
        image: ``int64 [M]`` picture.
        score: ``float [M]``.
        right: ``bool [M]`` whether it found a pair.
        pair_class, pair_image: ``int64 [G]`` class and picture of each annotated pair of the setting.
        classes: their number, C.
    """

    row: np.ndarray
    klass: np.ndarray
    image: np.ndarray
    score: np.ndarray
    right: np.ndarray
    pair_class: np.ndarray
    pair_image: np.ndarray
    classes: int

    @property
    def positives(self) -> np.ndarray:
        """``int64 [C]`` annotated pairs of each class."""
        return np.bincount(self.pair_class, minlength=self.classes)

    def rank(self) -> np.ndarray:
        """``int64 [M]`` place of each detection within its class, from 0."""
        return np.arange(len(self.klass)) - np.searchsorted(self.klass, self.klass)

    def in_pictures(self, shown: np.ndarray) -> Ranking:
        """What is left when each class looks only at the pictures where ``bool [N, C]`` says so."""
        left, pairs = self.without(~shown[self.image, self.klass]), shown[self.pair_image, self.pair_class]
        return replace(left, pair_class=self.pair_class[pairs], pair_image=self.pair_image[pairs])

    def without(self, gone: np.ndarray) -> Ranking:
        """The ranking that is left without the detections where ``bool [M]`` says so."""
        kept = ~gone
        return replace(
            self,
            row=self.row[kept],
            klass=self.klass[kept],
            image=self.image[kept],
            score=self.score[kept],
            right=self.right[kept],
        )

    def ties(self, sets: Mapping[str, np.ndarray]) -> dict[str, int]:
        """How many :func:`undecided` detections there are in each set of classes, ``bool [C]`` by name."""
        count = np.bincount(self.klass[undecided(self.klass, self.score, self.right)], minlength=self.classes)
        return {name: int(count[chosen].sum()) for name, chosen in sets.items()}


def suffix_maximum(klass: np.ndarray, precision: np.ndarray, classes: int) -> np.ndarray:
    """The highest precision at or after each position within its class: the upper envelope of the curve.

    Args:
        klass: ``int64 [T]``, non-decreasing, below ``classes``.
        precision: ``float64 [T]`` in [0, 1].
    """
    offset = 2.0 * (classes - klass)  # keeps a later class from reaching into an earlier one
    return np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset


def precision_recall(ranking: Ranking, most: int = 32) -> list[list[tuple[float, float]]]:
    """The corners of each class's interpolated curve: ``(recall, precision)``, recall rising, precision falling.

    Up to a corner's recall, precision at or beyond is the corner's; after the last one it is 0. Corners above ``most``
    are thinned out at even steps; the first and the last are kept. Empty for a class of which nothing was found.
    """
    found = np.flatnonzero(ranking.right)  # precision falls between true positives
    klass = ranking.klass[found]
    start = np.searchsorted(klass, np.arange(ranking.classes + 1))
    nth = 1 + np.arange(len(found)) - start[klass]
    precision = nth / (1 + found - np.searchsorted(ranking.klass, klass))
    envelope = suffix_maximum(klass, precision, ranking.classes)
    recall = nth / np.maximum(ranking.positives[klass], 1)
    curves = []
    for first, end in pairwise(start.tolist()):
        corners = first + np.flatnonzero(np.diff(envelope[first:end], append=-1.0) < -1e-9)
        if len(corners) > most:
            corners = corners[np.linspace(0, len(corners) - 1, most).round().astype(int)]
        curves.append(list(zip(recall[corners].tolist(), envelope[corners].tolist(), strict=True)))
    return curves
