"""What a poor detector would say of a scene of the crowd: it misses what is small and what is hidden."""

from __future__ import annotations

import numpy as np

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.crowd.classes import THINGS
from hoi_distill.stages.data.crowd.layout import SIZE

_JITTER = 0.1
_SMALL, _HIDDEN = 19.0, 0.6  # pixels (geometric mean of the sides), and share: half of such boxes are missed
_FLOOR = 0.1

Detection = tuple[np.ndarray, int, float]
"""Box (float64 ``[4]``, xyxy pixels), COCO-80 label, score."""


def miss_rate(boxes: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """How likely each box is to be missed, float64 ``[n]``.

    Args:
        boxes: float ``[n, 4]``, xyxy pixels.
        hidden: float ``[n]``, the share of each that is behind something.
    """
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    small = 1 / (1 + np.exp((side - _SMALL) / 3))
    behind = 1 / (1 + np.exp((_HIDDEN - hidden) / 0.12))
    return 1 - (1 - _FLOOR) * (1 - small) * (1 - behind)


def detections(seed: int, boxes: np.ndarray, objects: np.ndarray, hidden: np.ndarray) -> list[Detection]:
    """The true boxes with 10 % jitter, some missed, 6 % misnamed, 15 % with a second name, and two invented ones.

    Args:
        seed: Of the scene: a scene and its twin have the same faults.
        boxes: int ``[n, 4]``, xyxy pixels.
        objects: int ``[n]``, COCO-80.
        hidden: float ``[n]``, as :func:`miss_rate` takes it.
    """
    rng = np.random.default_rng([seed, 7])
    others = [OBJECT_INDEX[name] for name in THINGS]
    rates = miss_rate(boxes.astype(float), hidden)
    rows: list[Detection] = []
    for box, label, rate in zip(boxes.astype(float), objects.tolist(), rates.tolist(), strict=True):
        side = np.tile(box[2:] - box[:2], 2)
        near = box + np.clip(rng.normal(0, _JITTER, 4), -2 * _JITTER, 2 * _JITTER) * side
        missed, misnamed, doubted = rng.random(3)
        score, doubt, wrong = rng.beta(7, 2) * (1 - 0.5 * rate), rng.uniform(0.05, 0.4), int(rng.choice(others))
        if missed < rate:
            continue
        if label != 0 and misnamed < 0.06:
            rows.append((near, wrong, 0.8 * score))
            continue
        rows.append((near, label, score))
        if label != 0 and doubted < 0.15 and wrong != label:
            rows.append((near, wrong, doubt))
    for _ in range(rng.poisson(2)):
        corner, side = rng.uniform(0, 0.85 * SIZE, 2), rng.uniform(10, 60, 2)
        label = 0 if rng.random() < 0.3 else int(rng.choice(others))
        rows.append((np.concatenate([corner, corner + side]), label, rng.beta(2, 5)))
    return rows
