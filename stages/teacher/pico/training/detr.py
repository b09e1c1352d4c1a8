"""Trains the pico DETR on boxes: ``python -m hoi_distill.stages.teacher.pico.training.detr --out DIR``.

A plain DETR (Carion et al. 2020) of transformers' own class on the pico detector's backbone. It detects worse than that
detector and is no teacher: it is what DETR-R50 of COCO is to the students of the literature, the start whose encoder,
decoder, queries and heads a small MUREN inherits. It has seen boxes and no verbs.

The scenes follow those that trained the pico detector. Lengths are counted in steps, not seconds: the same command gives
the same weights on the same machine with one thread.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.pico.render import SIZE
from hoi_distill.stages.teacher.pico.training.detector import FIRST_SEED, LABELS, scenes
from hoi_distill.stages.teacher.pico.training.run import (
    AveragedWeights,
    Log,
    begin,
    descend,
    one_cycle,
    save_checkpoint,
    write_recipe,
)

DETECTOR = Path(__file__).parents[1] / "detector"
STAGES = 3
"""As many of the backbone's stages are kept; the last one learns, what lies before it stays as the detector has it."""


@dataclass(frozen=True)
class DetrRecipe:
    """Everything the weights depend on besides the detector's backbone."""

    seed: int = 0
    first_scene: int = FIRST_SEED + 200_000
    batch: int = 16
    steps: int = 13000
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    average: float = 0.999


def build_model(detector: RTDetrForObjectDetection) -> DetrForObjectDetection:
    """0.65 million parameters: the detector's backbone up to stride 16, one encoder and two decoder layers 96 wide, 16
    queries. Everything after the backbone is drawn as the original DETR draws it."""
    record = detector.config.backbone_config.to_dict()  # type: ignore[union-attr]
    for name in ("out_indices", "out_features", "stage_names"):
        record.pop(name, None)
    record |= {name: record[name][:STAGES] for name in ("hidden_sizes", "depths")}
    names = [COCO_OBJECTS[label].replace("_", " ") for label in LABELS]
    config = DetrConfig(
        backbone_config=RTDetrResNetConfig.from_dict(record | {"out_features": [f"stage{STAGES}"]}),
        d_model=96,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        num_queries=16,
        dropout=0.0,
        auxiliary_loss=True,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = DetrForObjectDetection(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "backbone" not in name and "query_position" not in name:
            nn.init.xavier_uniform_(parameter)
    theirs = {_tail(name): value for name, value in detector.model.backbone.state_dict().items()}
    backbone = model.model.backbone
    state = {name: theirs.get(_tail(name), value) for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(f"encoder.stages.{STAGES - 1}" in name and parameter.dim() > 1)
    return model


def _tail(name: str) -> str:
    """A backbone's parameter without the names of what holds the backbone."""
    return name[max(name.find("embedder"), name.find("encoder.stages")) :]


def train(model: DetrForObjectDetection, recipe: DetrRecipe, log: Log, out: Path) -> nn.Module:
    """AdamW over one cycle with the stock loss; gives back the running average of the weights."""
    data = scenes(recipe.batch, np.random.default_rng([recipe.seed, 4]), recipe.first_scene)
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    groups = [
        {"params": [each for name, each in learning.items() if "backbone" not in name], "peak": recipe.lr},
        {"params": [each for name, each in learning.items() if "backbone" in name], "peak": recipe.backbone_lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=1e-4)
    averaged = AveragedWeights(model, recipe.average)
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * max(0.02, one_cycle(step, recipe.steps, 100))
        pixels, targets = next(data)
        answer = model(pixels.contiguous(), labels=targets)
        descend(optimizer, {"loss": answer.loss}, learning.values(), 1.0)
        averaged.update(model, step)
        log.add({"loss": answer.loss} | {name: answer.loss_dict[f"loss_{name}"] for name in ("ce", "bbox", "giou")})
        if (step + 1) % 50 == 0:
            log.flush("train", step + 1)
        if (step + 1) % 1000 == 0:
            save(averaged.model, out)
    return averaged.model


def save(model: nn.Module, out: Path) -> None:
    """Write the checkpoint."""
    size = {"height": SIZE, "width": SIZE}
    save_checkpoint(model, DetrImageProcessorPil(size=size, do_normalize=False, do_pad=False), out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the pico DETR on rendered scenes.")
    parser.add_argument("--detector", type=Path, default=DETECTOR, help="the pico detector whose backbone it takes")
    recipe, out, own = begin(parser, DetrRecipe, argv)
    detector = RTDetrForObjectDetection.from_pretrained(own["detector"], local_files_only=True, dtype=torch.float32)
    model = build_model(detector)
    trained = train(model, recipe, Log(out / "train.jsonl"), out)
    save(trained.eval(), out)
    write_recipe(out, recipe, parameters=sum(p.numel() for p in trained.parameters()))


if __name__ == "__main__":
    main()
