"""Measures the crowd's matching teacher on unseen scenes: ``python -m hoi_distill.stages.teacher.crowd.evaluation.matching``
writes ``itm/heldout.json``.

Beside it stands a guess that sees every object and no act: all interactions with an object that is there are equally likely.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from transformers import AutoProcessor

from hoi_distill.stages.data.crowd.classes import HOIS, PARTICIPLES, crowd_vocabulary
from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer
from hoi_distill.stages.teacher.crowd.training import corpus
from hoi_distill.stages.teacher.crowd.training.dense import SEEN, DenseLabels
from hoi_distill.stages.teacher.pico.evaluation.blip import average_precision, pixel_values, swap_accuracy
from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipForImageTextRetrieval, load_strict
from hoi_distill.stages.teacher.weights import image_processor

SHIPPED = Path(__file__).parents[1] / "itm"


@torch.inference_mode()
def margins(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """Log-odds of a match of every prompt of the vocabulary, float32 ``[N, 46]``."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = image_processor(folder)
    model = load_strict(PicoBlipForImageTextRetrieval, folder)
    scorer = ItmScorer(model, processor.tokenizer)
    prompts = crowd_vocabulary().prompts()
    found = []
    for start in range(0, len(pixels), 20):
        states = model.vision_model(pixel_values(processor, pixels[start : start + 20])).last_hidden_state
        logits = scorer.score(states, prompts).numpy()
        found.append(logits[..., 1] - logits[..., 0])
    return np.concatenate(found)


def objects_there(labels: DenseLabels) -> np.ndarray:
    """bool ``[N, 46]``, whether some cell shows the interaction's object."""
    anywhere = labels.seen.max(axis=(1, 2))
    return anywhere[:, [SEEN.index(name) for _, name in HOIS]]


def area_under_roc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often a true row scores above a false one, equal scores counting half.

    Args:
        scores: float ``[N, H]``.
        truth: bool ``[N, H]``.

    Returns:
        float64 ``[H]``; NaN where all rows are true, or none is.
    """
    true = truth.sum(0)
    below = (rankdata(scores, axis=0) * truth).sum(0) - true * (true + 1) / 2
    with np.errstate(invalid="ignore"):
        return below / (true * (len(truth) - true))


def figures(scores: np.ndarray, truth: np.ndarray, there: np.ndarray) -> dict[str, Any]:
    """What the model card says, which defines the figures.

    Args:
        scores: float ``[N, 46]``.
        truth: bool ``[N, 46]``, the interactions that each scene shows.
        there: bool ``[N, 46]``, whether the interaction's object is in the scene.
    """
    area = area_under_roc(scores, truth)
    among = [area_under_roc(scores[rows, k, None], truth[rows, k, None]) for k, rows in enumerate(there.T)]
    by_verb = {verb: [k for k, (other, _) in enumerate(HOIS) if other == verb] for verb in PARTICIPLES}
    swaps = swap_accuracy(scores, truth, HOIS)
    return {
        "auc": float(np.nanmean(area)),
        "auc_object_there": float(np.nanmean(among)),
        "auc_by_verb": {verb: float(np.nanmean(area[rows])) for verb, rows in by_verb.items()},
        "class_map": float(np.nanmean(average_precision(scores.T, truth.T))),
        "rank_map": float(np.nanmean(average_precision(scores, truth))),
        "swap_pairwise": float(swaps["pairwise"]),
    }


def evaluate(folder: Path) -> dict[str, Any]:
    """All figures of the checkpoint in ``folder``."""
    part = corpus.load(corpus.HELD_OUT)
    truth, there = corpus.HELD_OUT.interactions(), objects_there(part.labels)
    return {
        "scenes": len(truth),
        "itm": figures(margins(folder, part.pixels), truth, there),
        "objects_alone": figures(there.astype(np.float32), truth, there),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure the crowd's matching teacher on unseen scenes.")
    parser.add_argument("--teacher", type=Path, default=SHIPPED, help="the checkpoint (default: the shipped one)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = json.dumps(evaluate(options.teacher), indent=2)
    (options.teacher / "heldout.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
