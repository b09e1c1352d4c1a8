"""Pairwise suppression of human-object pairs, as CDN (Zhang et al., NeurIPS 2021) and GEN-VLKT (CVPR 2022) use it."""

from __future__ import annotations

import numpy as np

from hoi_distill.stages.evaluate.metrics.average_precision import iou


def pairwise_nms(
    group: np.ndarray,
    score: np.ndarray,
    boxes: tuple[np.ndarray, np.ndarray],
    *,
    threshold: float,
    human_power: float = 1.0,
    object_power: float = 0.5,
    short: float = 0.0,
) -> np.ndarray:
    """Keep, within each group, the pairs that overlap no higher-scored kept pair too much.

    Two pairs overlap by IoU(humans) ** ``human_power`` * IoU(objects) ** ``object_power``. The lower-scored one goes if
    that is above ``threshold``. Of equal scores the last stored counts as higher, as in the published code's reversed
    sort.

    Args:
        group: ``int [D]`` image and class of each detection.
        score: ``float [D]``.
        boxes: human and object boxes, ``float [D, 4]`` each, xyxy pixels, half-open.
        threshold: overlap above which the lower-scored pair goes.
        human_power: exponent of the IoU of humans.
        object_power: exponent of the IoU of objects.
        short: pixels to subtract from every side, as in
            :func:`~hoi_distill.stages.evaluate.metrics.average_precision.iou`; -1 takes boxes as inclusive.

    Returns:
        ``bool [D]``.
    """
    kept = np.zeros(len(score), bool)
    left = np.lexsort((-np.arange(len(score)), -score.astype(np.float64), group))
    while len(left):  # each round keeps the highest left of every group: as many rounds as a group has kept pairs
        starts = np.append(True, group[left][1:] != group[left][:-1])
        kept[left[starts]] = True
        rest = left[~starts]
        head = left[starts][np.cumsum(starts)[~starts] - 1]
        humans, objects = (iou(box[rest], box[head], short) for box in boxes)
        left = rest[np.power(humans, human_power) * np.power(objects, object_power) <= threshold]
    return kept
