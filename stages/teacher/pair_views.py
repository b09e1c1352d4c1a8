"""Images in which one pair is marked for the eye: blurred around its two boxes, or cut to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

BLUR = 0.02
"""Standard deviation of the blur, as a share of the image's longer side."""
MARGIN = 0.125
"""What is left around both boxes at each side, as a share of the longer side of their union, so that no cut is very narrow."""


def blurred_around(image: Image.Image, human: np.ndarray, object_: np.ndarray) -> Image.Image:
    """The image, blurred but for two boxes.

    Args:
        image: RGB.
        human: int ``[4]`` xyxy pixels.
        object_: int ``[4]`` xyxy pixels.
    """
    from PIL import ImageFilter

    marked = image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    for box in (human, object_):
        left, top, right, bottom = box.tolist()
        if right > left and bottom > top:
            marked.paste(image.crop((left, top, right, bottom)), (left, top))
    return marked


def cut_to(image: Image.Image, human: np.ndarray, object_: np.ndarray) -> Image.Image:
    """The part of an image that encloses two boxes, with a margin, at least a pixel wide and high; arguments as above."""
    union = np.concatenate((np.minimum(human, object_)[:2], np.maximum(human, object_)[2:])).astype(np.float64)
    margin = MARGIN * (union[2:] - union[:2]).max()
    low = np.clip(np.floor(union[:2] - margin), 0, np.array(image.size) - 1)
    high = np.clip(np.ceil(union[2:] + margin), low + 1, image.size)
    return image.crop((*low.astype(int).tolist(), *high.astype(int).tolist()))


VIEWS = {"blur": blurred_around, "crop": cut_to}
