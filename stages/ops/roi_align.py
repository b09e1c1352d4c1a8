"""RoIAlign for torch tensors, with torchvision's semantics and without torchvision.

torchvision's wheel needs CUDA libraries and breaks on a CPU-only torch, so it is asked for its kernel only when the
tensors already lie on a GPU. Everywhere else RoIAlign uses that bilinear sampling is separable: the pooled box is
``Wy @ F @ Wx^T`` (Mask R-CNN, He et al. 2017, section 3, defines the operation), and linear in the map's cells.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

SMALL_MAP = 40 * 40
"""Cells of a feature map up to which pooling all boxes in one product beats pooling each box's crop by itself. (With
gradients it wins on every map: each crop's gradient is a whole map of zeros.)"""


@cache
def _torchvision_on_gpu() -> bool:
    """Whether torchvision's CUDA kernel is really there: a package that is installed may still fail to load it."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
        return torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::roi_align", "CUDA")
    except (ImportError, RuntimeError, OSError):
        return False


def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Pool each box to a fixed grid by bilinear sampling; differentiable in ``features``, not in ``boxes``.

    Args:
        features: float ``[B, C, H, W]``. Half precision is pooled in float32 on the CPU, and by torchvision's kernels,
            and rounded once.
        boxes: ``[N, 5]`` (image, x1, y1, x2, y2), or one ``[n_b, 4]`` xyxy tensor per image.
        output_size: P, or (P, Q): rows and columns of the grid.
        spatial_scale: cells of the map per pixel of the boxes.
        sampling_ratio: samples per bin and axis; 0 takes ``ceil(size of the bin)``.
        aligned: shift by half a cell, so that cell centres lie at half-integers (Detectron2's correction). The
            original, ``False``, also widens boxes to at least one cell.
        counts: how many boxes each image has, where a tensor of boxes has one image's after another's. Nobody then has
            to wait for the device to count them.

    Returns:
        ``[N, C, P, Q]`` in the dtype of ``features``. Samples more than one cell outside the map count as 0.
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not isinstance(boxes, Tensor):
        images = [box.new_full((len(box), 1), i) for i, box in enumerate(boxes)]
        counts = [len(box) for box in boxes]
        boxes = torch.cat([torch.cat(pair, 1) for pair in zip(images, boxes, strict=True)])
    if features.is_cuda and len(boxes) and _torchvision_on_gpu():
        scale, size = spatial_scale, (rows, columns)
        return _torchvisions(features, boxes, size, scale=scale, sampling_ratio=sampling_ratio, aligned=aligned)
    height, width = features.shape[-2:]
    dtype = features.dtype
    if not features.is_cuda and dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    with torch.no_grad():
        corners = boxes[:, 1:].to(torch.promote_types(features.dtype, torch.float32))
        corners = corners * spatial_scale - (0.5 if aligned else 0.0)
        least = None if aligned else 1.0
        x1, y1, x2, y2 = corners.unbind(1)
        rows_npH = _sampling_weights(y1, y2, rows, cells=height, samples=sampling_ratio, least=least)
        columns_nqW = _sampling_weights(x1, x2, columns, cells=width, samples=sampling_ratio, least=least)
        rows_npH, columns_nqW = rows_npH.to(features.dtype), columns_nqW.to(features.dtype)
    if not (height * width <= SMALL_MAP or features.requires_grad):
        return _pool_crops(features, boxes[:, 0].long(), rows_npH, columns_nqW).to(dtype)
    if counts is not None:
        return _pool_at_once(features, rows_npH, columns_nqW, counts).to(dtype)
    image = boxes[:, 0].long()
    order, counts = torch.argsort(image, stable=True), torch.bincount(image, minlength=len(features)).tolist()
    return _pool_at_once(features, rows_npH[order], columns_nqW[order], counts)[torch.argsort(order)].to(dtype)


def _torchvisions(
    features: Tensor, boxes: Tensor, size: tuple[int, int], *, scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """torchvision's compiled kernel, which knows no bfloat16 and would round boxes to the features' half precision."""
    dtype = features.dtype
    if dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    kernel = torch.ops.torchvision.roi_align
    return kernel(features, boxes.to(features.dtype), scale, *size, max(sampling_ratio, 0), aligned).to(dtype)


def _sampling_weights(
    start: Tensor, end: Tensor, bins: int, *, cells: int, samples: int, least: float | None
) -> Tensor:
    """``[N, bins, cells]``: the weight of each cell of one axis in the mean over each bin's samples.

    Args:
        start: float ``[N]``, where each box begins, in cells.
        end: float ``[N]``, where it ends.
        bins: Of the output.
        cells: Of the map.
        samples: Per bin; 0 takes ``ceil(size of the bin)``.
        least: A narrower box is widened to so many cells; None for no limit.
    """
    extent = end - start
    if least is not None:
        extent = extent.clamp(min=least)
    bin_size = extent / bins
    samples_n = torch.full_like(bin_size, samples) if samples > 0 else bin_size.ceil().clamp(min=0)
    most = samples if samples > 0 else max(int(samples_n.max()), 1) if len(samples_n) else 1
    index_s = torch.arange(most, device=start.device, dtype=start.dtype)
    index_b = torch.arange(bins, device=start.device, dtype=start.dtype)
    fraction_ns = (index_s + 0.5) / samples_n.clamp(min=1)[:, None]
    at_nbs = start[:, None, None] + bin_size[:, None, None] * (index_b[:, None] + fraction_ns[:, None])
    counts_nbs = (index_s < samples_n[:, None])[:, None] & (at_nbs >= -1) & (at_nbs <= cells)
    each_nbs = counts_nbs.to(start.dtype) / samples_n.clamp(min=1)[:, None, None]
    at_nbs = at_nbs.clamp(0, cells - 1)
    low = at_nbs.floor()
    high_share = at_nbs - low
    low = low.long()
    weights = start.new_zeros(
        start.shape[0], bins, cells
    )  # a length would fix the number of boxes of an exported graph
    weights.scatter_add_(2, low, each_nbs * (1 - high_share))
    return weights.scatter_add_(2, (low + 1).clamp(max=cells - 1), each_nbs * high_share)


def _pool_at_once(features: Tensor, rows_npH: Tensor, columns_nqW: Tensor, counts: Sequence[int]) -> Tensor:
    """All boxes of an image in one product with its cells ``[H * W, C]``.

    A product of rows first and columns then has fewer multiplications, but writes and reads ``[n, p, W, C]`` between the two.

    Args:
        features: float ``[B, C, H, W]``. The maps are unbound once: the gradient of each single index would be a whole
            batch of zeros.
        rows_npH: weights of the map's rows, one image's boxes after another's.
        columns_nqW: weights of its columns.
        counts: how many boxes each image has.
    """
    (boxes, p, _), q = rows_npH.shape, columns_nqW.shape[1]
    weights = (rows_npH[:, :, None, :, None] * columns_nqW[:, None, :, None]).flatten(3).flatten(0, 2)
    images = zip(features.flatten(2).unbind(), weights.split([count * p * q for count in counts]), strict=True)
    pooled = torch.cat([cells @ map_CS.T for map_CS, cells in images])
    return pooled.unflatten(0, (boxes, p, q)).permute(0, 3, 1, 2)


def _pool_crops(features: Tensor, image: Tensor, rows_npH: Tensor, columns_nqW: Tensor) -> Tensor:
    """Each box from the cells it touches, which on a large map are few."""

    def touched(weights: Tensor) -> list[tuple[int, int]]:
        used = (weights != 0).any(1)
        first = used.int().argmax(1)
        last = used.shape[1] - used.flip(1).int().argmax(1)
        return list(zip(first.tolist(), last.tolist(), strict=True))

    pooled = []
    spans = zip(image.tolist(), touched(rows_npH), touched(columns_nqW), strict=True)
    for n, (index, (top, bottom), (left, right)) in enumerate(spans):
        crop = features[index, :, top:bottom, left:right]
        pooled.append(rows_npH[n, :, top:bottom] @ (crop @ columns_nqW[n, :, left:right].T))
    if not pooled:
        return features.new_zeros(0, features.shape[1], rows_npH.shape[1], columns_nqW.shape[1])
    return torch.stack(pooled)
