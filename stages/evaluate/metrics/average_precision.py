"""Matching, ranking and average precision of scored detections, as array operations on columns.

Detections and annotated pairs (ground truth, ``gt``) are columns. Each of them belongs to a *group*: the pairs of one
class in one image. A detection can only match ground truth of its own group. Evaluators disagree on four things, and
each is one function or one argument here: what overlap is (:func:`iou`), which ground truth a detection takes
(:func:`best_matches`, :func:`first_unused_matches`), how detections rank (:func:`ranking`), and on which recall grid
precision is read (:func:`interpolated_precision`).

:func:`all_point_precision` and :func:`tie_averaged_precision` are two other definitions of average precision. They give
other digits than :func:`interpolated_precision`. Weights of images are in
:mod:`hoi_distill.stages.evaluate.metrics.bootstrap`.
"""

from __future__ import annotations

import numpy as np

_TENTHS = np.arange(11)
RECALL_GRID = _TENTHS * 0.1
"""The official eleven recall levels, ``k * 0.1`` *in floating point*: the fourth is 0.30000000000000004, so a class
with ten annotated pairs, three of them found, has not reached it. The exact grid ``k / 10`` gives other numbers."""

RECALL_GRIDS: dict[str, np.ndarray | None] = {
    "official": RECALL_GRID,
    "linspace": np.where(_TENTHS < 5, _TENTHS * 0.1, 1 - (10 - _TENTHS) * 0.1),
    "exact": _TENTHS / 10,
    "all": None,
}
"""Recall levels by name; None is every recall. torch.linspace and MATLAB count from both ends to the middle."""


def iou(a: np.ndarray, b: np.ndarray, short: float = 0.0, least: float = 0.0) -> np.ndarray:
    """Intersection over union of boxes taken pairwise.

    Args:
        a: ``float [M, 4]``, xyxy pixels, zero-based half-open, so that the width is ``x2 - x1``.
        b: ``float [M, 4]``, in the same format.
        short: pixels to subtract from every side: 1 gives ``x2 - x1`` of inclusive boxes.
        least: the intersection is empty if its width or height is not above this.

    Returns:
        ``float64 [M]``; 0 where both boxes are empty.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) - short
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) - short
    intersection = np.where((width > least) & (height > least), width * height, 0.0)
    area = [(box[:, 2] - box[:, 0] - short).clip(0) * (box[:, 3] - box[:, 1] - short).clip(0) for box in (a, b)]
    union = area[0] + area[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def candidates(group: np.ndarray, gt_group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a detection and a ground truth of the same group.

    Args:
        group: ``int64 [D]`` group of each detection.
        gt_group: ``int64 [G]`` group of each ground truth.

    Returns:
        ``detection`` and ``gt``, int64 [M]: positions, sorted by detection and then by ground truth.
    """
    by_group = np.argsort(gt_group, kind="stable")
    sorted_group = gt_group[by_group]
    first = np.searchsorted(sorted_group, group, "left")
    inside = first < len(sorted_group)
    inside[inside] = sorted_group[first[inside]] == group[inside]
    some = np.flatnonzero(inside)  # most detections name a class that their image does not show
    first = first[some]
    count = np.searchsorted(sorted_group, group[some], "right") - first
    start = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(some)), count)
    return some[owner], by_group[np.arange(len(owner)) - start[owner] + first[owner]]


