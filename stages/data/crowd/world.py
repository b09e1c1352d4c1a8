"""A whole crowd on disk, in HICO-DET's layout: images, annotations, a poor detector's boxes, texts and twins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.crowd import texts
from hoi_distill.stages.data.crowd.classes import crowd_vocabulary
from hoi_distill.stages.data.crowd.detector import detections
from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.data.crowd.plan import ImagePlan, plan_split, twins
from hoi_distill.stages.data.crowd.render import RENDERER_VERSION, CrowdScene, render_crowd
from hoi_distill.stages.data.pico.layout import AnnotatedImage, write_annotations
from hoi_distill.stages.data.pico.writing import (
    coco_results,
    for_each_image,
    holds,
    save_image,
    whole_pixels,
    write_once,
    write_rows,
)

KIND = "crowd"
"""What it is called in messages."""
WORLD_VERSION = 1
"""Raised with every change of the files written from the same scenes."""


@dataclass(frozen=True)
class _Written:
    """What is told of an image that has been written.

    Attributes:
        image: Its annotation.
        detections: COCO results.
        texts: What is said of it.
        pairs: Of each act the boxes of its two candidates, the true one first.
    """

    image: AnnotatedImage
    detections: list[dict[str, object]]
    texts: dict[str, object]
    pairs: list[dict[str, dict[str, list[int]]]]


def write_crowd(root: str | Path, seed: int = 0, train: int = 2000, test: int = 1000, processes: int = 2) -> Path:
    """Write a world and return its folder; byte for byte a function of (seed, train, test).

    Written as by :func:`hoi_distill.stages.data.pico.world.write_world`, and also ``texts_{train,test}2015.json`` and
    ``twins_test2015.json`` (docs/formats.md).

    Raises:
        UserError: If the folder holds another world, of other parameters or an older renderer, or something else.
    """

    def fill(work: Path) -> None:
        splits = {split: _write_split(work, seed, split, count, processes) for split, count in counts.items()}
        write_annotations(work, crowd_vocabulary(), splits)

    counts = {"train": train, "test": test}
    return write_once(Path(root), _identity(seed, train, test), KIND, fill)


def is_written(root: str | Path, seed: int, train: int, test: int) -> bool:
    """Whether :func:`write_crowd` would find the world there.

    Raises:
        UserError: As :func:`write_crowd` does.
    """
    return holds(Path(root), _identity(seed, train, test), KIND)


def _identity(seed: int, train: int, test: int) -> dict[str, Any]:
    versions = {"kind": KIND, "world": WORLD_VERSION, "renderer": RENDERER_VERSION}
    return {**versions, "seed": seed, "train": train, "test": test}


def _write_split(root: Path, seed: int, split: str, count: int, processes: int) -> list[AnnotatedImage]:
    folder = root / "images" / f"{split}2015"
    folder.mkdir(parents=True)
    plans = plan_split(seed, split, count)
    names = [f"HICO_{split}2015_{index + 1:08d}.jpg" for index in range(count)]
    written = for_each_image(_write_image, processes, plans, names, [str(folder)] * count)
    write_rows(root / f"detections_{split}2015.json", (row for one in written for row in one.detections))
    write_rows(root / f"texts_{split}2015.json", (one.texts for one in written))
    if split == "test":
        pairs = [(plans[twin], written[row], written[twin]) for row, twin in twins(plans)]
        write_rows(root / f"twins_{split}2015.json", (_twin(*pair) for pair in pairs))
    return [one.image for one in written]


def _write_image(plan: ImagePlan, name: str, folder: str) -> _Written:
    scene = render_crowd(plan)
    save_image(Path(folder) / name, scene.image)
    boxes = whole_pixels(scene.boxes)
    image = AnnotatedImage(name, SIZE, SIZE, boxes, scene.objects, _triplets(scene))
    found = coco_results(name, detections(plan.seed, boxes, scene.objects, scene.hidden), SIZE)
    pairs = [
        {key: _pair(boxes, rows) for key, rows in (("acting", (r.human, r.object)), ("other", r.other))}
        for r in scene.relations
    ]
    return _Written(image, list(found), _texts(scene, name), pairs)


def _triplets(scene: CrowdScene) -> list[tuple[int, int, int]]:
    """The annotated acts."""
    vocabulary = crowd_vocabulary()
    table, verbs = vocabulary.hoi_id(), vocabulary.verbs
    return [
        (relation.human, relation.object, int(table[verbs.index(relation.verb), scene.objects[relation.object]]))
        for relation in scene.relations
        if relation.annotated
    ]


def _pair(boxes: np.ndarray, rows: tuple[int, int]) -> dict[str, list[int]]:
    human, obj = boxes[list(rows)].tolist()
    return {"human_box": human, "object_box": obj}


def _texts(scene: CrowdScene, name: str) -> dict[str, object]:
    acts = [
        {
            "verb": relation.verb,
            "object": relation.name,
            "annotated": relation.annotated,
            "grounding": texts.grounding(scene, relation),
            "context": texts.context(relation),
        }
        for relation in scene.relations
    ]
    return {"image_id": name, "plain": texts.plain(scene), "acts": acts}


def _twin(plan: ImagePlan, scene: _Written, twin: _Written) -> dict[str, object]:
    """A scene, its twin, and in each the pair that acts and the pair that would act in the other."""
    assert plan.swapped is not None
    act = plan.acts[plan.swapped]
    images = [{"image_id": one.image.file_name, **one.pairs[plan.swapped]} for one in (scene, twin)]
    return {"verb": act.verb, "object": act.name, "images": images}
