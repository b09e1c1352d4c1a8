"""How an image becomes the input of an exported detector, and where a box of the input lies in the image.

``letterbox`` keeps the image's shape and fills the rest of the input with grey, half on either side, as YOLO's exports were
trained; ``corner`` fills right and below only; ``stretch`` fills the input and loses the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from hoi_distill.stages.ops import boxes as box_ops

Fit = Literal["letterbox", "corner", "stretch"]
Filter = Literal["linear", "antialias"]
GREY = 114


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the input.

    Attributes:
        image: its width and height.
        scaled: width and height that it is resized to.
        corner: where its upper left corner lies, in pixels of the input.
    """

    image: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], size: tuple[int, int], fit: Fit) -> Placement:
        """Place an image of (width, height) in an input of ``size``."""
        if fit == "stretch":
            return cls(image, size, (0, 0))
        ratio = min(size[0] / image[0], size[1] / image[1])
        scaled = (max(round(image[0] * ratio), 1), max(round(image[1] * ratio), 1))
        if fit == "corner":
            return cls(image, scaled, (0, 0))
        # An odd pixel goes right and below.
        return cls(image, scaled, ((size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2))

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes in pixels of the input as boxes in pixels of the image, cut to it; float32 ``[N, 4]`` xyxy."""
        ratio = np.array(self.scaled, np.float32) / np.array(self.image, np.float32)
        moved = (boxes - np.tile(np.array(self.corner, np.float32), 2)) / np.tile(ratio, 2)
        return box_ops.clip(moved.astype(np.float32), *self.image)


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit, how: Filter) -> np.ndarray:
    """An image in an input of ``size`` (width, height), uint8 ``[H, W, 3]``.

    Args:
        image: RGB.
        size: of the input.
        fit: how it is placed.
        how: ``linear`` mixes the four nearest pixels, as OpenCV resizes; ``antialias`` all that a pixel covers, as Pillow does.
    """
    place = Placement.of(image.size, size, fit)
    whole = np.full((size[1], size[0], 3), GREY, np.uint8)
    (left, top), (width, height) = place.corner, place.scaled
    whole[top : top + height, left : left + width] = np.asarray(resized(image, place.scaled, how))
    return whole


def resized(image: Image.Image, size: tuple[int, int], how: Filter) -> Image.Image:
    """The image at ``size`` (width, height)."""
    if image.size == size:
        return image
    if how == "antialias":
        return image.resize(size, Image.Resampling.BILINEAR)
    steps = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)
    return image.transform(size, Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR)
