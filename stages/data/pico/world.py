"""A whole pico world on disk, in HICO-DET's layout: images, annotations, and what an imperfect detector would say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.pico.classes import HOIS, OBJECTS
from hoi_distill.stages.data.pico.layout import AnnotatedImage, write_annotations
from hoi_distill.stages.data.pico.render import RENDERER_VERSION, SIZE, Scene, render_scene
from hoi_distill.stages.data.pico.writing import (
    coco_results,
    for_each_image,
    holds,
    save_image,
    whole_pixels,
    write_once,
    write_rows,
)
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary

KIND = "pico world"
"""What it is called in messages."""
WORLD_VERSION = 1
"""Raised with every change of the files written from the same scenes."""

TEMPER = {"train": 1.0, "test": 0.3}
"""Training has the long tail; the test split is flattened so that 1,000 images hold each class ten times."""

_SEED_STRIDE = 10_000_000
_SPLIT_START = {"train": 0, "test": 5_000_000}


@cache
def pico_vocabulary() -> Vocabulary:
    """The pico world's 58 interactions, a subset of HICO-DET's in the same order."""
    hico = hico_vocabulary()
    participle = dict(zip(hico.verbs, hico.verb_ing, strict=True))
    return Vocabulary.from_actions([(name, verb, participle[verb]) for verb, name in HOIS], "the pico world")


def scene_seed(world: int, split: str, index: int) -> int:
    """The renderer's seed of image `index` of a split; worlds and splits never share one."""
    return world * _SEED_STRIDE + _SPLIT_START[split] + index


def write_world(root: str | Path, seed: int = 0, train: int = 4000, test: int = 1000, processes: int = 2) -> Path:
    """Write a world and return its folder; byte for byte a function of (seed, train, test).

    Written: ``anno_bbox.mat``, ``anno.mat``, ``images/{train,test}2015/*.jpg``, ``detections_{train,test}2015.json``
    (COCO results: the true boxes, jittered, some missed, some misnamed, some invented) and ``world.json``. The folder
    appears whole or not at all, and what is on disk is never changed: one that holds this very world is left alone.

    Raises:
        UserError: If the folder holds another world, of other parameters or an older renderer, or something else.
    """

    def fill(work: Path) -> None:
        splits = {
            "train": _write_split(work, seed, "train", train, processes),
            "test": _write_split(work, seed, "test", test, processes),
        }
        write_annotations(work, pico_vocabulary(), splits)

    return write_once(Path(root), _identity(seed, train, test), KIND, fill)


def is_written(root: str | Path, seed: int, train: int, test: int) -> bool:
    """Whether :func:`write_world` would find the world there.

    Raises:
        UserError: As :func:`write_world` does.
    """
    return holds(Path(root), _identity(seed, train, test), KIND)


def _identity(seed: int, train: int, test: int) -> dict[str, int]:
    return {"world": WORLD_VERSION, "renderer": RENDERER_VERSION, "seed": seed, "train": train, "test": test}


def _write_split(root: Path, seed: int, split: str, count: int, processes: int) -> list[AnnotatedImage]:
    folder = root / "images" / f"{split}2015"
    folder.mkdir(parents=True)
    same = [seed] * count, [split] * count, [str(folder)] * count
    results = for_each_image(_write_image, processes, range(count), *same)
    write_rows(
        root / f"detections_{split}2015.json", (detection for _, detections in results for detection in detections)
    )
    return [image for image, _ in results]


def _write_image(index: int, seed: int, split: str, folder: str) -> tuple[AnnotatedImage, list[dict[str, object]]]:
    scene = render_scene(scene_seed(seed, split, index), temper=TEMPER[split])
    name = f"HICO_{split}2015_{index + 1:08d}.jpg"
    save_image(Path(folder) / name, scene.image)
    image = AnnotatedImage(name, SIZE, SIZE, whole_pixels(scene.boxes), scene.objects, _triplets(scene))
    rng = np.random.default_rng([seed, _SPLIT_START[split], index])
    return image, list(_detections(name, image.boxes, image.objects, rng))


def _triplets(scene: Scene) -> list[tuple[int, int, int]]:
    vocabulary = pico_vocabulary()
    table, verbs = vocabulary.hoi_id(), vocabulary.verbs
    return [
        (human, obj, int(table[verbs.index(verb), scene.objects[obj]]))
        for human, obj, labels in scene.pairs
        for verb in labels
    ]


def _detections(
    name: str, boxes: np.ndarray, objects: np.ndarray, rng: np.random.Generator
) -> Iterable[dict[str, object]]:
    """COCO results of an imagined detector: 6 % jitter, 4 % missed, 5 % misnamed, 15 % with a second name."""
    others = [OBJECT_INDEX[other] for other in OBJECTS]
    rows: list[tuple[np.ndarray, int, float]] = []
    for box, label in zip(boxes.astype(float), objects.tolist(), strict=True):
        side = np.tile(box[2:] - box[:2], 2)
        near = box + np.clip(rng.normal(0, 0.06, 4), -0.12, 0.12) * side
        missed, misnamed, doubted = rng.random(3)
        score = rng.beta(8, 1.5)
        if missed < 0.04:
            continue
        wrong = int(rng.choice(others))
        if label != 0 and misnamed < 0.05:
            rows.append((near, wrong, 0.7 * score))
            continue
        rows.append((near, label, score))
        if label != 0 and doubted < 0.15 and wrong != label:
            rows.append((near, wrong, rng.uniform(0.05, 0.35)))
    for _ in range(rng.poisson(1.5)):
        corner, side = rng.uniform(0, 0.85 * SIZE, 2), rng.uniform(8, 50, 2)
        label = 0 if rng.random() < 0.3 else int(rng.choice(others))
        rows.append((np.concatenate([corner, corner + side]), label, rng.beta(1.5, 8)))
    return coco_results(name, rows, SIZE)
