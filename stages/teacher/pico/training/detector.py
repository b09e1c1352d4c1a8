"""Trains the pico detector on boxes: ``python -m hoi_distill.stages.teacher.pico.training.detector --out DIR``.

An RT-DETR (Zhao et al. 2024) of transformers' own class, small enough to learn on one CPU thread. The stock loss alone
starves it: 25 queries an image get a gradient, and early on none of them lies on anything. So it starts *dense*: every
cell of the encoder's maps is trained through the class's own encoder heads, several cells a box, without decoder or
Hungarian matching; then the stock loss takes over while the dense one fades. Lengths are counted in steps, not seconds:
the same command gives the same weights on the same machine with one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessorPil, RTDetrResNetConfig

from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.data.pico.classes import OBJECTS
from hoi_distill.stages.data.pico.render import SIZE, render_scene
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.teacher.pico.training.run import (
    AveragedWeights,
    Log,
    begin,
    descend,
    one_cycle,
    save_checkpoint,
    write_recipe,
)

FIRST_SEED = 1_400_000_000
"""Scenes are rendered as they are needed, from this seed on: no student's world and no other corpus reaches it."""
TEMPERS = (0.2, 0.35)
"""As in the other teacher's corpus, taken in turn: less long-tailed than the students' own."""
LABELS = tuple(sorted([0, *(OBJECT_INDEX[name] for name in OBJECTS)]))
"""COCO-80 index of each class of the detector, in COCO's order."""


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything the weights depend on."""

    seed: int = 0
    batch: int = 16
    dense_steps: int = 2200
    dense_lr: float = 2e-3
    joint_steps: int = 3800
    joint_lr: float = 1e-3
    cells_per_box: int = 6
    average: float = 0.998


def build_model() -> RTDetrForObjectDetection:
    """1.9 million parameters, strides 8, 16 and 32, 25 queries, freshly initialised so that it can learn."""
    backbone = RTDetrResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 1, 1], layer_type="basic",
        out_indices=[2, 3, 4],  # type: ignore[call-arg]
    )  # fmt: skip
    width = 96
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # the default freezes an untrained backbone's statistics
        encoder_in_channels=backbone.hidden_sizes[1:],
        encoder_hidden_dim=width,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=width,
        num_queries=25,
        decoder_in_channels=[width] * 3,
        decoder_ffn_dim=2 * width,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_denoising=20,
        initializer_bias_prior_prob=0.01,
        id2label={i: COCO_OBJECTS[label].replace("_", " ") for i, label in enumerate(LABELS)},
        label2id={COCO_OBJECTS[label].replace("_", " "): i for i, label in enumerate(LABELS)},
    )
    model = RTDetrForObjectDetection(config)
    for module in model.modules():  # the library draws them for fine-tuning: the encoder's answer would have std 1e-4
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear) and module.out_features not in (4, len(LABELS)):
            nn.init.xavier_uniform_(module.weight)
    for module in model.modules():
        if type(module).__name__ == "RTDetrMultiscaleDeformableAttention":  # these do start at zero
            nn.init.zeros_(module.sampling_offsets.weight)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(module.attention_weights.weight)  # type: ignore[arg-type, union-attr]
    return model


def scenes(
    batch: int, rng: np.random.Generator, seed: int = FIRST_SEED
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Endless batches of new scenes from ``seed`` on, half of them mirrored: float ``[B, 3, 128, 128]`` in [0, 1],
    channels last, and for each image ``{class_labels int64 [n], boxes float [n, 4]}``, cxcywh as fractions of the image."""
    label_of = np.full(len(COCO_OBJECTS), -1)
    label_of[list(LABELS)] = np.arange(len(LABELS))
    while True:
        pixels, targets = [], []
        for mirrored in rng.random(batch) < 0.5:
            scene = render_scene(seed, temper=TEMPERS[seed % len(TEMPERS)])
            whole = np.concatenate([np.floor(scene.boxes[:, :2]), np.ceil(scene.boxes[:, 2:])], 1)  # as annotated
            boxes = box_ops.flip(whole, SIZE) if mirrored else whole
            pixels.append(scene.image[:, ::-1] if mirrored else scene.image)
            fractions = torch.from_numpy(box_ops.xyxy_to_cxcywh(boxes) / SIZE).float()
            targets.append({"class_labels": torch.from_numpy(label_of[scene.objects]), "boxes": fractions})
            seed += 1
        yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255, targets