def highest(detection: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """The candidate of each detection with the highest overlap, the first of equals.

    Args:
        detection: ``int64 [M]``, non-decreasing, from :func:`candidates`.
        overlap: ``float [M]``.

    Returns:
        ``int64 [K]`` positions among the candidates.
    """
    if not len(detection):
        return np.zeros(0, np.int64)
    start = np.flatnonzero(np.append(True, detection[1:] != detection[:-1]))
    owner = np.repeat(np.arange(len(start)), np.diff(np.append(start, len(detection))))
    at_highest = np.flatnonzero(overlap == np.maximum.reduceat(overlap, start)[owner])
    return at_highest[np.unique(owner[at_highest], return_index=True)[1]]


def best_matches(detection: np.ndarray, gt: np.ndarray, overlap: np.ndarray, close: np.ndarray) -> np.ndarray:
    """The candidates that match when a detection is compared only with the ground truth that it overlaps most.

    A detection is a true positive if that overlap is enough and no higher-ranked detection took the ground truth.
    Otherwise it is a false positive, even if it overlaps another ground truth enough.

    Args:
        detection: ``int64 [M]`` from :func:`candidates`; detections are numbered by rank.
        gt: ``int64 [M]`` from :func:`candidates`.
        overlap: ``float64 [M]``.
        close: ``bool [M]`` whether the overlap is enough.

    Returns:
        ``int64 [K]`` positions among the candidates; no detection and no ground truth occurs twice.
    """
    best = highest(detection, overlap)
    best = best[close[best]]
    return best[np.sort(np.unique(gt[best], return_index=True)[1])]


def first_unused_matches(detection: np.ndarray, gt: np.ndarray, close: np.ndarray) -> np.ndarray:
    """As :func:`best_matches`, but a detection takes the first stored ground truth that is close and not yet taken.

    Args:
        detection: ``int64 [M]`` from :func:`candidates`; detections are numbered by rank.
        gt: ``int64 [M]`` from :func:`candidates`.
        close: ``bool [M]`` whether the overlap is enough.
    """
    matched, taken, last = [], set(), -1
    near = np.flatnonzero(close)
    for position, which, pair in zip(near.tolist(), detection[near].tolist(), gt[near].tolist(), strict=True):
        if which != last and pair not in taken:
            matched.append(position)
            taken.add(pair)
            last = which
    return np.array(matched, np.int64)


def ranking(klass: np.ndarray, score: np.ndarray, image: np.ndarray, ties: str = "first") -> np.ndarray:
    """The order of the detections, ``int64 [D]``: by class, then by falling score.

    Args:
        klass: ``int [D]``.
        score: ``float [D]``.
        image: ``int [D]`` image.
        ties: how equal scores rank. "first": by image, then as stored. "last_stored": by image, then the last
            stored first. "last": by falling image, then the last stored first.
    """
    falling = -score.astype(np.float64)
    if ties == "first":
        return np.lexsort((image, falling, klass))
    stored = np.arange(len(klass))
    return np.lexsort((-stored, -image.astype(np.int64) if ties == "last" else image, falling, klass))


def interpolated_precision(
    klass: np.ndarray, is_tp: np.ndarray, positives: np.ndarray, grid: np.ndarray | None = RECALL_GRID
) -> np.ndarray:
    """Average precision per class: the mean, over the recall levels of ``grid``, of the highest precision at or beyond.

    Args:
        klass: ``int [D]`` class of each detection, in rank order (:func:`ranking`), so non-decreasing.
        is_tp: ``bool [D]`` which detections are true positives, in the same order.
        positives: ``int [C]`` annotated pairs of each class.
        grid: recall levels ``float64 [L]``. None reads precision at every recall from 1 / P to P / P, P being the
            annotated pairs of the class: the area under the curve.

    Returns:
        ``float64 [C]`` between 0 and 1; NaN for a class without annotated pairs.
    """
    found = np.flatnonzero(is_tp)  # precision falls between true positives, so only they can carry a maximum
    found_class = klass[found]
    first = np.searchsorted(found_class, np.arange(len(positives) + 1))
    nth = 1 + np.arange(len(found)) - first[found_class]
    precision = nth / (1 + found - np.searchsorted(klass, found_class))
    average = np.full(len(positives), np.nan)
    for which in np.flatnonzero(positives):
        beyond = np.maximum.accumulate(precision[first[which] : first[which + 1]][::-1])[::-1]
        if grid is None:
            average[which] = beyond.sum() / positives[which]
            continue
        recall = np.arange(1, len(beyond) + 1) / positives[which]
        reached = np.searchsorted(recall, grid)
        average[which] = beyond[reached[reached < len(beyond)]].sum() / len(grid)
    return average


def all_point_precision(is_tp: np.ndarray, positives: int) -> np.float32:
    """All-point average precision of one class in single precision, as V-COCO's official code computes it.

    Args:
        is_tp: ``bool [D]`` which detections are true positives, by falling score.
        positives: annotated persons of the class.

    Returns:
        A fraction; NaN for a class without annotated persons.
    """
    if not positives:
        return np.float32(np.nan)
    found = np.cumsum(is_tp, dtype=np.float32)
    precision = (found / np.arange(1, len(is_tp) + 1, dtype=np.float32)).astype(np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], found / np.float32(positives)])
    return np.float32((np.diff(recall) * envelope).sum())


def tie_averaged_precision(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Average precision without interpolation, in which equal scores have no order.

    It is the mean, over the positive items, of the precision among all items that score at least as much.

    Args:
        score: ``float [N]``.
        is_positive: ``bool [N]``, at least one of them true.
    """
    values, group = np.unique(-score, return_inverse=True)
    hits = np.bincount(group, weights=is_positive, minlength=len(values))
    precision = hits.cumsum() / np.bincount(group, minlength=len(values)).cumsum()
    return float((precision * hits).sum() / hits.sum())
