"""Where the linking decoder looks: its attention to the cells of the map, for each pair of an image.

The weights are made again from the queries and keys that a forward pass has: fused attention keeps none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hoi_distill.stages.student.methods.link.linking_decoder import Look
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.pairs.instances import ImageInstances, gather
from hoi_distill.stages.student.student import PairAttention


def pair_attention(model: Link, image: ImageInstances, features: np.ndarray) -> PairAttention:
    """Of every pair of one image, with the model in evaluation mode.

    Args:
        model: the network.
        image: its instances and pairs.
        features: float ``[C, h, w]``, its feature map.
    """
    human, thing = image.pairs.T
    if not len(human):
        return PairAttention(image.boxes[human], image.boxes[thing], {})
    given: list[tuple[Any, ...]] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        given.append(arguments)

    layers: list[Any] = [layer.look for layer in model.decoder.layers]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    device, was_training = next(model.parameters()).device, model.training
    try:
        with torch.inference_mode():
            model.eval()(gather([image], torch.from_numpy(features.astype(np.float32))[None]).to(device))
            weights = {
                ", ".join(filter(None, (f"layer {number}", look.branch))): _weights(look, layer.heads)
                for number, (layer, arguments) in enumerate(zip(layers, given, strict=True), 1)
                for look in layer.looks(*arguments)
            }
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    grid = features.shape[1:]
    shaped = {name: each.cpu().numpy().reshape(-1, *grid) for name, each in weights.items()}
    return PairAttention(image.boxes[human], image.boxes[thing], shaped)


def _weights(look: Look, heads: int) -> Tensor:
    """float32 ``[P, S]``: the attention of the pairs of one image, the mean over heads."""
    query = look.query.unflatten(-1, (heads, -1)).transpose(0, 1)
    key = look.key[0].unflatten(-1, (heads, -1)).transpose(0, 1)
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(0).float()
