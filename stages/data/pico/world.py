"""A whole pico world on disk, in HICO-DET's layout: images, annotations, and what an imperfect detector would say."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, OBJECT_INDEX
from hoi_distill.stages.data.pico.classes import HOIS, OBJECTS
from hoi_distill.stages.data.pico.layout import AnnotatedImage, write_annotations
from hoi_distill.stages.data.pico.render import RENDERER_VERSION, SIZE, Scene, render_scene
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.storage.errors import UserError

WORLD_VERSION = 1
"""Raised with every change of the files written from the same scenes."""

TEMPER = {"train": 1.0, "test": 0.3}
"""Training has the long tail; the test split is flattened so that 1,000 images hold each class ten times."""

_SEED_STRIDE = 10_000_000
_SPLIT_START = {"train": 0, "test": 5_000_000}
_STALE_SECONDS = 3600
_PARALLEL_FROM = 1_000  # images; below, starting processes costs more than it saves


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
    root, identity = Path(root), _identity(seed, train, test)
    if _holds(root, identity):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}-rendering-"
    for stale in root.parent.glob(f"{prefix}*"):  # of a writer that was killed
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        work.chmod(0o755)
        splits = {"train": _write_split(work, seed, "train", train, processes)}
        splits["test"] = _write_split(work, seed, "test", test, processes)
        write_annotations(work, pico_vocabulary(), splits)
        (work / "world.json").write_text(json.dumps(identity, indent=1) + "\n")
        try:
            os.replace(work, root)  # fails on a folder that is no longer empty
        except OSError:
            if not _holds(root, identity):  # unless somebody else has just written the same world
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def is_written(root: str | Path, seed: int, train: int, test: int) -> bool:
    """Whether :func:`write_world` would find the world there.

    Raises:
        UserError: As :func:`write_world` does.
    """
    return _holds(Path(root), _identity(seed, train, test))


def _identity(seed: int, train: int, test: int) -> dict[str, int]:
    return {"world": WORLD_VERSION, "renderer": RENDERER_VERSION, "seed": seed, "train": train, "test": test}


def _holds(root: Path, identity: dict[str, int]) -> bool:
    """Whether the folder holds that very world; False where there is nothing.

    Raises:
        UserError: If it holds something else.
    """
    try:
        found = json.loads((root / "world.json").read_text())
    except (OSError, ValueError):
        found = None
    if found == identity:
        return True
    if isinstance(found, dict):
        changes = (
            f"{key}: {found.get(key, 'none')} -> {identity.get(key, 'none')}"
            for key in [*identity, *(key for key in found if key not in identity)]
            if found.get(key) != identity.get(key)
        )
        raise UserError(
            f"{root}: holds another pico world ({', '.join(changes)}), which is never rewritten; "
            "give another dataset.root, or remove the folder"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: not empty and no pico world; give an empty or new folder as dataset.root")
    return False


def _write_split(root: Path, seed: int, split: str, count: int, processes: int) -> list[AnnotatedImage]:
    folder = root / "images" / f"{split}2015"
    folder.mkdir(parents=True)
    jobs = (range(count), repeat(seed), repeat(split), repeat(str(folder)))
    if processes > 1 and count >= _PARALLEL_FROM:
        # spawn: the caller may have threads (Ray, torch), which a fork would not survive
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(_write_image, *jobs, chunksize=100))
    else:
        results = list(map(_write_image, *jobs))
    lines = ",\n".join(json.dumps(detection) for _, detections in results for detection in detections)
    (root / f"detections_{split}2015.json").write_text(f"[\n{lines}\n]\n")
    return [image for image, _ in results]


def _write_image(index: int, seed: int, split: str, folder: str) -> tuple[AnnotatedImage, list[dict[str, object]]]:
    scene = render_scene(scene_seed(seed, split, index), temper=TEMPER[split])
    name = f"HICO_{split}2015_{index + 1:08d}.jpg"
    encoded = io.BytesIO()
    Image.fromarray(scene.image).save(encoded, "JPEG", quality=95, subsampling=0)
    (Path(folder) / name).write_bytes(encoded.getvalue())
    image = AnnotatedImage(name, SIZE, SIZE, _whole_pixels(scene.boxes), scene.objects, _triplets(scene))
    rng = np.random.default_rng([seed, _SPLIT_START[split], index])
    return image, list(_detections(name, image.boxes, image.objects, rng))


def _whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Grown to pixel borders, as HICO-DET's boxes are whole numbers."""
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)


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
    for box, label, score in sorted(rows, key=lambda row: -row[2]):
        x1, y1, x2, y2 = np.clip(box, 0, SIZE).round(2).tolist()
        xywh = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        yield {"image_id": name, "category_id": COCO_CATEGORY_IDS[label], "bbox": xywh, "score": round(float(score), 4)}
