"""The view of an image that the network gets: which part of it, at what size, mirrored, in which colours.

A view is drawn from (seed, epoch, row) alone, so it does not depend on processes, loader workers or what was drawn before;
and it is known before the picture is decoded, so every process can pad its pictures to the frame of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.methods.vlm_hoi.config import TransformConfig

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class View:
    """One view of an image of ``whole`` (width, height) pixels.

    Attributes:
        window: xyxy pixels of the picture that are seen, fractions allowed.
        size: (width, height) that the window is resized to.
        mirrored: whether it is flipped horizontally then.
        colours: (which of :data:`ENHANCERS`, factor), in the order of use.
    """

    whole: tuple[int, int]
    window: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool = False
    colours: tuple[tuple[int, float], ...] = ()

    def of_picture(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 ``[height, width, 3]`` to uint8 ``[size[1], size[0], 3]``. A picture that is not of ``whole`` size (its
        annotations say another) is stretched to it."""
        image = Image.fromarray(pixels)
        across, down = image.width / self.whole[0], image.height / self.whole[1]
        x1, y1, x2, y2 = self.window
        box = (x1 * across, y1 * down, min(x2 * across, image.width), min(y2 * down, image.height))
        image = image.resize(self.size, Image.Resampling.BILINEAR, box)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for which, factor in self.colours:
            image = ENHANCERS[which](image).enhance(factor)
        return np.asarray(image)

    def of_boxes(self, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """xyxy pixels of the picture ``[P, 4]`` to xyxy in 0..1 of the view, cut at its borders; of no area outside."""
        x1, y1, x2, y2 = self.window
        seen = box_ops.clip(boxes - np.array([x1, y1, x1, y1], np.float32), x2 - x1, y2 - y1)
        if self.mirrored:
            seen = box_ops.flip(seen, x2 - x1)
        return (seen / np.array([x2 - x1, y2 - y1] * 2)).astype(np.float32)


def resized(width: float, height: float, short: int, longest: float = np.inf) -> tuple[int, int]:
    """(width, height) with the shorter side ``short``, or less where the longer would be over ``longest``."""
    scale = min(short / min(width, height), longest / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def test_view(config: TransformConfig, width: int, height: int) -> View:
    """The whole picture at the test size."""
    size = resized(width, height, config.test_short_side, config.max_side)
    return View((width, height), (0, 0, width, height), size)


def training_view(config: TransformConfig, width: int, height: int, *, seed: int, epoch: int, row: int) -> View:
    """The view of a picture in an epoch: DETR's choice of scales and crops, flip, colours in random order."""
    draw = np.random.default_rng([seed, epoch, row])
    window = (0.0, 0.0, float(width), float(height))
    if draw.random() < config.crop:
        across, down = resized(width, height, int(draw.choice(config.crop_short_sides)))
        least, most = config.crop_sides
        w, h = (int(draw.integers(min(least, side), min(most, side) + 1)) for side in (across, down))
        x, y = int(draw.integers(0, across - w + 1)), int(draw.integers(0, down - h + 1))
        window = (x * width / across, y * height / down, (x + w) * width / across, (y + h) * height / down)
    seen = (window[2] - window[0], window[3] - window[1])
    size = resized(*seen, int(draw.choice(config.short_sides)), config.max_side)
    mirrored = bool(draw.random() < config.flip)
    order, factors = (
        draw.permutation(len(ENHANCERS)),
        draw.uniform(1 - config.jitter, 1 + config.jitter, len(ENHANCERS)),
    )
    colours = tuple((int(which), float(factors[which])) for which in order) if config.jitter else ()
    return View((width, height), window, size, mirrored, colours)
