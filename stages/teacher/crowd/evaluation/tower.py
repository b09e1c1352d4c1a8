"""Measures the crowd's tower on unseen scenes: ``python -m hoi_distill.stages.teacher.crowd.evaluation.tower`` writes
``tower/heldout.json``.

Linear probes (ridge regression) upon single cells, learnt on scenes of their own: what a cell shows, which way its rope or
water runs, and where the body in it has its parts. The same upon an untrained tower.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.teacher.crowd.training import corpus
from hoi_distill.stages.teacher.crowd.training.dense import SEEN, VECTORS, DenseLabels
from hoi_distill.stages.teacher.pico.evaluation.blip import average_precision, pixel_values
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel, build_model
from hoi_distill.stages.teacher.weights import image_processor

SHIPPED = Path(__file__).parents[1] / "tower"
STRETCHED = 0.25
"""Of a body's height between shoulder and hand: from there on an arm has a direction."""


@torch.no_grad()
def cells(model: PicoClipModel, processor: Any, pixels: np.ndarray) -> np.ndarray:
    """Tokens of all cells after the final layer norm, and 1: float32 ``[N * 256, D + 1]``."""
    tower = model.vision_model
    parts = [
        tower.post_layernorm(tower(pixel_values(processor, pixels[i : i + 20])).last_hidden_state[:, 1:])
        for i in range(0, len(pixels), 20)
    ]
    tokens = torch.cat(parts).flatten(0, 1).numpy()
    return np.concatenate([tokens, np.ones((len(tokens), 1), np.float32)], 1)


def ridge(inputs: np.ndarray, targets: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """float64 ``[D, K]``, the linear map from rows of ``inputs`` to rows of ``targets``."""
    x, y = inputs.astype(np.float64), targets.astype(np.float64)
    return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)


def flat(labels: DenseLabels) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What cells show, their lines, their bodies, and whether there is a body: rows of all cells."""
    seen, line, body = (array.reshape(-1, array.shape[-1]) for array in (labels.seen, labels.line, labels.body))
    return seen, line.astype(np.float32), body.astype(np.float32), labels.posture.reshape(-1) >= 0


def degrees_between(said: np.ndarray, true: np.ndarray) -> float:
    """The median angle between rows of two float ``[n, 2]``."""
    turn = np.arctan2(said[:, 1], said[:, 0]) - np.arctan2(true[:, 1], true[:, 0])
    return float(np.median(np.abs((np.degrees(turn) + 180) % 360 - 180)))


def probed(learnt: np.ndarray, labels: DenseLabels, unseen: np.ndarray, truth: DenseLabels) -> dict[str, Any]:
    """Figures of probes that learn from ``learnt`` cells, on ``unseen`` ones."""
    seen, line, body, anybody = flat(labels)
    true_seen, true_line, true_body, somebody = flat(truth)
    precision = average_precision((unseen @ ridge(learnt, seen)).T, true_seen.T)
    on, there = line.any(1), true_line.any(1)
    doubled = unseen[there] @ ridge(learnt[on], line[on])
    vectors = unseen[somebody] @ ridge(learnt[anybody], body[anybody])
    wanted = true_body[somebody]
    errors = ((vectors - wanted) ** 2).sum(0) / ((wanted - wanted.mean(0)) ** 2).sum(0)
    angles = {}
    for name in ("near_hand", "telescope"):
        pair = slice(2 * VECTORS.index(name), 2 * VECTORS.index(name) + 2)
        long = np.linalg.norm(wanted[:, pair], axis=1) > (STRETCHED if name == "near_hand" else 0)
        angles[name] = degrees_between(vectors[long, pair], wanted[long, pair])
    return {
        "seen_ap": dict(zip(SEEN, precision.tolist(), strict=True)),
        "seen_map": float(precision.mean()),
        "vector_r2": {name: float(1 - errors[2 * k : 2 * k + 2].mean()) for k, name in enumerate(VECTORS)},
        "degrees": angles | {"line": degrees_between(doubled, true_line[there]) / 2},
    }


def evaluate(folder: Path) -> dict[str, Any]:
    """All figures of the checkpoint in ``folder``; its model card defines them."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = image_processor(folder)
    model: PicoClipModel = PicoClipModel.from_pretrained(folder).eval()
    parts = [corpus.load(part) for part in (corpus.PROBED, corpus.HELD_OUT)]
    torch.manual_seed(0)
    untrained = build_model(processor.tokenizer, SIZE).eval()
    figures = {}
    for name, tower in (("tower", model), ("untrained", untrained)):
        learnt, unseen = (cells(tower, processor, part.pixels) for part in parts)
        figures[name] = probed(learnt, parts[0].labels, unseen, parts[1].labels)
    return {"scenes": len(parts[1].pixels), "probe_scenes": len(parts[0].pixels), **figures}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure the crowd's tower on unseen scenes.")
    parser.add_argument("--tower", type=Path, default=SHIPPED, help="the checkpoint (default: the shipped one)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = json.dumps(evaluate(options.tower), indent=2)
    (options.tower / "heldout.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
