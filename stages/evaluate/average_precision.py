"""Average precision of scored human-object pairs, as array operations on columns.

Detections and annotated pairs ("truths") are given as columns. Every one belongs to a *group*, the pairs of one class
in one picture, and a detection can only match a truth of its own group. What evaluators disagree on is one function or
one named argument here: how a truth is chosen (:func:`best_match`), from which overlap it counts
(:func:`true_positives`), and on which recall grid precision is read (:func:`interpolated_precision`).
"""

from __future__ import annotations

import numpy as np

RECALL_GRID = np.arange(11) * 0.1
"""The official eleven recall levels, ``k * 0.1`` *in floating point*: the fourth is 0.30000000000000004, so a class
with ten annotated pairs, three of them found, has not reached it. The exact grid ``k / 10`` gives other numbers."""


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes taken pairwise.

    Args:
        a, b: ``float [M, 4]``, xyxy pixels, zero-based half-open, so that width is ``x2 - x1``.

    Returns:
        ``float64 [M]``; 0 where both boxes are empty.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    intersection = width.clip(0) * height.clip(0)
    union = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def best_match(
    group: np.ndarray,
    boxes: tuple[np.ndarray, np.ndarray],
    truth_group: np.ndarray,
    truths: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the truth of its group that it overlaps most, whether or not another detection has taken it.

    Args:
        group: ``int64 [D]`` group of each detection.
        boxes: human and object boxes of the detections, ``float [D, 4]`` each.
        truth_group: ``int64 [G]``.
        truths: human and object boxes of the truths, ``float [G, 4]`` each.

    Returns:
        ``overlap`` float64 [D], the highest min(IoU of humans, IoU of objects), 0 in a group without truths; ``truth``
        int64 [D], that truth's position (the first stored of equals), -1 in a group without truths.
    """
    overlap, truth = np.zeros(len(group)), np.full(len(group), -1, np.int64)
    by_group = np.argsort(truth_group, kind="stable")
    sorted_group = truth_group[by_group]
    first = np.searchsorted(sorted_group, group, "left")
    count = np.searchsorted(sorted_group, group, "right") - first
    some = np.flatnonzero(count)  # most detections name a class that their picture does not show
    if not len(some):
        return overlap, truth
    first, count = first[some], count[some]
    start = np.cumsum(count) - count  # candidates of detection some[i]: start[i] ... start[i] + count[i]
    owner = np.repeat(np.arange(len(some)), count)
    candidate = by_group[np.arange(len(owner)) - start[owner] + first[owner]]
    overlaps = np.minimum(*(iou(box[some[owner]], true[candidate]) for box, true in zip(boxes, truths, strict=True)))
    overlap[some] = highest = np.maximum.reduceat(overlaps, start)
    at_highest = np.flatnonzero(overlaps == highest[owner])
    _, first_of_equals = np.unique(owner[at_highest], return_index=True)
    truth[some] = candidate[at_highest[first_of_equals]]
    return overlap, truth


def ranking(klass: np.ndarray, score: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Order of the detections, ``int64 [D]``: by class, by falling score, ties by picture and then as stored."""
    return np.lexsort((image, -score.astype(np.float64), klass))


def true_positives(order: np.ndarray, overlap: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Which detections are right: overlap at or above ``threshold``, and the first in ``order`` with that truth.

    Args:
        order: ``int64 [D]`` from :func:`ranking`.
        overlap, truth: from :func:`best_match`.

    Returns:
        ``bool [D]``, aligned with ``order`` (not with the stored detections).
    """
    right = np.zeros(len(order), bool)
    close = np.flatnonzero(overlap[order] >= threshold)
    _, earliest = np.unique(truth[order[close]], return_index=True)
    right[close[earliest]] = True
    return right


def interpolated_precision(
    klass: np.ndarray, right: np.ndarray, positives: np.ndarray, grid: np.ndarray = RECALL_GRID
) -> np.ndarray:
    """Average precision per class: the mean, over the recall levels of ``grid``, of the highest precision at or beyond.

    Args:
        klass: ``int [D]`` class of each detection, ranked (:func:`ranking`), so non-decreasing.
        right: ``bool [D]`` from :func:`true_positives`, in the same order.
        positives: ``int [C]`` annotated pairs of each class.

    Returns:
        ``float64 [C]`` between 0 and 1; NaN for a class without annotated pairs.
    """
    found = np.flatnonzero(right)  # precision falls between true positives, so only they can carry a maximum
    found_class = klass[found]
    nth = 1 + np.arange(len(found)) - np.searchsorted(found_class, found_class)
    precision = nth / (1 + found - np.searchsorted(klass, found_class))
    recall = nth / positives[found_class]
    total = np.zeros(len(positives))
    for level in grid:
        highest = np.zeros(len(positives))
        reached = recall >= level
        np.maximum.at(highest, found_class[reached], precision[reached])
        total += highest
    return np.where(positives > 0, total / len(grid), np.nan)
