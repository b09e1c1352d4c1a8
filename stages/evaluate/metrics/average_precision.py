"""Average precision of scored human-object pairs, as array operations on columns.

Detections and annotated pairs ("truths") are given as columns. Every one belongs to a *group*, the pairs of one class
in one picture, and a detection can only match a truth of its own group. What evaluators disagree on is one function or
one named argument here: what overlap is (:func:`iou`), how a truth is chosen and from which overlap it counts
(:func:`best_matches`, :func:`first_unused_matches`), how detections rank (:func:`ranking`), and on which recall grid
precision is read (:func:`interpolated_precision`).
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
        a, b: ``float [M, 4]``, xyxy pixels, zero-based half-open, so that width is ``x2 - x1``.
        short: pixels that every side falls short of that: 1 for ``x2 - x1`` of inclusive boxes.
        least: an intersection whose width or height is not above this is empty.

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


def candidates(group: np.ndarray, truth_group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a detection and a truth of the same group.

    Args:
        group: ``int64 [D]`` group of each detection.
        truth_group: ``int64 [G]``.

    Returns:
        ``detection`` and ``truth``, int64 [M]: positions, by detection and then by truth.
    """
    by_group = np.argsort(truth_group, kind="stable")
    sorted_group = truth_group[by_group]
    first = np.searchsorted(sorted_group, group, "left")
    inside = first < len(sorted_group)
    inside[inside] = sorted_group[first[inside]] == group[inside]
    some = np.flatnonzero(inside)  # most detections name a class that their picture does not show
    first = first[some]
    count = np.searchsorted(sorted_group, group[some], "right") - first
    start = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(some)), count)
    return some[owner], by_group[np.arange(len(owner)) - start[owner] + first[owner]]


def highest(detection: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Of the candidates of each detection the first with the highest overlap, ``int64 [K]`` positions.

    Args:
        detection: ``int64 [M]`` non-decreasing, from :func:`candidates`.
        overlap: ``float [M]``.
    """
    if not len(detection):
        return np.zeros(0, np.int64)
    start = np.flatnonzero(np.append(True, detection[1:] != detection[:-1]))
    owner = np.repeat(np.arange(len(start)), np.diff(np.append(start, len(detection))))
    at_highest = np.flatnonzero(overlap == np.maximum.reduceat(overlap, start)[owner])
    return at_highest[np.unique(owner[at_highest], return_index=True)[1]]


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
    detection, candidate = candidates(group, truth_group)
    overlaps = np.minimum(*(iou(box[detection], true[candidate]) for box, true in zip(boxes, truths, strict=True)))
    best = highest(detection, overlaps)
    overlap[detection[best]], truth[detection[best]] = overlaps[best], candidate[best]
    return overlap, truth


def best_matches(detection: np.ndarray, truth: np.ndarray, overlap: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Which candidates are matches when a detection is compared with the truth that it overlaps most.

    It is right if that overlap is enough and no detection before it took the truth; otherwise it is wrong, even if it
    overlaps another truth enough.

    Args:
        detection, truth: ``int64 [M]`` from :func:`candidates`, detections numbered by rank.
        overlap: ``float64 [M]``.
        close: ``bool [M]`` whether that is enough.

    Returns:
        ``int64 [K]`` positions among the candidates; no detection and no truth occurs twice.
    """
    best = highest(detection, overlap)
    best = best[close[best]]
    return best[np.sort(np.unique(truth[best], return_index=True)[1])]


def first_unused_matches(detection: np.ndarray, truth: np.ndarray, close: np.ndarray) -> np.ndarray:
    """As :func:`best_matches`, when a detection takes the first stored truth that is close and not yet taken."""
    matched, taken, last = [], set(), -1
    near = np.flatnonzero(close)
    for position, which, pair in zip(near.tolist(), detection[near].tolist(), truth[near].tolist(), strict=True):
        if which != last and pair not in taken:
            matched.append(position)
            taken.add(pair)
            last = which
    return np.array(matched, np.int64)


def ranking(klass: np.ndarray, score: np.ndarray, image: np.ndarray, ties: str = "first") -> np.ndarray:
    """Order of the detections, ``int64 [D]``: by class, then by falling score.

    ties: "first" by picture and then as stored, "last_stored" by picture and last stored first, "last" by falling
    picture and last stored first.
    """
    falling = -score.astype(np.float64)
    if ties == "first":
        return np.lexsort((image, falling, klass))
    stored = np.arange(len(klass))
    return np.lexsort((-stored, -image.astype(np.int64) if ties == "last" else image, falling, klass))


def interpolated_precision(
    klass: np.ndarray, right: np.ndarray, positives: np.ndarray, grid: np.ndarray | None = RECALL_GRID
) -> np.ndarray:
    """Average precision per class: the mean, over the recall levels of ``grid``, of the highest precision at or beyond.

    Args:
        klass: ``int [D]`` class of each detection, ranked (:func:`ranking`), so non-decreasing.
        right: ``bool [D]`` which are true positives, in the same order.
        positives: ``int [C]`` annotated pairs of each class.
        grid: None reads precision at every recall that the pairs allow, 1 / P to P / P: the area under the curve.

    Returns:
        ``float64 [C]`` between 0 and 1; NaN for a class without annotated pairs.
    """
    found = np.flatnonzero(right)  # precision falls between true positives, so only they can carry a maximum
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
