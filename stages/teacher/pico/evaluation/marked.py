"""Measures the pico teacher that is asked about pairs: ``python -m hoi_distill.stages.teacher.pico.evaluation.marked`` writes
``heldout.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import SIZE, render_scene
from hoi_distill.stages.evaluate.metrics.localisation import area, calibration_error, localisation_area
from hoi_distill.stages.teacher.pico.training.corpus import HELD_OUT
from hoi_distill.stages.teacher.pico.training.marked import Lesson, PairLearner, Questions
from hoi_distill.stages.teacher.weights import Checkpoint, load

SHIPPED = Path(__file__).parents[1] / "marked"


def scenes(count: int) -> Iterator[Lesson]:
    """Every question about every pair of a held-out scene, its boxes as a detector might see them."""
    questions = Questions(np.random.default_rng(0))
    for seed in range(HELD_OUT.first_seed, HELD_OUT.first_seed + count):
        scene = render_scene(seed, temper=HELD_OUT.tempers[0])
        boxes, labels = questions.boxes(scene)
        every = questions.every(scene, labels)
        if every:
            yield Lesson(
                scene.image[None],
                boxes[[[(each.human, each.object_) for each in every]]] / SIZE,
                np.array([[each.hoi for each in every]]),
                np.array([[each.yes for each in every]]),
            )


@torch.inference_mode()
def evaluate(folder: Path, count: int) -> dict[str, Any]:
    """The figures of a checkpoint on ``count`` held-out scenes."""
    model = load(Checkpoint.find(folder), folder, "float32", "cpu")
    learner = PairLearner(model, AutoProcessor.from_pretrained(folder))
    margins, shown, groups = [], [], []
    for number, lesson in enumerate(scenes(count)):
        margins.append(learner.margins(learner.logits(lesson)).ravel())
        shown.append(lesson.yes.ravel())
        groups.append(lesson.hoi.ravel() + number * len(HOIS))
    margin, yes, group = np.concatenate(margins), np.concatenate(shown), np.concatenate(groups)
    localisation, comparisons = localisation_area(margin, yes, group)
    verbs = np.array([verb for verb, _ in HOIS])[group % len(HOIS)]
    by_verb = {verb: area(margin[verbs == verb], yes[verbs == verb]) for verb in np.unique(verbs).tolist()}
    return {
        "scenes": count,
        "questions": len(yes),
        "true": int(yes.sum()),
        "localisation": _rounded(localisation),
        "comparisons": comparisons,
        "area": _rounded(area(margin, yes)),
        "accuracy": _rounded(float(((margin > 0) == yes).mean())),
        "calibration_error": _rounded(calibration_error(1 / (1 + np.exp(-margin.astype(np.float64))), yes)),
        "by_verb": {verb: _rounded(value) for verb, value in by_verb.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure a pico teacher's answers about pairs on unseen scenes.")
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED, help="a checkpoint, with marks or without")
    parser.add_argument("--scenes", type=int, default=400)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = evaluate(options.folder, options.scenes)
    (options.folder / "heldout.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
