"""Precision and recall along a ranking, class by class: the curve behind an average precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np


def undecided(klass: np.ndarray, score: np.ndarray, is_tp: np.ndarray) -> np.ndarray:
    """Detections that share class and score with others, some true positives and some false ones among them.

    The order among such equals is up to the evaluator and may move average precision.

    Args:
        klass: ``int64 [M]`` of the detections in rank order: by class, then by falling score.
        score: ``float [M]``.
        is_tp: ``bool [M]`` whether each is a true positive.

    Returns:
        ``bool [M]``.
    """
    if not len(klass):
        return np.zeros(0, bool)
    begins = np.flatnonzero(np.append(True, (klass[1:] != klass[:-1]) | (score[1:] != score[:-1])))
    size = np.diff(np.append(begins, len(klass)))
    found = np.add.reduceat(is_tp.astype(np.int64), begins)
    return np.repeat((found > 0) & (found < size), size)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The M counted detections of one setting in rank order: by class, then by falling score.

    Attributes:
        row: ``int64 [M]`` position among the stored detections.
        klass: ``int64 [M]``, non-decreasing.
        image: ``int64 [M]`` image.
        score: ``float [M]``.
        is_tp: ``bool [M]`` whether it is a true positive.
        gt_class: ``int64 [G]`` class of each annotated pair of the setting.
        gt_image: ``int64 [G]`` image of each annotated pair of the setting.
        classes: number of classes, C.
        images: number of images, N.
    """

    row: np.ndarray
    klass: np.ndarray
    image: np.ndarray
    score: np.ndarray
    is_tp: np.ndarray
    gt_class: np.ndarray
    gt_image: np.ndarray
    classes: int
    images: int

    @property
    def positives(self) -> np.ndarray:
        """``int64 [C]`` annotated pairs of each class."""
        return np.bincount(self.gt_class, minlength=self.classes)

    def rank(self) -> np.ndarray:
        """``int64 [M]`` place of each detection within its class, from 0."""
        return np.arange(len(self.klass)) - np.searchsorted(self.klass, self.klass)

    def select(self, detections: np.ndarray, gt: np.ndarray | None = None) -> Ranking:
        """The ranking of a part of the detections and annotated pairs.

        Args:
            detections: ``bool [M]``, True where a detection stays.
            gt: ``bool [G]``, True where an annotated pair stays; None keeps all.
        """
        return replace(
            self,
            row=self.row[detections],
            klass=self.klass[detections],
            image=self.image[detections],
            score=self.score[detections],
            is_tp=self.is_tp[detections],
            gt_class=self.gt_class if gt is None else self.gt_class[gt],
            gt_image=self.gt_image if gt is None else self.gt_image[gt],
        )

    def ties(self, sets: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Number of :func:`undecided` detections in each set of classes.

        Args:
            sets: ``bool [C]`` by name.
        """
        count = np.bincount(self.klass[undecided(self.klass, self.score, self.is_tp)], minlength=self.classes)
        return {name: int(count[chosen].sum()) for name, chosen in sets.items()}


def suffix_maximum(klass: np.ndarray, precision: np.ndarray, classes: int) -> np.ndarray:
    """The highest precision at or after each position within its class: the upper envelope of the curve.

    Args:
        klass: ``int64 [T]``, non-decreasing, below ``classes``.
        precision: ``float64 [T]`` in [0, 1].
        classes: number of classes.
    """
    offset = 2.0 * (classes - klass)  # keeps a later class from reaching into an earlier one
    return np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset


def precision_recall(ranking: Ranking, most: int = 32) -> list[list[tuple[float, float]]]:
    """The corners ``(recall, precision)`` of each class's interpolated curve, by rising recall and falling precision.

    Up to a corner's recall, the highest precision at or beyond is the corner's. After the last corner it is 0.

    Args:
        ranking: of all classes.
        most: keep so many corners, at even steps; the first and the last stay.

    Returns:
        One list a class, empty where the class has no true positive.
    """
    found = np.flatnonzero(ranking.is_tp)  # precision falls between true positives
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
