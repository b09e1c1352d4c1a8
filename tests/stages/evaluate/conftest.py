"""A small annotated split: three classes, four images."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections


@pytest.fixture
def annotations() -> Annotations:
    hois = np.array([[0, 32], [1, 32], [1, 1]], np.int16)
    vocabulary = Vocabulary(COCO_OBJECTS, ("hold", "throw"), hois, ("holding", "throwing"))
    hoi = np.array([0, 1, 0, 2, 2], np.int16)
    boxes = np.arange(20, dtype=np.float32).reshape(5, 4) // 4 * 10 + np.float32([0, 0, 9, 9])
    image_hois = np.zeros((4, 3), bool)
    image_hois[[0, 0, 1, 2], [0, 1, 0, 2]] = True
    return Annotations(
        name="small", split="test", vocabulary=vocabulary, image_id=np.array(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]),
        path=["a.jpg", "b.jpg", "c.jpg", "d.jpg"], width=np.full(4, 100, np.int32), height=np.full(4, 80, np.int32),
        pair_offsets=np.array([0, 2, 3, 5, 5]), human_box=boxes, object_box=boxes + 20,
        object=hois[hoi, 1], verb=hois[hoi, 0], hoi=hoi, image_hois=image_hois,
    )  # fmt: skip


@pytest.fixture
def perfect(annotations: Annotations) -> HoiDetections:
    """Every annotated pair, detected."""
    return HoiDetections(
        annotations.pair_image().astype(np.int32), annotations.human_box, annotations.object_box,
        annotations.object.astype(np.int32), annotations.verb.astype(np.int32), annotations.hoi.astype(np.int32),
        np.linspace(0.9, 0.5, len(annotations.hoi), dtype=np.float32),
    )  # fmt: skip
