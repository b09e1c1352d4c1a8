"""A small crowded world for comparing evaluators: what they disagree on happens all the time in it.

Boxes lie on a coarse grid, some a quarter of a pixel off it; many are one pixel wide or high, many overlap by exactly
one half, pairs and detections are repeated exactly, and with ``ties`` scores are too. Some pictures have no pairs.
"""

from __future__ import annotations

import random

import numpy as np

from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.metrics.hico_det import Truths

PICTURES, CLASSES = 8, 4
HOI_OBJECT = np.array([1, 1, 2, 2])


def small_world(seed: int, ties: bool) -> tuple[Detections, Truths]:
    """31 pairs and 170 detections in eight pictures, four classes, drawn by ``seed``."""
    draw = random.Random(seed)

    def box() -> list[float]:
        x, y = draw.randrange(3), draw.randrange(3)
        return [x, y, x + draw.choice([1, 2, 2, 4, 6]), y + draw.choice([1, 2, 2, 4, 6])]

    pairs = [(draw.randrange(PICTURES - 2), draw.randrange(CLASSES), box(), box()) for _ in range(26)]
    pairs += [draw.choice(pairs) for _ in range(5)]
    pairs.sort(key=lambda pair: pair[0])

    def near(side: list[float]) -> list[float]:
        """The same box, half or twice as large, or a little off."""
        x1, y1, x2, y2 = side
        kind = draw.randrange(6)
        if kind == 0:
            x2 = x1 + (x2 - x1) / 2
        elif kind == 1:
            y2 = y1 + 2 * (y2 - y1)
        elif kind == 2:
            x2, y2 = x2 + draw.choice([0.25, 1]), y2 + draw.choice([0, 0.25])
        return [x1, y1, x2, y2]

    found = []
    for _ in range(170):
        picture, klass, human, thing = draw.choice(pairs)
        if draw.random() < 0.5:
            found.append((picture, klass, near(human), near(thing)))
        elif found and draw.random() < 0.4:
            found.append(draw.choice(found))
        else:
            found.append((draw.randrange(PICTURES), draw.randrange(CLASSES), box(), near(thing)))
    scores = [draw.randrange(10) / 16 for _ in found] if ties else [rank / 256 for rank in range(len(found))]
    draw.shuffle(scores)
    found.sort(key=lambda row: row[0])
    shows = np.array([[draw.random() < 0.6 for _ in range(3)] for _ in range(PICTURES)])

    def columns(rows: list[tuple[int, int, list[float], list[float]]]) -> list[np.ndarray]:
        picture, klass, human, thing = zip(*rows, strict=True)
        return [np.array(picture, np.int32), np.array(klass, np.int32), np.float32(human), np.float32(thing)]

    image, hoi, human_box, object_box = columns(found)
    thing = HOI_OBJECT[hoi].astype(np.int32)
    detections = Detections(image, human_box, object_box, thing, hoi, hoi, np.float32(scores))
    image, hoi, human_box, object_box = columns(pairs)
    return detections, Truths(image, human_box, object_box, hoi.astype(np.int64), shows)
