"""From images to what a model is given: preprocessed one by one on the host, joined on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

ImageTensors = Mapping[str, "torch.Tensor"]
"""What an image processor makes of one image, by the names of the model's arguments. The first axis counts images, or the
patches of one."""


def preprocess(processor: Any, image: Image.Image, device: str, **options: Any) -> ImageTensors:
    """Preprocess one image by the checkpoint's own processor. Several threads may do so at once.

    Args:
        processor: see :func:`hoi_distill.stages.teacher.weights.image_processor`.
        image: RGB.
        device: where the model is. For a GPU the tensors lie in pinned memory, so that nobody waits for their copy.
        options: of the processor.
    """
    import torch

    tensors: ImageTensors = dict(processor([image], return_tensors="pt", **options))
    if torch.device(device).type != "cuda":
        return tensors
    return {name: tensor.pin_memory() for name, tensor in tensors.items()}


def joined(images: Sequence[ImageTensors], device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of several images on the device, one after another along the first axis; floats become ``dtype``."""
    import torch

    def one(name: str) -> torch.Tensor:
        tensor = torch.cat([image[name].to(device, non_blocking=True) for image in images])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return {name: one(name) for name in images[0]}
