"""The outputs that exported detectors have, by family: what they look like, and the boxes that they mean.

Each reader takes the outputs of one image and gives N candidates as (boxes float32 ``[N, 4]``, scores float32 ``[N]``, classes
int64 ``[N]``), boxes xyxy in pixels of the input. Shapes: A anchors, Q queries, C classes, K boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.teacher.detectors.letterbox import Filter, Fit

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
Outputs = Sequence[np.ndarray]
Size = tuple[int, int]
Sides = tuple[int | None, ...]
"""The shape that a graph declares; None for a side that it leaves open."""
CANDIDATES = 3000
"""Candidates of an image that suppression looks at, the best ones."""
STRIDES = (8, 16, 32, 64)
"""Of NanoDet's levels."""
OTHER = "outputs of another layout"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layout:
    """A family of exports.

    Attributes:
        says: its outputs, for people.
        read: gives the candidates of the outputs of one image; ``size`` is (width, height) of the input.
        shapes: the shape of each output. A text is a length that is free or equal wherever it stands; C + n stands for
            a number of classes and n more.
        fit: how an image is placed in the input.
        filter: how it is resized.
        channels: of the input.
        mean: what is taken from a pixel / 255, by channel in the input's order.
        std: what it is then divided by.
        overlap: IoU of suppression within a class; None where the graph has suppressed, or needs none.
        classes: names by class number where the family counts them in its own way; {} counts from 0.
    """

    says: str
    read: Callable[[Outputs, Size], Found]
    shapes: tuple[tuple[int | str, ...], ...]
    fit: Fit = "stretch"
    filter: Filter = "antialias"
    channels: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    overlap: float | None = None
    classes: Mapping[int, str] = field(default_factory=dict)


def candidates(scores: np.ndarray, boxes: np.ndarray) -> Found:
    """Every class of every box, the best :data:`CANDIDATES`.

    Args:
        scores: ``[A, C]``.
        boxes: ``[A, 4]`` xyxy.
    """
    flat = scores.reshape(-1)
    if len(flat) > CANDIDATES:
        best = np.sort(np.argpartition(-flat, CANDIDATES)[:CANDIDATES])
    else:
        best = np.arange(len(flat))
    return boxes[best // scores.shape[1]].astype(np.float32), flat[best].astype(np.float32), best % scores.shape[1]


def yolo(outputs: Outputs, size: Size) -> Found:  # noqa: ARG001 - readers are alike
    """``[1, 4 + C, A]``: cxcywh in pixels of the input, and a score for each class."""
    rows = outputs[0][0].T
    return candidates(rows[:, 4:], box_ops.cxcywh_to_xyxy(rows[:, :4]))


def yolo_objectness(outputs: Outputs, size: Size) -> Found:  # noqa: ARG001
    """``[1, A, 5 + C]``: cxcywh in pixels of the input, a score of there being an object, and a score for each class."""
    rows = outputs[0][0]
    return candidates(rows[:, 5:] * rows[:, 4:5], box_ops.cxcywh_to_xyxy(rows[:, :4]))


def yolo_end_to_end(outputs: Outputs, size: Size) -> Found:  # noqa: ARG001
    """``[1, K, 6]``: xyxy in pixels of the input, score, class."""
    rows = outputs[0][0]
    return rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].round().astype(np.int64)


def detr(outputs: Outputs, size: Size) -> Found:
    """Logits ``[1, Q, C + 1]``, the last one "no object", and cxcywh ``[1, Q, 4]``, fractions: one class a query."""
    logits = outputs[0][0].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores = (powers / powers.sum(axis=-1, keepdims=True))[:, :-1]
    best = scores.argmax(axis=-1)
    boxes = box_ops.cxcywh_to_xyxy(outputs[1][0]) * np.tile(np.array(size, np.float32), 2)
    return boxes.astype(np.float32), scores.max(axis=-1).astype(np.float32), best


def rt_detr(outputs: Outputs, size: Size) -> Found:
    """Logits ``[1, Q, C]`` and cxcywh ``[1, Q, 4]``, fractions: every class of every query."""
    boxes = box_ops.cxcywh_to_xyxy(outputs[1][0]) * np.tile(np.array(size, np.float32), 2)
    return candidates(1 / (1 + np.exp(-outputs[0][0].astype(np.float64))), boxes)


def rt_detr_joined(outputs: Outputs, size: Size) -> Found:
    """``[1, Q, 4 + C]``: cxcywh, fractions, and a score for each class."""
    rows = outputs[0][0]
    return candidates(rows[:, 4:], box_ops.cxcywh_to_xyxy(rows[:, :4]) * np.tile(np.array(size, np.float32), 2))


