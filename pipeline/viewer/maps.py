"""A feature map as an image: its three strongest components as colours, or how like one cell the others are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SAMPLED = 48
"""Images whose maps say which components are the strongest. Colours then mean the same in every image."""
RED = (178, 24, 43)
OPAQUE = 215
"""Of 255: how opaque the cell is that most of an attention goes to."""
SIDE = 256
"""Pixels of the longer side of a drawn map."""


@dataclass(frozen=True, eq=False)
class Components:
    """The colours of a table's maps.

    Attributes:
        mean: ``float32 [C]``.
        axes: ``float32 [3, C]``, the directions of the largest variance.
        low: ``float32 [3]``, what is drawn as no light.
        high: ``float32 [3]``, what is drawn as full light.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray) -> Components:
        """Principal components of the cells of some maps, ``float [N, C, h, w]`` without NaN."""
        cells = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float32)
        mean = cells.mean(axis=0)
        _, vectors = np.linalg.eigh(np.cov(cells - mean, rowvar=False).reshape(len(mean), len(mean)))
        axes = vectors[:, ::-1][:, :3].T.astype(np.float32)
        axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
        projected = (cells - mean) @ axes.T
        low, high = np.percentile(projected, (2, 98), axis=0).astype(np.float32)
        return cls(mean, axes, low, high)


def coloured(values: np.ndarray, components: Components) -> Image.Image:
    """One map ``float [C, h, w]`` in the colours of its table; a cell is a square."""
    projected = np.einsum("kc,chw->hwk", components.axes, values.astype(np.float32) - components.mean[:, None, None])
    span = np.maximum(components.high - components.low, 1e-9)
    light = np.clip((projected - components.low) / span, 0, 1)
    pixels = np.zeros((*values.shape[1:], 3), np.uint8)
    pixels[..., : light.shape[-1]] = np.round(255 * light)
    return _enlarged(Image.fromarray(pixels))


def similarity(values: np.ndarray, row: int, column: int) -> tuple[Image.Image, np.ndarray]:
    """How like one cell every cell of a map is.

    Args:
        values: ``float [C, h, w]``.
        row: of the cell.
        column: of the cell.

    Returns:
        A drawing, from blue (-1) over white (0) to red (1), the cell framed; and the cosines, ``float32 [h, w]``.
    """
    cells = values.astype(np.float32)
    cells = cells / np.maximum(np.linalg.norm(cells, axis=0, keepdims=True), 1e-9)
    cosines = np.einsum("c,chw->hw", cells[:, row, column], cells)
    warm, cold = np.clip(cosines, 0, 1)[..., None], np.clip(-cosines, 0, 1)[..., None]
    pixels = 255 - warm * (255 - np.array(RED)) - cold * (255 - np.array([33, 102, 172]))
    image = _enlarged(Image.fromarray(np.round(pixels).astype(np.uint8)))
    across, down = image.width / cosines.shape[1], image.height / cosines.shape[0]
    box = [round(column * across), round(row * down), round((column + 1) * across) - 1, round((row + 1) * down) - 1]
    ImageDraw.Draw(image).rectangle(box, outline="#101418", width=2)
    return image, cosines


def likeness(values: np.ndarray, vector: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """How like a text every cell of a map is, where both are in one space.

    Args:
        values: ``float [C, h, w]``.
        vector: ``float [C]``.

    Returns:
        A drawing, from white (the least of this map) to red (the most); and the cosines, ``float32 [h, w]``.
    """
    cells, text = values.astype(np.float32), vector.astype(np.float32)
    cells = cells / np.maximum(np.linalg.norm(cells, axis=0, keepdims=True), 1e-9)
    cosines = np.einsum("c,chw->hw", text / max(float(np.linalg.norm(text)), 1e-9), cells)
    share = (cosines - cosines.min()) / max(float(np.ptp(cosines)), 1e-9)
    pixels = 255 - share[..., None] * (255 - np.array(RED))
    return _enlarged(Image.fromarray(np.round(pixels).astype(np.uint8))), cosines


def attention(weights: np.ndarray) -> Image.Image:
    """Where a student looks, to be laid over the image: red, and the more opaque the more of ``float [h, w]`` a cell has."""
    pixels = np.zeros((*weights.shape, 4), np.uint8)
    pixels[..., :3] = RED
    pixels[..., 3] = np.round(OPAQUE * weights / max(float(weights.max()), 1e-9))
    return _enlarged(Image.fromarray(pixels, "RGBA"))


def cell_side(grid: tuple[int, ...]) -> int:
    """Pixels of a cell in the drawing of a map of (h, w) cells."""
    return max(1, SIDE // max(grid))


def _enlarged(image: Image.Image) -> Image.Image:
    scale = cell_side(image.size)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
