"""Scored human-object pairs as columns: what every evaluator reads, and the schema of the file that holds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_BOX = pa.list_(pa.float32(), 4)


SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("human_box", _BOX, nullable=False),
        pa.field("object_box", _BOX, nullable=False),
        pa.field("object", pa.int32(), nullable=False),
        pa.field("verb", pa.int32(), nullable=False),
        pa.field("hoi", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""One row a scored triplet. Boxes are xyxy pixels of the original image, zero-based half-open; ``object`` is in
COCO-80 order (person = 0); ``verb`` and ``hoi`` are 0-based, ``hoi`` -1 where the dataset names no such class. A file may
hold wider scores, which rank as they are."""


@dataclass(frozen=True)
class HoiDetections:
    """Scored triplets of D detections.

    Attributes:
        image: ``int32 [D]`` position of the image in the dataset.
        human_box, object_box: ``float32 [D, 4]``, xyxy pixels of the original image, zero-based half-open.
        object, verb, hoi: ``int32 [D]``; hoi is -1 where the dataset names no such class.
        score: ``float32`` or ``float64 [D]``, as wide as the file has it: narrowed, distinct scores would become ties.
    """

    image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    object: np.ndarray
    verb: np.ndarray
    hoi: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, eq=False)
class VCocoDetections:
    """P detected persons with a score for every action and one object for every role, as the official list has them.

    image: int32 [P] row of each person's image in ``People.image_id``.
    person_box: float32 [P, 4], xyxy pixels, zero-based half-open.
    agent_score: float32 or float64 [P, 26]; NaN: the action is not detected.
    role_box: float32 [P, 25, 4]; all zero or all NaN: the role is predicted to be empty.
    role_score: float32 or float64 [P, 25]; NaN: the role is not detected.
    """

    image: np.ndarray
    person_box: np.ndarray
    agent_score: np.ndarray
    role_box: np.ndarray
    role_score: np.ndarray

    def __len__(self) -> int:
        return len(self.image)
