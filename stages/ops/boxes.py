"""Boxes: conversions, overlap and suppression, on numpy arrays and torch tensors alike, without importing torch.

A box is ``(x1, y1, x2, y2)`` in pixels, zero-based and half-open (``xyxy``): a box of area 0 covers nothing, the whole
image is ``(0, 0, width, height)``. Every function takes ``[..., 4]`` and gives back the kind of array it was given.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)


def _namespace(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def single(boxes: np.ndarray) -> np.ndarray:
    """``float32``, as boxes are stored; a coordinate that is too large for it is infinite."""
    with np.errstate(over="ignore"):
        return boxes.astype(np.float32)


def xywh_to_xyxy(boxes: Array) -> Array:
    """``[..., 4]`` (left, top, width, height), as in COCO's files, to xyxy."""
    x, y, w, h = (boxes[..., i] for i in range(4))
    return _namespace(boxes).stack((x, y, x + w, y + h), -1)


def xyxy_to_xywh(boxes: Array) -> Array:
    """``[..., 4]`` xyxy to (left, top, width, height)."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _namespace(boxes).stack((x1, y1, x2 - x1, y2 - y1), -1)


def cxcywh_to_xyxy(boxes: Array) -> Array:
    """``[..., 4]`` (centre x, centre y, width, height), as DETR regresses them, to xyxy."""
    cx, cy, w, h = (boxes[..., i] for i in range(4))
    return _namespace(boxes).stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def xyxy_to_cxcywh(boxes: Array) -> Array:
    """``[..., 4]`` xyxy to (centre x, centre y, width, height)."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _namespace(boxes).stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)


def clip(boxes: Array, width: float, height: float) -> Array:
    """``[..., 4]`` cut to an image of ``width`` x ``height`` pixels."""
    xs, ys = boxes[..., 0::2].clip(0, width), boxes[..., 1::2].clip(0, height)
    return _namespace(boxes).stack((xs[..., 0], ys[..., 0], xs[..., 1], ys[..., 1]), -1)


def flip(boxes: Array, width: float) -> Array:
    """``[..., 4]`` as they lie in the horizontally flipped image of ``width`` pixels."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _namespace(boxes).stack((width - x2, y1, width - x1, y2), -1)


def enclosing(a: Array, b: Array) -> Array:
    """``[..., 4]``: the smallest box around ``a[i]`` and ``b[i]``, the union box of a human-object pair."""
    xp = _namespace(a)
    low, high = xp.minimum(a[..., :2], b[..., :2]), xp.maximum(a[..., 2:], b[..., 2:])
    return xp.stack((low[..., 0], low[..., 1], high[..., 0], high[..., 1]), -1)


def area(boxes: Array) -> Array:
    """``[...]`` square pixels; 0 for boxes turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]).clip(min=0) * (boxes[..., 3] - boxes[..., 1]).clip(min=0)


def intersection(a: Array, b: Array) -> Array:
    """``[...]`` square pixels that ``a[i]`` and ``b[i]`` share; the leading axes broadcast."""
    xp = _namespace(a)
    sides = (xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2])).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Array, b: Array) -> Array:
    """``[...]`` intersection over union of ``a[i]`` with ``b[i]`` (leading axes broadcast); 0 where both are empty."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / _namespace(a).where(union > 0, union, union * 0 + 1)


def iou_matrix(a: Array, b: Array) -> Array:
    """``[N, 4]`` and ``[M, 4]`` to ``[N, M]``: every IoU."""
    return iou(a[:, None], b[None])


def giou(a: Array, b: Array) -> Array:
    """``[...]`` generalised IoU in [-1, 1] (Rezatofighi et al. 2019, algorithm 1); leading axes broadcast."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    hull = area(enclosing(a, b))
    where = _namespace(a).where
    one = union * 0 + 1
    return shared / where(union > 0, union, one) - (hull - union) / where(hull > 0, hull, one)


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression.

    Boxes are taken by falling score (equal scores: by position). A box is dropped if its IoU with a box taken before is
    above the threshold.

    Args:
        boxes: float ``[N, 4]`` xyxy.
        scores: float ``[N]``.
        threshold: The largest IoU of two boxes that both stay.

    Returns:
        int64 ``[K]``, the kept positions by falling score.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    kept = []
    while len(order):
        kept.append(order[0])
        stays = iou(boxes[1:], boxes[:1]) <= threshold
        order, boxes = order[1:][stays], boxes[1:][stays]
    return np.array(kept, np.int64)


def batched_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """:func:`nms` within each label, int ``[N]``; int64 ``[K]`` kept positions, best first."""
    kept = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    positions = np.sort(np.concatenate(kept))
    return positions[np.argsort(-scores[positions], kind="stable")]


def best_apart(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, overlap: float, most: int) -> np.ndarray:
    """The first ``most`` of :func:`batched_nms`. It ends when they are found, and does not look at
    the boxes of a thousand objects one after another.

    Args:
        boxes: float32 ``[N, 4]`` xyxy.
        scores: float32 ``[N]``.
        labels: int ``[N]``; boxes of different labels do not suppress each other.
        overlap: largest IoU of two boxes of one label that both stay.
        most: how many.

    Returns:
        int64 ``[K]`` positions, best first; equal scores by position.
    """
    kept: list[int] = []
    of_label: dict[int, list[int]] = {}
    for each in np.argsort(-scores, kind="stable").tolist():
        rivals = of_label.setdefault(int(labels[each]), [])
        if rivals and (iou(boxes[rivals], boxes[[each]]) > overlap).any():
            continue
        rivals.append(each)
        kept.append(each)
        if len(kept) == most:
            break
    return np.array(kept, np.int64)
