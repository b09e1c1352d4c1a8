"""From images to what a model is given: preprocessed one by one on the host, joined on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

ImageTensors = Mapping[str, "torch.Tensor"]
"""What an image processor makes of one image, by the names of the model's arguments. The first axis counts images, or the
patches of one."""


Preprocess = Literal["processor", "device"]
"""Who resizes and normalises: the checkpoint's own processor in the threads that read, or torch where the model is."""
BACKENDS: Mapping[Preprocess, str] = {"processor": "pil", "device": "torch, antialiased, rounded to levels"}
"""What a fingerprint says of it."""
MODES = {2: "bilinear", 3: "bicubic"}
"""The resampling filters of PIL that torch has with antialiasing."""


@dataclass(frozen=True)
class OnDevice:
    """What a processor does to a whole image, on the model's device: resize to one size, rescale, normalise.

    torch resizes with PIL's filters, first the rows and then the columns, and after each rounds to levels 0 to 255, as PIL does.
    PIL's weights are fixed-point numbers and torch's are float32: a level may differ by one or two. A test holds the difference
    at that, on photographs and on hard edges.

    Attributes:
        height: pixels.
        width: pixels.
        mode: of torch's ``interpolate``.
        scale: a level is multiplied by it.
        mean: of each channel, what is subtracted then.
        std: of each channel, what it is divided by at last.
    """

    height: int
    width: int
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any, height: int, width: int) -> OnDevice:
        """What this processor does. Raises ``UserError`` for a resampling filter that torch does not have."""
        resample = int(processor.resample)
        if resample not in MODES:
            known = " and ".join(f"{number} ({name})" for number, name in MODES.items())
            raise UserError(
                f"preprocess: device: the processor's resample is {resample}, and torch resizes by {known}; leave preprocess out"
            )
        normal = bool(processor.do_normalize)
        return cls(
            height,
            width,
            MODES[resample],
            float(processor.rescale_factor) if processor.do_rescale else 1.0,
            tuple(map(float, processor.image_mean)) if normal else (0.0,) * 3,
            tuple(map(float, processor.image_std)) if normal else (1.0,) * 3,
        )

    def levels(self, image: Image.Image, device: str) -> ImageTensors:
        """``levels`` uint8 ``[H, W, 3]`` of an RGB image as it is, in pinned memory for a GPU: all that a thread makes ready."""
        import numpy as np
        import torch

        levels = torch.from_numpy(np.array(image))
        return {"levels": levels.pin_memory() if torch.device(device).type == "cuda" else levels}

    def pixels(self, given: ImageTensors, device: str) -> ImageTensors:
        """``pixel_values`` float32 ``[1, 3, height, width]`` on the device, of what :meth:`levels` made ready."""
        import torch

        resized = given["levels"].to(device, non_blocking=True).permute(2, 0, 1)[None].float()
        for size in ((resized.shape[2], self.width), (self.height, self.width)):  # rows, then columns, as PIL does
            resized = torch.nn.functional.interpolate(resized, size, mode=self.mode, antialias=True)
            resized = resized.round_().clamp_(0, 255)
        return {
            "pixel_values": (resized * self.scale - _of_channels(self.mean, device)) / _of_channels(self.std, device)
        }


@cache
def _of_channels(values: tuple[float, ...], device: str) -> torch.Tensor:
    """A number for each channel, float32 ``[1, C, 1, 1]``. It is sent to the device once: each such copy waits for a GPU."""
    import torch

    return torch.tensor(values, device=device).view(1, -1, 1, 1)


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
