"""Measures the pico CLIP on unseen scenes: ``python -m hoi_distill.stages.teacher.pico.evaluation.clip`` writes
``clip/heldout.json``.

Zero-shot: the cosine of an image and each prompt. Linear probe: one logistic regression a fact upon the patch tokens
(mean and maximum over the 8 x 8 cells), learnt on scenes of its own; the same upon an untrained tower, and the share of true
labels, which is what ranking at random gets.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoProcessor

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.teacher.pico.evaluation.blip import SHIPPED, average_precision, pixel_values, swap_accuracy
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel, build_model
from hoi_distill.stages.teacher.pico.training import captions, corpus
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.weights import image_processor

PROBE = replace(corpus.HELD_OUT, name="probe", first_seed=1_700_000_000, count=4_000)
"""Scenes that a probe learns from; nothing else has seen them."""


@torch.no_grad()
def tokens(model: PicoClipModel, pixels: Tensor) -> Tensor:
    """Patch tokens after the final layer norm, ``[N, 64, D]``."""
    tower = model.vision_model
    return torch.cat([tower.post_layernorm(tower(part).last_hidden_state[:, 1:]) for part in pixels.split(100)])


@torch.no_grad()
def cosines(model: PicoClipModel, processor: Any, pixels: Tensor, prompts: list[str]) -> np.ndarray:
    """Float ``[N, P]``."""
    asked = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    said = model.get_text_features(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]).pooler_output
    seen = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in pixels.split(100)])
    return (F.normalize(seen, dim=-1) @ F.normalize(said, dim=-1).T).numpy()


def probe_map(seen: Tensor, labels: np.ndarray, unseen: Tensor, truth: np.ndarray) -> float:
    """Class mAP on ``unseen`` tokens of linear probes learnt on ``seen`` ones."""

    def pooled(states: Tensor) -> Tensor:
        return torch.cat([states.mean(1), states.amax(1)], 1)

    x, y = pooled(seen), torch.from_numpy(labels).float()
    mean, std = x.mean(0), x.std(0) + 1e-6
    torch.manual_seed(0)
    probe = nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(300):
        loss = F.binary_cross_entropy_with_logits(probe((x - mean) / std), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = probe((pooled(unseen) - mean) / std).numpy()
    return float(np.nanmean(average_precision(scores.T, truth.T)))


def evaluate(folder: Path) -> dict[str, Any]:
    """All figures of the checkpoint in ``folder``; its model card defines them."""
    grammar = Grammar(HOIS)
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = image_processor(folder)
    model: PicoClipModel = PicoClipModel.from_pretrained(folder).eval()
    parts = [corpus.load(part) for part in (PROBE, corpus.HELD_OUT)]
    (_, labels), (_, truth) = (part.facts(grammar) for part in parts)
    learnt, unseen = (pixel_values(processor, part.pixels) for part in parts)
    scores = cosines(model, processor, unseen, [captions.prompt(*fact) for fact in grammar.facts])
    torch.manual_seed(0)
    untrained = build_model(processor.tokenizer).eval()
    projected = [(tokens(model, pixels) @ model.visual_projection.weight.T).detach() for pixels in (learnt, unseen)]
    return {
        "scenes": len(unseen),
        "probe_scenes": len(learnt),
        "zero_shot": {
            "rank_map": float(np.nanmean(average_precision(scores, truth))),
            "class_map": float(np.nanmean(average_precision(scores.T, truth.T))),
            "swap_pairwise": swap_accuracy(scores, truth, grammar.facts)["pairwise"],
        },
        "probe_map": {
            "full": probe_map(tokens(model, learnt), labels, tokens(model, unseen), truth),
            "projected": probe_map(projected[0], labels, projected[1], truth),
            "untrained": probe_map(tokens(untrained, learnt), labels, tokens(untrained, unseen), truth),
        },
        "chance_map": float(truth.mean()),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure the pico CLIP on unseen scenes.")
    parser.add_argument(
        "--teacher", type=Path, default=SHIPPED / "clip", help="the checkpoint (default: the shipped one)"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = json.dumps(evaluate(options.teacher), indent=2)
    (options.teacher / "heldout.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