def nanodet(outputs: Outputs, size: Size) -> Found:
    """``[1, A, C + 32]``: a score for each class, and for each side of the box the distribution of its distance over 0 to 7
    strides. An anchor is the upper left corner of a cell; the levels stand one after another (NanoDet-Plus)."""
    rows = outputs[0][0].astype(np.float64)
    sides = rows[:, -32:].reshape(len(rows), 4, 8)
    powers = np.exp(sides - sides.max(axis=-1, keepdims=True))
    distance = (powers * np.arange(8)).sum(axis=-1) / powers.sum(axis=-1)
    centres = nanodet_anchors(size, len(rows))
    distance *= centres[:, 2:]
    boxes = np.concatenate([centres[:, :2] - distance[:, :2], centres[:, :2] + distance[:, 2:]], axis=1)
    return candidates(rows[:, :-32], boxes)


def nanodet_anchors(size: Size, count: int) -> np.ndarray:
    """float64 ``[A, 3]``: x, y and stride of NanoDet's anchors, by three or four levels, whichever makes ``count``."""
    levels: list[np.ndarray] = []
    for stride in STRIDES:
        columns, rows = -(-size[0] // stride), -(-size[1] // stride)
        y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) * float(stride)
        levels.append(np.stack([x, y, np.full(len(x), float(stride))], axis=1))
        if sum(map(len, levels)) == count:
            break
    found = np.concatenate(levels)
    if len(found) != count:
        raise ValueError(f"{count} anchors of an input of {size[0]} x {size[1]} are none of NanoDet's levels")
    return found


def ssd(outputs: Outputs, size: Size) -> Found:
    """``[1, 1, K, 7]``: image, class, score and xyxy in fractions, suppressed in the graph."""
    rows = outputs[0].reshape(-1, 7)
    rows = rows[rows[:, 0] >= 0]  # what follows the last box begins with -1
    boxes = rows[:, 3:] * np.tile(np.array(size, np.float32), 2)
    return boxes.astype(np.float32), rows[:, 2].astype(np.float32), rows[:, 1].round().astype(np.int64)


_SIGMOID = "a score for each class between 0 and 1"
LAYOUTS: dict[str, Layout] = {
    "yolo": Layout(
        f"one output [1, 4 + classes, anchors], {_SIGMOID} (YOLOv8, v9, 11, 12)", yolo, ((1, "C+4", "A"),),
        fit="letterbox", filter="linear", overlap=0.7,
    ),
    "yolo_objectness": Layout(
        f"one output [1, anchors, 5 + classes], {_SIGMOID} (YOLOv5, v7)", yolo_objectness, ((1, "A", "C+5"),),
        fit="letterbox", filter="linear", overlap=0.6,
    ),
    "yolo_end_to_end": Layout(
        "one output [1, boxes, 6] (YOLOv10, YOLO26, exports with suppression inside)", yolo_end_to_end, ((1, "K", 6),),
        fit="letterbox", filter="linear",
    ),
    "detr": Layout(
        "logits [1, queries, classes + 1], boxes [1, queries, 4]", detr, ((1, "Q", "C+1"), (1, "Q", 4)),
        mean=IMAGENET[0], std=IMAGENET[1],
        classes=dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True)),
    ),
    "rt_detr": Layout("logits [1, queries, classes], boxes [1, queries, 4]", rt_detr, ((1, "Q", "C+0"), (1, "Q", 4))),
    "rt_detr_joined": Layout(f"one output [1, queries, 4 + classes], {_SIGMOID}", rt_detr_joined, ((1, "Q", "C+4"),)),
    "nanodet": Layout(
        f"one output [1, anchors, classes + 32], {_SIGMOID} (NanoDet-Plus)", nanodet, ((1, "A", "C+32"),),
        filter="linear", channels="bgr", mean=IMAGENET[0][::-1], std=IMAGENET[1][::-1], overlap=0.6,
    ),
    "ssd": Layout(
        "one output [1, 1, boxes, 7] (image, class, score, x1, y1, x2, y2)", ssd, ((1, 1, "K", 7),), filter="linear",
        classes=dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True)),
    ),
}  # fmt: skip
"""What may stand under ``layout:``."""


def class_count(layout: Layout, shapes: Sequence[Sides]) -> int | None:
    """The number of classes that a graph's outputs tell; None where they leave it open.

    Raises:
        ValueError: the outputs are not those of the layout.
    """
    if len(shapes) < len(layout.shapes):
        raise ValueError(OTHER)
    known: dict[str, int] = {}
    for wanted, given in zip(layout.shapes, shapes, strict=False):
        if len(wanted) != len(given):
            raise ValueError(OTHER)
        for name, length in zip(wanted, given, strict=True):
            if length is None:
                continue
            extra = int(name[2:]) if isinstance(name, str) and name.startswith("C+") else 0
            key = name[:1] if isinstance(name, str) else None
            if key is None:
                if name != length:
                    raise ValueError(OTHER)
            elif known.setdefault(key, length - extra) != length - extra or length - extra < 1:
                raise ValueError(OTHER)
    return known.get("C")
