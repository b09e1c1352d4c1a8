"""From an image's instances to scored human-object pairs: pure functions on tensors.

Pair geometry and prior are those of the two-stage detectors UPT (Zhang et al. 2022) and PViC (Zhang et al. 2023), as are
the choice of instances and the association with annotations (:mod:`hoi_distill.stages.ops.instances`). Boxes are xyxy
pixels of the original image, zero-based and half-open.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-10


def pair_geometry(human: Tensor, object_: Tensor, size: Tensor) -> Tensor:
    """The 36-d spatial vector of each pair: 18 values f, then ``log(f + 1e-10)`` (UPT, section 4.1).

    Boxes are clamped to the image and their sides to at least one pixel, else ratios of degenerate boxes overflow.

    Args:
        human: float ``[P, 4]`` xyxy pixels.
        object_: float ``[P, 4]`` xyxy pixels.
        size: float ``[P, 2]`` (width, height) of the pair's image.

    Returns:
        float32 ``[P, 36]``.
    """
    (x1, y1, w1, h1), (x2, y2, w2, h2) = (_centres(boxes.float(), size) for boxes in (human, object_))
    W, H = size.float().unbind(-1)
    left, top = torch.maximum(x1 - w1 / 2, x2 - w2 / 2), torch.maximum(y1 - h1 / 2, y2 - h2 / 2)
    right, bottom = torch.minimum(x1 + w1 / 2, x2 + w2 / 2), torch.minimum(y1 + h1 / 2, y2 + h2 / 2)
    shared = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    dx, dy = (x2 - x1) / (w1 + EPSILON), (y2 - y1) / (h1 + EPSILON)
    # fmt: off
    f = torch.stack((
        x1 / W, y1 / H, x2 / W, y2 / H,
        w1 / W, h1 / H, w2 / W, h2 / H,
        w1 * h1 / (H * W), w2 * h2 / (H * W),
        w2 * h2 / (w1 * h1 + EPSILON),
        w1 / (h1 + EPSILON), w2 / (h2 + EPSILON),
        shared / (w1 * h1 + w2 * h2 - shared + EPSILON),
        dx.clamp(min=0), (-dx).clamp(min=0),
        dy.clamp(min=0), (-dy).clamp(min=0),
    ), 1)
    # fmt: on
    return torch.cat((f, torch.log(f + EPSILON)), 1)


def _centres(boxes: Tensor, size: Tensor) -> tuple[Tensor, ...]:
    """``[P, 4]`` xyxy to centre x, centre y, width, height (``[P]`` each), inside the image, sides >= 1 pixel."""
    corners = torch.minimum(boxes.view(-1, 2, 2).clamp(min=0), size[:, None].float())
    centre = corners.mean(1)
    sides = (corners[:, 1] - corners[:, 0]).clamp(min=1)
    return *centre.unbind(1), *sides.unbind(1)


def pair_prior(human_score: Tensor, object_score: Tensor, object_label: Tensor, valid: Tensor) -> Tensor:
    """``P = s_h * s_o`` for the classes that the pair's predicted object allows, else 0.

    Args:
        human_score: float ``[P]``, s_h.
        object_score: float ``[P]``, s_o.
        object_label: int64 ``[P]``, COCO-80.
        valid: bool ``[objects, H]``, the interactions that an object allows.

    Returns:
        float32 ``[P, H]``.
    """
    return (human_score * object_score).float()[:, None] * valid[object_label]
