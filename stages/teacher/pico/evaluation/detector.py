"""Measures the pico detector on a world's test images: ``python -m hoi_distill.stages.teacher.pico.evaluation.detector`` writes
``detector/heldout.json``.

COCO's protocol: average precision over 101 recall levels, each detection by falling score taking the free truth of its
class that it overlaps most; a class's figure at IoU 0.5, 0.75 and averaged over 0.50:0.05:0.95, then the mean over classes.
Truth is every drawn person and object, also those that stand in no annotated pair.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.pico.render import render_scene
from hoi_distill.stages.data.pico.world import TEMPER, scene_seed
from hoi_distill.stages.evaluate.metrics.average_precision import interpolated_precision
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.weights import Checkpoint

SHIPPED = Path(__file__).parents[1] / "detector"
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101) - 1e-12
"""COCO's recall levels; a recall that is a level but for rounding has reached it."""

Boxes = dict[str, np.ndarray]
"""Of one image: boxes ``[K, 4]`` xyxy, labels ``[K]``, and scores ``[K]`` where they were detected."""


def held_out(count: int, world: int = 0) -> Iterator[tuple[Image.Image, Boxes]]:
    """The first test images of a world as they lie on disk (JPEG), with all their boxes in whole pixels."""
    for index in range(count):
        scene = render_scene(scene_seed(world, "test", index), temper=TEMPER["test"])
        encoded = io.BytesIO()
        Image.fromarray(scene.image).save(encoded, "JPEG", quality=95, subsampling=0)
        whole = np.concatenate([np.floor(scene.boxes[:, :2]), np.ceil(scene.boxes[:, 2:])], 1)
        yield decode(encoded.getvalue()), {"boxes": whole, "labels": scene.objects}


def detect(detector: Detector, images: Sequence[Image.Image]) -> list[Boxes]:
    """Every image's cell, by an opened detector."""
    found = []
    for start in range(0, len(images), detector.batch_size):
        part = images[start : start + detector.batch_size]
        rows = np.zeros(len(part), "V16")
        cells = detector.compute(Batch(rows, [""] * len(part), len(part), part), ("value",), {})["value"]
        found += [
            {name: np.array(cell[name].as_py(), np.float32) for name in ("boxes", "scores", "labels")} for cell in cells
        ]
    return found


def average_precision(found: Sequence[Boxes], truths: Sequence[Boxes], threshold: float) -> dict[int, float]:
    """``{label: average precision}`` of every label that the truths hold, at one IoU."""
    labels = np.unique(np.concatenate([truth["labels"] for truth in truths]))
    figures = {}
    for label in labels.tolist():
        scores, is_tp, positives = [], [], 0
        for guess, truth in zip(found, truths, strict=True):
            mine, theirs = guess["labels"] == label, truth["labels"] == label
            positives += int(theirs.sum())
            scores.append(guess["scores"][mine])
            is_tp.append(_matched(guess["boxes"][mine].reshape(-1, 4), truth["boxes"][theirs], threshold))
        ranked = np.concatenate(is_tp)[np.argsort(-np.concatenate(scores), kind="stable")]
        one_class = np.zeros(len(ranked), np.int64)
        figures[label] = float(interpolated_precision(one_class, ranked, np.array([positives]), RECALLS)[0])
    return figures


def _matched(boxes: np.ndarray, truth: np.ndarray, threshold: float) -> np.ndarray:
    """Which of ``boxes [K, 4]``, best first, are true positives: bool ``[K]``."""
    overlaps = box_ops.iou_matrix(boxes, truth)
    is_tp = np.zeros(len(boxes), bool)
    for row in np.flatnonzero((overlaps >= threshold).any(1)):
        if overlaps[row].max() >= threshold:
            is_tp[row] = True
            overlaps[:, overlaps[row].argmax()] = -1
    return is_tp


def measure(folder: Path, count: int) -> dict[str, object]:
    """Figures and speed (one thread, preprocessing included, decoding not) on the first ``count`` test images."""
    images, truths = (list(part) for part in zip(*held_out(count), strict=True))
    detector = Detector(Detector.Config(checkpoint=Checkpoint.find(folder), batch_size=32))
    detector.open("cpu", {})
    detect(detector, images[:32])
    begun = time.process_time()
    found = detect(detector, images)
    seconds = time.process_time() - begun
    at = {threshold: average_precision(found, truths, threshold) for threshold in THRESHOLDS}
    means = {threshold: float(np.mean(list(figures.values()))) for threshold, figures in at.items()}
    per_class = {
        COCO_OBJECTS[label]: {"AP50": round(at[0.5][label], 4), "AP75": round(at[0.75][label], 4)} for label in at[0.5]
    }
    return {
        "pictures": count,
        "AP50": round(means[0.5], 4),
        "AP75": round(means[0.75], 4),
        "AP": round(float(np.mean(list(means.values()))), 4),
        "pictures_per_cpu_second": round(count / seconds, 1),
        "classes": per_class,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="COCO average precision of the pico detector on a pico test split.")
    parser.add_argument("--detector", type=Path, default=SHIPPED)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures = measure(options.detector, options.count)
    (options.detector / "heldout.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
