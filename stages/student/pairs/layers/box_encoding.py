"""Boxes and map cells as sines and cosines (PViC, Zhang et al. 2023, section 3.2; temperature from DAB-DETR).

A scalar in 0..1 becomes ``channels`` numbers. Scalars come in the order (y, x) and (h, w), as in DETR.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops

TEMPERATURE = 20.0


def sine_encoding(scalars: Tensor, channels: int) -> Tensor:
    """Float ``[..., K]`` in 0..1 to ``[..., K * channels]``.

    Of one scalar s, channel k is the sine (k even) or cosine (k odd) of ``2 pi s / 20^(2 floor(k / 2) / channels)``.
    """
    even = torch.arange(0, channels, 2, device=scalars.device, dtype=torch.float32)
    angle = 2 * math.pi * scalars.float()[..., None] / TEMPERATURE ** (even / channels)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-3)


def unit_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes in units of their image, inside it and with sides of at least one pixel.

    Args:
        boxes: float ``[N, 4]`` xyxy pixels.
        size: float ``[N, 2]`` (width, height) of each one's image.

    Returns:
        float32 ``[N, 4]`` (centre y, centre x, height, width).
    """
    size = size.float()
    x, y, w, h = box_ops.xyxy_to_cxcywh((boxes.float() / size.repeat(1, 2)).clamp(0, 1)).unbind(1)
    least_w, least_h = (1 / size).unbind(1)
    return torch.stack((y, x, torch.maximum(h, least_h), torch.maximum(w, least_w)), 1)


def box_encoding(unit_N4: Tensor, width: int) -> Tensor:
    """:func:`unit_boxes` to float32 ``[N, 2 * width]``: the centre's encoding, then the size's."""
    return sine_encoding(unit_N4, width // 2)


def grid_size(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(width, height) of a grid of (height, width) cells, float ``[2]`` of the dtype and on the device of ``like``. It is
    filled there: a copy from the host would wait for the device."""
    size = like.new_full((2,), grid[1])
    size[1] = grid[0]
    return size


def in_cells(boxes: Tensor, size: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boxes in cells of a map.

    Args:
        boxes: float ``[N, 4]`` xyxy pixels.
        size: float ``[N, 2]`` (width, height) of each one's image.
        grid: (height, width) of the map.

    Returns:
        float ``[N, 4]`` xyxy cells.
    """
    return boxes / size.repeat(1, 2) * grid_size(grid, boxes).repeat(2)


def grid_encoding(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """The centres of a map's cells, row by row: float32 ``[height * width, channels]``."""
    y, x = (torch.arange(0.5, count, device=device) / count for count in (height, width))
    return sine_encoding(torch.cartesian_prod(y, x), channels // 2)
