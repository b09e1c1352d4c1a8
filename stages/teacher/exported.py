"""Detectors and encoders as graphs. They are traced through the stage itself, so a graph computes what fills a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.exported_graph import ExportedGraph
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import Batch, Stage, TensorOutput
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.storage.errors import UserError

ENCODERS = ("blip_features", "vision_features")
"""Stages whose feature maps come from one forward of a fixed image size."""
PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""What the numbers of ``resample`` mean."""


class EncoderGraph(nn.Module):
    """Pixels of one image to its feature map, rounded as a table of codec fp16 rounds it.

    Args:
        stage: is open on the CPU.
        column: the view.
    """

    def __init__(self, stage: Stage, column: str) -> None:
        super().__init__()
        self.stage, self.column = stage, column
        self.weights = stage.model  # type: ignore[attr-defined]  # so that they are parameters of this module
        assert isinstance(stage.output, TensorOutput)
        self.rounded = stage.output.codec == "fp16"

    @override
    def forward(self, pixel_values: Tensor) -> Tensor:
        """float32 ``[1, 3, H, W]`` to float32 ``[1, C, h, w]``."""
        batch = Batch(np.zeros(1, "V16"), [""], 1, [None], [{"pixel_values": pixel_values}])  # type: ignore[list-item]
        maps = self.stage.compute(batch, [self.column], {})[self.column]
        assert isinstance(maps, Tensor)
        return maps.half().float() if self.rounded else maps.float()


class DetectorGraph(nn.Module):
    """Pixels of one image to its best boxes."""

    def __init__(self, stage: Detector) -> None:
        super().__init__()
        self.stage, self.weights = stage, stage.model

    @override
    def forward(self, pixel_values: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K boxes, best first; those that lie outside the image have no area.

        Args:
            pixel_values: float32 ``[1, 3, H, W]``.
            size: float32 ``[1, 2]`` (width, height) of the image in pixels.

        Returns:
            Boxes float32 ``[K, 4]`` xyxy pixels of the image, scores float32 ``[K]``, labels int64 ``[K]``, COCO-80.
        """
        scores, labels, fractions = self.stage.best({"pixel_values": pixel_values.to(self.stage.model.dtype)})[:3]
        corners = box_ops.cxcywh_to_xyxy(fractions[0]) * size.repeat(1, 2)
        return torch.minimum(corners.clamp(min=0), size.repeat(1, 2)), scores[0], labels[0]


def encoder_graph(kind: str, stage: Stage, image: Any) -> ExportedGraph:
    """The encoder of a student.

    Args:
        kind: the stage's name in configurations.
        stage: is open on the CPU.
        image: any RGB image.

    Raises:
        UserError: an encoder that is no graph of one fixed size.
    """
    if kind not in ENCODERS:
        raise UserError(f"features: encoders of stage {kind} are not exported; those of {', '.join(ENCODERS)} are")
    pixels = fixed_pixels("features", stage, image)
    module = EncoderGraph(stage, stage.columns[0]).eval()
    return ExportedGraph(
        "encoder", module, {"pixel_values": pixels}, ("features",), settings=preprocessing(stage, pixels)
    )


def detector_graph(kind: str, stage: Stage, image: Any) -> ExportedGraph:
    """The detector of a student; arguments and errors are those of :func:`encoder_graph`."""
    if not isinstance(stage, Detector):
        raise UserError(f"detections: detectors of stage {kind} are not exported; give boxes to the student's graph")
    pixels = fixed_pixels("detections", stage, image)
    inputs = {"pixel_values": pixels, "size": torch.tensor([image.size], dtype=torch.float32)}
    outputs = ("boxes", "scores", "labels")
    return ExportedGraph(
        "detector", DetectorGraph(stage).eval(), inputs, outputs, settings=preprocessing(stage, pixels)
    )


def fixed_pixels(role: str, stage: Stage, image: Any) -> Tensor:
    """What a stage's model is given of an image, float32 ``[1, 3, H, W]``.

    Raises:
        UserError: the size depends on the image, or there is more than pixels.
    """
    given, other = (preparation(stage, each) for each in (image, image.resize((2 * image.width, image.height))))
    if set(given) - {"pixel_values", "pixel_mask"} or given["pixel_values"].shape != other["pixel_values"].shape:
        raise UserError(
            f"{role}: its images have no fixed size, and a graph has one; give preprocessor_config.json a size of height and "
            "width, train with that, and export again"
        )
    return given["pixel_values"].float()


def preparation(stage: Stage, image: Any) -> Mapping[str, Tensor]:
    """What a stage's model is given of an image, wherever it is made."""
    given: Mapping[str, Tensor] = stage.prepare(image)
    on_device = getattr(stage, "on_device", None)
    return on_device.pixels(given, "cpu") if on_device else given


def preprocessing(stage: Stage, pixels: Tensor) -> dict[str, Any]:
    """How an image becomes ``pixel_values``: resized to (width, height) by a filter of Pillow, divided by 255, less ``mean``,
    divided by ``std``."""
    processor = stage.processor  # type: ignore[attr-defined]
    normal = bool(processor.do_normalize)
    return {
        "size": [pixels.shape[3], pixels.shape[2]],
        "filter": PILLOW_FILTERS[int(processor.resample)],
        "scale": float(processor.rescale_factor) if processor.do_rescale else 1.0,
        "mean": list(map(float, processor.image_mean)) if normal else [0.0] * 3,
        "std": list(map(float, processor.image_std)) if normal else [1.0] * 3,
    }
