"""Which detections of an image enter pairs, the pairs, and their match with annotated ones: pure functions on arrays.

The rules are those of the two-stage detectors UPT (Zhang et al. 2022) and PViC (Zhang et al. 2023). Boxes are xyxy pixels of
the original image, zero-based and half-open.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hoi_distill.stages.ops import boxes as box_ops

HUMAN = 0
"""COCO-80 index of a person."""


def filter_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    score_threshold: float = 0.2,
    at_least: int = 3,
    at_most: int = 15,
    nms_iou: float = 0.5,
) -> np.ndarray:
    """Choose the instances that enter pairs (UPT's rule).

    Class-wise suppression first. Then, humans and others each by themselves: those scoring at least
    ``score_threshold``; the best ``at_least`` whatever they score when these are fewer; the best ``at_most`` when these
    are more.

    Args:
        boxes: float ``[N, 4]`` xyxy.
        scores: float ``[N]``.
        labels: int ``[N]``, COCO-80.
        score_threshold: least score, as above.
        at_least: how many of each group are chosen whatever they score.
        at_most: how many of each group are chosen at most.
        nms_iou: overlap above which the lower-scoring box of a class is suppressed.

    Returns:
        int64 ``[K]`` positions: humans first, each group by falling score.
    """
    if len(boxes) == 0:
        return np.empty(0, np.int64)
    kept = box_ops.batched_nms(boxes, scores, labels, nms_iou)
    human = labels[kept] == HUMAN
    chosen = []
    for group in (kept[human], kept[~human]):
        above = int((scores[group] >= score_threshold).sum())
        chosen.append(group[: min(max(above, at_least), at_most)])
    return np.concatenate(chosen)


@lru_cache(maxsize=1024)
def ordered_pairs(humans: int, instances: int) -> np.ndarray:
    """All (i, j) with i a human, j any other instance, where the first ``humans`` of ``instances`` are humans.

    Returns:
        int64 ``[humans * (instances - 1), 2]``, by i, then j; read-only. Empty without humans or with one instance.
    """
    i, j = np.divmod(np.arange(humans * instances), instances)
    pairs = np.stack((i[i != j], j[i != j]), 1) if instances else np.empty((0, 2), np.int64)
    pairs.setflags(write=False)
    return pairs


def associate(
    human: np.ndarray,
    object_: np.ndarray,
    true_human: np.ndarray,
    true_object: np.ndarray,
    true_hoi: np.ndarray,
    *,
    iou: float = 0.5,
) -> np.ndarray:
    """Which pairs show which classes: p gets c when ``min(IoU_h, IoU_o) >= iou`` with any true pair of class c.

    Many-to-many and blind to the object's class, which the prior masks.

    Args:
        human: float ``[P, 4]`` human boxes of the pairs.
        object_: float ``[P, 4]`` object boxes of the pairs.
        true_human: float ``[G, 4]`` human boxes of the true pairs.
        true_object: float ``[G, 4]`` object boxes of the true pairs.
        true_hoi: int ``[G]`` classes of the true pairs.
        iou: least overlap.

    Returns:
        int64 ``[K, 2]`` distinct (pair, class), sorted.
    """
    overlap = np.minimum(box_ops.iou_matrix(human, true_human), box_ops.iou_matrix(object_, true_object))
    pair, annotated = np.nonzero(overlap >= iou)
    return np.unique(np.stack((pair, true_hoi[annotated].astype(np.int64)), 1), axis=0).reshape(-1, 2)


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """int32 ``[N, 4]``: boxes with every edge at the nearest whole pixel, halves to the even one, as prompts print them."""
    return np.rint(boxes).astype(np.int32)


def order_without_scores(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 ``[K]``: the positions of instances by label, people first, then by box. It is the same whatever their scores.

    Args:
        boxes: int ``[K, 4]``, see :func:`whole_pixels`.
        labels: int ``[K]``, COCO-80.
    """
    return np.lexsort((*boxes.T[::-1], labels))
