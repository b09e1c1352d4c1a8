"""The boxes of detections as a COCO results file: what COCO's tools and object detectors' users read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import writing


def write_coco_results(
    path: Path, detections: HoiDetections, image_ids: Sequence[str] | np.ndarray, vocabulary: Vocabulary
) -> int:
    """Write ``[{image_id, category_id, bbox [x, y, width, height], score}, ...]`` and say how many boxes.

    Every human and object box once, with the highest score of the triplets that it is in; by image and falling score.
    ``image_id`` is the image's own id, a number where all of them are whole numbers. ``category_id`` is COCO's official
    one, or the object's number from 1 where the vocabulary's objects are not COCO's.

    Raises:
        UserError: the file cannot be written; there is none then.
    """
    is_coco = tuple(vocabulary.objects) == COCO_OBJECTS
    category_of = np.array(COCO_CATEGORY_IDS if is_coco else range(1, 1 + len(vocabulary.objects)))
    with_object = detections.object >= 0
    image = np.concatenate([detections.image, detections.image[with_object]])
    obj = np.concatenate([np.zeros(len(detections), np.int64), detections.object[with_object]])
    box = np.concatenate([detections.human_box, detections.object_box[with_object]]).astype(np.float64)
    score = np.concatenate([detections.score, detections.score[with_object]]).astype(np.float64)
    order = np.lexsort((-score, box[:, 3], box[:, 2], box[:, 1], box[:, 0], obj, image))
    keys = np.column_stack([image, obj, box])[order]
    order = order[np.append(True, (keys[1:] != keys[:-1]).any(1))[: len(order)]]
    order = order[np.lexsort((-score[order], image[order]))]
    box[:, 2:] -= box[:, :2]
    names = [str(name) for name in image_ids]
    ids: list[str] | list[int] = [int(name) for name in names] if all(name.isdecimal() for name in names) else names
    rows = zip(
        image[order].tolist(), category_of[obj[order]].tolist(), box[order].tolist(), score[order].tolist(),
        strict=True,
    )  # fmt: skip
    records = [{"image_id": ids[i], "category_id": c, "bbox": b, "score": s} for i, c, b, s in rows]
    with writing(str(path)):
        write_atomically(path, json.dumps(records))
    return len(records)
