"""A MUREN of two layers and 32 channels, random pairs for it, and its answers drawn at random."""

from __future__ import annotations

from typing import Any

import torch

from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren, MurenOutput

RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic", "out_features": ["stage4"],
}  # fmt: skip
K, V, N = 5, 7, 6


def tiny_config(**changes: Any) -> MurenConfig:
    small: dict[str, Any] = {
        "backbone": RESNET, "objects": K, "verbs": V, "queries": N, "d_model": 32, "heads": 4, "ffn": 48,
        "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0,
    }  # fmt: skip
    return MurenConfig(**small | changes)


def tiny_muren(seed: int = 0, **changes: Any) -> Muren:
    torch.manual_seed(seed)
    return Muren(tiny_config(**changes)).eval()


def random_boxes(*shape: int) -> torch.Tensor:
    """float ``[*shape, 4]`` cxcywh inside the picture."""
    size = 0.1 + 0.4 * torch.rand(*shape, 2)
    return torch.cat((size / 2 + torch.rand(*shape, 2) * (1 - size), size), -1)


def random_targets(count: int, *, missing: int = 0) -> Targets:
    """``count`` pairs, the first ``missing`` of them without an object."""
    verbs = (torch.rand(count, V) < 0.3).float()
    verbs[torch.arange(count), torch.randint(V, (count,))] = 1
    targets = Targets(random_boxes(count), random_boxes(count), torch.randint(K, (count,)), verbs)
    targets.object_boxes[:missing] = 0
    targets.objects[:missing] = K
    return targets


def random_output(
    layers: int, pictures: int, *, missing_object: bool = False, requires_grad: bool = False
) -> MurenOutput:
    shape = (layers, pictures, N)
    output = MurenOutput(
        random_boxes(*shape),
        random_boxes(*shape),
        2 * torch.randn(*shape, K + 1 + missing_object),
        2 * torch.randn(*shape, V),
    )
    return MurenOutput(*(each.requires_grad_(requires_grad) for each in output))
