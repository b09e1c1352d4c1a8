"""COCO's 80 object categories: names as HICO-DET writes them (underscores), in COCO order, and COCO's official ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COCO_OBJECTS: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic_light",
    "fire_hydrant", "stop_sign", "parking_meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports_ball", "kite", "baseball_bat", "baseball_glove", "skateboard", "surfboard",
    "tennis_racket", "bottle", "wine_glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot_dog", "pizza", "donut", "cake", "chair", "couch",
    "potted_plant", "bed", "dining_table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell_phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy_bear", "hair_drier", "toothbrush",
)  # fmt: skip
"""The 80 names; index 0 is ``person``."""

_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)
"""The official ``category_id`` (1-90, ten numbers unused) of each of the 80 names."""

OBJECT_INDEX: dict[str, int] = {name: index for index, name in enumerate(COCO_OBJECTS)}

ALPHABETICAL_OBJECTS: tuple[str, ...] = tuple(sorted(COCO_OBJECTS))
"""The names in the order of HICO-DET's own object list and of fredzzhang/hicodet's files (airplane 0, person 49)."""

FROM_ALPHABETICAL: tuple[int, ...] = tuple(OBJECT_INDEX[name] for name in ALPHABETICAL_OBJECTS)
"""COCO-80 index of each alphabetical index."""


def labels_of_categories(objects: Sequence[str] | None = None) -> np.ndarray:
    """int16: the label, from 0, of each ``category_id`` up to the largest, -1 where it is none.

    objects: their positions, counted from 1, are the ids; by default COCO's 80 with their official ids.
    """
    ids = COCO_CATEGORY_IDS if objects is None else range(1, len(objects) + 1)
    table = np.full(ids[-1] + 1, -1, np.int16)
    table[list(ids)] = np.arange(len(ids))
    return table