def encode(model: RTDetrForObjectDetection, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder heads' answer for all N cells, as the model's forward has it: class logits ``[B, N, C]`` and box
    logits ``[B, N, 4]`` (cxcywh before the sigmoid)."""
    inner = model.model
    maps = [feature for feature, _ in inner.backbone(pixels, pixels.new_ones(len(pixels), *pixels.shape[2:]))]
    maps = [project(feature) for project, feature in zip(inner.encoder_input_proj, maps, strict=True)]
    maps = inner.encoder(maps).last_hidden_state
    maps = [project(feature) for project, feature in zip(inner.decoder_input_proj, maps, strict=True)]
    shapes = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
    anchors, valid = inner.generate_anchors(shapes, dtype=torch.float32)
    cells = torch.cat([feature.flatten(2).transpose(1, 2) for feature in maps], 1)
    states = inner.enc_output(valid.to(cells.dtype) * cells)
    return inner.enc_score_head(states), inner.enc_bbox_head(states) + anchors


def assign(boxes: Tensor, targets: list[dict[str, Tensor]], anchors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One box to many cells: the ``count`` cells that suit each box best by place, scale and present overlap.

    Args:
        boxes: Predicted, float ``[B, N, 4]`` xyxy fractions, without a gradient.
        targets: B dictionaries with ``boxes``, float ``[n, 4]`` cxcywh fractions.
        anchors: float ``[N, 4]`` cxcywh fractions, as the model draws them. A cell is meant for boxes 3.2 times as large.
        count: The most cells of a box.

    Returns:
        ``owner`` int64 ``[B, N]``, the row in the padded targets that the cell answers for (-1: none), and ``overlap``
        float ``[B, N]``, its present IoU with that box (0 where none).
    """
    most = max(len(target["boxes"]) for target in targets)
    padded = torch.stack([F.pad(t["boxes"], (0, 0, 0, most - len(t["boxes"])), value=-9.0) for t in targets])
    here = padded[..., 0] > -1
    truth = box_ops.cxcywh_to_xyxy(padded)
    overlap_bgn = box_ops.iou(truth[:, :, None], boxes[:, None]) * here[..., None]
    side = padded[..., 2:].clamp(min=1e-3)
    away = ((anchors[:, :2] - padded[:, :, None, :2]) / side[:, :, None]).square().sum(-1)
    scale = (side.prod(-1).sqrt()[..., None] / (3.2 * anchors[:, 2])).log2().square()
    suits = torch.exp(-4 * away - 0.5 * scale) * (0.1 + overlap_bgn) * here[..., None]
    least = suits.topk(count, -1).values[..., -1:]
    suits = torch.where((suits >= least) & here[..., None], suits, -1.0)
    best, owner = suits.max(1)
    owner = torch.where(best > 0, owner, -1)
    overlap = overlap_bgn.gather(1, owner.clamp(min=0)[:, None])[:, 0] * (owner >= 0)
    return owner, overlap


def dense_loss(logits: Tensor, coordinates: Tensor, targets: list[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Varifocal, L1 and GIoU losses over all cells with the stock loss's weights; arguments as from :func:`encode`."""
    logits, coordinates = logits.float(), coordinates.float()
    cxcywh = coordinates.sigmoid()
    predicted = box_ops.cxcywh_to_xyxy(cxcywh)
    anchors = torch.cat([_grid(SIZE // stride, 0.05 * stride / 8) for stride in (8, 16, 32)])  # as the model draws them
    with torch.no_grad():
        owner, overlap = assign(predicted, targets, anchors, count)
        row, cell = torch.nonzero(owner >= 0, as_tuple=True)
        starts = torch.tensor(np.cumsum([0, *(len(t["boxes"]) for t in targets[:-1])]))
        which = starts[row] + owner[row, cell]
        labels = torch.cat([target["class_labels"] for target in targets])[which]
        truth = torch.cat([target["boxes"] for target in targets])[which]
        wanted, positive = torch.zeros_like(logits), torch.zeros_like(logits)
        wanted[row, cell, labels] = overlap[row, cell]
        positive[row, cell, labels] = 1.0
        weight = torch.where(positive > 0, wanted.clamp(min=0.1), 0.75 * logits.sigmoid().square())
    many = max(len(which), 1)
    score = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum") / many
    away = (cxcywh[row, cell] - truth).abs().sum() / many
    giou = (1 - box_ops.giou(predicted[row, cell], box_ops.cxcywh_to_xyxy(truth))).sum() / many
    return {"score": score, "l1": 5 * away, "giou": 2 * giou}


def _grid(cells: int, side: float) -> Tensor:
    """Anchors ``[cells * cells, 4]`` cxcywh as fractions, row by row."""
    at = (torch.arange(cells) + 0.5) / cells
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, side), torch.full_like(x, side)], -1).flatten(0, 1)


def train(
    model: RTDetrForObjectDetection, recipe: DetectorRecipe, log: Log, snapshot: Callable[[nn.Module], None]
) -> nn.Module:
    """Both phases; gives back the running average of the weights, which is better than the last ones."""
    data = scenes(recipe.batch, np.random.default_rng([recipe.seed, 3]))
    averaged = AveragedWeights(model, recipe.average)
    model.train()
    _phase(
        "dense",
        model,
        lambda _: _dense_step(model, recipe, data),
        steps=recipe.dense_steps,
        lr=recipe.dense_lr,
        log=log,
    )

    def joint(step: int) -> dict[str, Tensor]:
        losses = _joint_step(model, recipe, data, 1 - step / recipe.joint_steps)
        averaged.update(model, step)
        if (step + 1) % 500 == 0:
            snapshot(averaged.model)
        return losses

    _phase("joint", model, joint, steps=recipe.joint_steps, lr=recipe.joint_lr, log=log)
    return averaged.model


def _phase(
    name: str, model: nn.Module, losses_of: Callable[[int], dict[str, Tensor]], *, steps: int, lr: float, log: Log
) -> None:
    """AdamW over one cycle; no weight decay on biases and norms."""
    groups = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 1e-3}, {"params": groups[1], "weight_decay": 0.0}], lr=lr
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * max(0.02, one_cycle(step, steps, 100))
        losses = losses_of(step)
        descend(optimizer, losses, model.parameters(), 5.0)
        log.add(losses)
        if (step + 1) % 50 == 0:
            log.flush(name, step + 1)


def _dense_step(
    model: RTDetrForObjectDetection, recipe: DetectorRecipe, data: Iterator[tuple[Tensor, list[dict[str, Tensor]]]]
) -> dict[str, Tensor]:
    pixels, targets = next(data)
    with torch.autocast("cpu", torch.bfloat16):
        logits, coordinates = encode(model, pixels)
    return dense_loss(logits, coordinates, targets, recipe.cells_per_box)


def _joint_step(
    model: RTDetrForObjectDetection,
    recipe: DetectorRecipe,
    data: Iterator[tuple[Tensor, list[dict[str, Tensor]]]],
    fade: float,
) -> dict[str, Tensor]:
    """The stock loss on the stock forward, and ``fade`` times the dense loss."""
    pixels, targets = next(data)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pixels, labels=targets)
    dense = dense_loss(out.enc_outputs_class, out.enc_outputs_coord_logits, targets, recipe.cells_per_box)
    return {"stock": out.loss.float().squeeze(), **{f"dense_{key}": fade * loss for key, loss in dense.items()}}


def save(model: nn.Module, out: Path) -> None:
    """Write the checkpoint."""
    save_checkpoint(model, RTDetrImageProcessorPil(size={"height": SIZE, "width": SIZE}), out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the pico detector on rendered scenes.")
    recipe, out, _ = begin(parser, DetectorRecipe, argv)
    model = build_model().to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    trained = train(model, recipe, Log(out / "train.jsonl"), lambda averaged: save(averaged, out))
    save(trained.eval(), out)
    write_recipe(out, recipe, parameters=sum(p.numel() for p in trained.parameters()))


if __name__ == "__main__":
    main()
