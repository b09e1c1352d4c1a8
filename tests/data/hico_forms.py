"""One set of records written in each of the forms in which HICO-DET is passed around."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS
from hoi_distill.stages.data.pico.layout import Picture, write_annotations
from hoi_distill.stages.data.vocabulary import hico_vocabulary

WORDS = hico_vocabulary()


def hoi(verb: str, thing: str) -> int:
    """A class of HICO-DET, from 0."""
    return int(WORDS.hoi_id()[WORDS.verbs.index(verb), WORDS.objects.index(thing)])


def pictures(split: str) -> list[Picture]:
    """Four pictures: several classes and people, one without pairs, boxes at the first and at the last pixel."""
    person, bicycle, dog = (WORDS.objects.index(name) for name in ("person", "bicycle", "dog"))
    ride, hold, walk = hoi("ride", "bicycle"), hoi("hold", "bicycle"), hoi("walk", "dog")
    boxes = np.array([(0, 0, 20, 40), (10, 5, 64, 48), (3, 4, 9, 9), (30, 20, 50, 47)])
    objects = np.array([person, bicycle, person, dog])
    triplets = [[(0, 1, ride), (0, 1, hold), (2, 1, ride), (2, 3, walk)], [], [(2, 3, walk)], [(0, 1, hold)]]
    return [
        Picture(f"HICO_{split}2015_{number:08d}.jpg", 64, 48, boxes, objects, sorted(found, key=lambda t: t[2]))
        for number, found in enumerate(triplets, start=1)
    ]


def write_mat(root: Path, labels: bool = True) -> None:
    """``anno_bbox.mat`` and, with `labels`, ``anno.mat``."""
    root.mkdir(parents=True, exist_ok=True)
    write_annotations(root, WORDS, {split: pictures(split) for split in ("train", "test")})
    if not labels:
        (root / "anno.mat").unlink()


def instances(split: str, coco_order: bool = False) -> dict:
    """fredzzhang's form: 1-based inclusive boxes; objects in alphabetical order or, in copies, in COCO's."""
    objects = list(WORDS.objects) if coco_order else sorted(WORDS.objects)
    number = [objects.index(WORDS.objects[thing]) for _, thing in WORDS.hois]
    document = {
        "objects": objects,
        "verbs": list(WORDS.verbs),
        "correspondence": [[h, number[h], int(WORDS.hois[h, 0])] for h in range(600)],
        "filenames": [p.file_name for p in pictures(split)],
        "size": [[p.width, p.height] for p in pictures(split)],
        "empty": [i for i, p in enumerate(pictures(split)) if not p.triplets],
        "annotation": [],
    }
    for p in pictures(split):
        box = (p.boxes + (1, 1, 0, 0)).astype(float).tolist()
        document["annotation"].append(
            {
                "boxes_h": [box[human] for human, _, _ in p.triplets],
                "boxes_o": [box[thing] for _, thing, _ in p.triplets],
                "hoi": [h for _, _, h in p.triplets],
                "object": [number[h] for _, _, h in p.triplets],
                "verb": [int(WORDS.hois[h, 0]) for _, _, h in p.triplets],
            }
        )
    return document


def ppdm(split: str) -> list[dict]:
    """PPDM's form: the training file counts inclusive pixels from 0; the test file from 1, without hoi_category_id."""
    shift = (0, 0, -1, -1) if split == "train" else (1, 1, 0, 0)
    document = []
    for p in pictures(split):
        pairs = []
        for human, thing, h in p.triplets:
            pair = {"subject_id": human, "object_id": thing, "category_id": int(WORDS.hois[h, 0]) + 1}
            pairs.append(pair | ({"hoi_category_id": h + 1} if split == "train" else {}))
        boxes = [
            {"bbox": box, "category_id": COCO_CATEGORY_IDS[o]}
            for box, o in zip((p.boxes + shift).tolist(), p.objects.tolist(), strict=True)
        ]
        document.append({"file_name": p.file_name, "annotations": boxes, "hoi_annotation": pairs})
    return document[::-1]  # in no particular order


def save(file: Path, document: object) -> Path:
    """Write JSON, with the folders it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file
