"""Detector checkpoints whose ResNet came from timm, loaded without timm.

Hub configurations of the DETR family say ``use_timm_backbone: true`` (newer ones ``model_type: timm_backbone``). timm's
ResNet and transformers' compute the same, stride in the 3 x 3 convolution included, and differ in the names of their
weights only, so such a checkpoint is read into transformers' ResNet, every key renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

DEPTHS = {
    "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}  # fmt: skip
"""Blocks of each stage; from resnet50 on they are bottlenecks."""

_BACKBONE = re.compile(r"(.*\bbackbone\.(?:conv_encoder\.)?model\.)(?:_backbone\.)?(.+)")


def resnet(name: str, out_indices: list[int]) -> dict[str, Any]:
    """transformers' configuration of a ResNet; ``out_indices`` as timm counts: 0 the stem, 1 to 4 the stages.

    Raises:
        UserError: another backbone.
    """
    family = name.split(".")[0]
    if family not in DEPTHS:
        raise UserError(f"backbone '{name}' has no counterpart in transformers; there are {', '.join(DEPTHS)}")
    bottleneck = family not in ("resnet18", "resnet34")
    return {
        "model_type": "resnet",
        "depths": list(DEPTHS[family]),
        "hidden_sizes": [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "out_features": [("stem", "stage1", "stage2", "stage3", "stage4")[index] for index in out_indices],
    }


def recognised(weights: Mapping[str, torch.Tensor], out_indices: list[int], where: str) -> dict[str, Any]:
    """:func:`resnet` of the one whose weights these are, under timm's names without prefix.

    Raises:
        UserError: they are those of none of :data:`DEPTHS`.
    """
    blocks = [len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in weights
    for name, depths in DEPTHS.items():
        if depths == tuple(blocks) and bottleneck == (name not in ("resnet18", "resnet34")):
            return resnet(name, out_indices)
    raise UserError(f"{where}: no ResNet has stages of {blocks} blocks; only ResNet backbones can be read")


def dilated(config: Mapping[str, Any]) -> bool:
    """Whether a detector's configuration has timm dilate the last stage (DC5)."""
    backbone = config.get("backbone_config")
    options = backbone if isinstance(backbone, dict) else config.get("backbone_kwargs") or {}
    return bool(config.get("dilation")) or options.get("output_stride") == 16


def replaced(config: dict[str, Any], where: str, *, dilates: bool = False) -> dict[str, Any] | None:
    """A detector's configuration with transformers' ResNet in place of timm's; None where there is none of timm's.

    Args:
        config: the detector's.
        where: its file, for messages.
        dilates: whether the caller builds a network that dilates the ResNet where that is :func:`dilated`.

    Raises:
        UserError: a backbone without counterpart, one with dilation (DC5) that nobody dilates, or one that timm dilates in other
            layers than :func:`hoi_distill.stages.checkpoints.dilated.dilate`.
    """
    backbone = config.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") == "timm_backbone":
        name, options = backbone.get("backbone"), backbone
    elif backbone is None and config.get("use_timm_backbone"):
        name, options = config.get("backbone") or "resnet50", config.get("backbone_kwargs") or {}
    else:
        return None
    if options.get("output_stride") not in (None, 16, 32):  # of 8, timm dilates two stages
        raise UserError(
            f"{where}: a backbone of output_stride {options['output_stride']} cannot be read; use one of 32 (plain) or 16 (DC5)"
        )
    if dilated(config) and not dilates:
        raise UserError(f"{where}: a dilated (DC5) backbone has no counterpart in transformers; use the plain one")
    several = config.get("model_type") == "deformable_detr" and config.get("num_feature_levels", 4) > 1
    indices = list(options.get("out_indices") or ([2, 3, 4] if several else [4]))
    kept = {key: value for key, value in config.items() if key not in ("backbone", "backbone_kwargs", "dilation")}
    try:
        own = resnet(str(name), indices)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if dilated(config):
        require_bottlenecks(own, where)
    return kept | {"use_timm_backbone": False, "backbone_config": own}


def require_bottlenecks(own: Mapping[str, Any], where: str) -> None:
    """Refuse to dilate a ResNet of basic blocks, whose first block timm dilates too.

    Args:
        own: from :func:`resnet`.
        where: the checkpoint's file, for messages.

    Raises:
        UserError: it is resnet18 or resnet34.
    """
    if own["layer_type"] == "basic":
        raise UserError(f"{where}: a dilated (DC5) resnet18 or resnet34 cannot be read; use the plain one")


def read(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's weight files, timm's names exchanged and its batch counters left out."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in files:
        found |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    weights = {}
    for key, tensor in found.items():
        inside = _BACKBONE.fullmatch(key)
        if not key.endswith("num_batches_tracked"):  # frozen batch norms count nothing
            weights[inside[1] + renamed(inside[2]) if inside else key] = tensor
    return weights


def renamed(key: str) -> str:
    """transformers' name of one of timm's (and torchvision's, and the original DETR's) ResNet weights, both without
    prefix: ``layer1.0.bn2.weight`` is ``encoder.stages.0.layers.0.layer.1.normalization.weight``.

    Raises:
        UserError: no such weight.
    """
    parts = key.split(".")
    if parts[0] in ("conv1", "bn1") and len(parts) == 2:
        return f"embedder.embedder.{_kind(parts[0])}.{parts[1]}"
    if parts[0][:5] == "layer" and parts[0][5:].isdigit() and len(parts) in (4, 5):
        block = f"encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
        if parts[2] == "downsample":
            return f"{block}.shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
        if parts[2][:-1] in ("conv", "bn"):
            return f"{block}.layer.{int(parts[2][-1]) - 1}.{_kind(parts[2])}.{parts[3]}"
    raise UserError(f"'{key}' is no weight of a ResNet")


def original(key: str) -> str:
    """:func:`renamed` undone."""
    parts = key.split(".")
    short = {"convolution": "conv", "normalization": "bn"}
    if parts[0] == "embedder":
        return f"{short[parts[2]]}1.{parts[3]}"
    block = f"layer{int(parts[2]) + 1}.{parts[4]}"
    if parts[5] == "shortcut":
        return f"{block}.downsample.{int(parts[6] == 'normalization')}.{parts[7]}"
    return f"{block}.{short[parts[7]]}{int(parts[6]) + 1}.{parts[8]}"


def _kind(name: str) -> str:
    return "convolution" if name.startswith("conv") else "normalization"
