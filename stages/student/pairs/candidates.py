"""From a picture's detections to scored human-object pairs: pure functions on arrays.

Filtering, ordered pairs, pair geometry, prior and association are those of the two-stage detectors UPT (Zhang et al.
2022) and PViC (Zhang et al. 2023). Boxes are xyxy pixels of the original picture, zero-based and half-open.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops

HUMAN = 0
"""COCO-80 index of a person."""
EPSILON = 1e-10


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


def pair_geometry(human: Tensor, object_: Tensor, size: Tensor) -> Tensor:
    """The 36-d spatial vector of each pair: 18 values f, then ``log(f + 1e-10)`` (UPT, section 4.1).

    Boxes are clamped to the picture and their sides to at least one pixel, else ratios of degenerate boxes overflow.

    Args:
        human: float ``[P, 4]`` xyxy pixels.
        object_: float ``[P, 4]`` xyxy pixels.
        size: float ``[P, 2]`` (width, height) of the pair's picture.

    Returns:
        float32 ``[P, 36]``.
    """
    (x1, y1, w1, h1), (x2, y2, w2, h2) = (_centres(boxes.float(), size) for boxes in (human, object_))
    W, H = size.float().unbind(-1)
    left, top = torch.maximum(x1 - w1 / 2, x2 - w2 / 2), torch.maximum(y1 - h1 / 2, y2 - h2 / 2)
    right, bottom = torch.minimum(x1 + w1 / 2, x2 + w2 / 2), torch.minimum(y1 + h1 / 2, y2 + h2 / 2)
    shared = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    dx, dy = (x2 - x1) / (w1 + EPSILON), (y2 - y1) / (h1 + EPSILON)
    # fmt: off
    f = torch.stack((
        x1 / W, y1 / H, x2 / W, y2 / H,
        w1 / W, h1 / H, w2 / W, h2 / H,
        w1 * h1 / (H * W), w2 * h2 / (H * W),
        w2 * h2 / (w1 * h1 + EPSILON),
        w1 / (h1 + EPSILON), w2 / (h2 + EPSILON),
        shared / (w1 * h1 + w2 * h2 - shared + EPSILON),
        dx.clamp(min=0), (-dx).clamp(min=0),
        dy.clamp(min=0), (-dy).clamp(min=0),
    ), 1)
    # fmt: on
    return torch.cat((f, torch.log(f + EPSILON)), 1)


def _centres(boxes: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """``[P, 4]`` xyxy to centre x, centre y, width, height (``[P]`` each), inside the picture, sides >= 1 pixel."""
    corners = torch.minimum(boxes.view(-1, 2, 2).clamp(min=0), size[:, None].float())
    centre = corners.mean(1)
    sides = (corners[:, 1] - corners[:, 0]).clamp(min=1)
    return *centre.unbind(1), *sides.unbind(1)


def pair_prior(human_score: Tensor, object_score: Tensor, object_label: Tensor, valid: Tensor) -> Tensor:
    """``P = s_h * s_o`` for the classes that the pair's predicted object allows, else 0.

    Args:
        human_score: float ``[P]``, s_h.
        object_score: float ``[P]``, s_o.
        object_label: int64 ``[P]``, COCO-80.
        valid: bool ``[objects, H]``, the interactions that an object allows.

    Returns:
        float32 ``[P, H]``.
    """
    return (human_score * object_score).float()[:, None] * valid[object_label]


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
