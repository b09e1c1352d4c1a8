"""RoIAlign and NMS against naive transcriptions of their definitions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.ops import roi_align as roi


def bilinear(plane: np.ndarray, y: float, x: float) -> np.ndarray:
    """One sample of ``[C, H, W]``; the definition, one point at a time."""
    height, width = plane.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(plane))
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= height - 1:
        top = bottom = height - 1
        y = float(top)
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = width - 1
        x = float(left)
    else:
        right = left + 1
    dy, dx = y - top, x - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def naive_roi_align(features, boxes, size, scale, ratio, aligned):
    out = np.zeros((len(boxes), features.shape[1], *size))
    for n, (image, *corners) in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0.0) for corner in corners)
        w, h = x2 - x1, y2 - y1
        if not aligned:
            w, h = max(w, 1.0), max(h, 1.0)
        bin_h, bin_w = h / size[0], w / size[1]
        grid_h, grid_w = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
        for p in range(size[0]):
            for q in range(size[1]):
                total = np.zeros(features.shape[1])
                for i in range(grid_h):
                    for j in range(grid_w):
                        y = y1 + p * bin_h + (i + 0.5) * bin_h / grid_h
                        x = x1 + q * bin_w + (j + 0.5) * bin_w / grid_w
                        total += bilinear(features[int(image)], y, x)
                out[n, :, p, q] = total / max(grid_h * grid_w, 1)
    return out


def scene(seed: int, count: int = 12, height: int = 9, width: int = 13, pixels: float = 1.0):
    """Features in float64 and boxes in shuffled images: inside, across the edge, far outside, thin, inside out."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(3, 4, height, width))
    low = random.uniform(-6, 14, (count, 2))
    high = low + random.uniform(0.01, 14, (count, 2))
    boxes = np.concatenate([random.integers(0, 3, (count, 1)), low * pixels, high * pixels], 1)
    boxes[0, 1:] = [0, 0, width * pixels, height * pixels]
    boxes[1, 1:] = [400, 400, 500, 500]
    boxes[2, 1:] = [3, 3, 3, 3]
    boxes[3, 1:] = [5, 5, 4, 3]
    return torch.from_numpy(features), torch.from_numpy(boxes)


@pytest.mark.parametrize("small_map", [0, 10**9], ids=["crops", "at_once"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2, 3])
def test_roi_align_equals_its_definition(monkeypatch, ratio, aligned, small_map):
    monkeypatch.setattr(roi, "SMALL_MAP", small_map)
    features, boxes = scene(ratio, pixels=4.0)
    ours = roi.roi_align(features, boxes, (3, 2), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    naive = naive_roi_align(features.numpy(), boxes, (3, 2), 0.25, ratio, aligned)
    np.testing.assert_allclose(ours.numpy(), naive, atol=1e-10)
    assert np.abs(naive).max() > 0.1


def test_roi_align_in_float32_stays_within_rounding():
    features, boxes = scene(7)
    ours = roi.roi_align(features.float(), boxes.float(), 7)
    np.testing.assert_allclose(ours.numpy(), naive_roi_align(features.numpy(), boxes, (7, 7), 1.0, 0, True), atol=2e-5)


def test_a_list_of_boxes_per_image_equals_numbered_boxes():
    features, boxes = scene(3)
    boxes = boxes[torch.argsort(boxes[:, 0], stable=True)]
    per_image = [boxes[boxes[:, 0] == i, 1:] for i in range(3)]
    torch.testing.assert_close(roi.roi_align(features, per_image, 4), roi.roi_align(features, boxes, 4))


def test_images_of_a_batch_do_not_mix():
    features, boxes = scene(4)
    together = roi.roi_align(features, boxes, 5, sampling_ratio=2)
    for n, box in enumerate(boxes):
        alone = features[int(box[0])][None]
        torch.testing.assert_close(roi.roi_align(alone, [box[None, 1:]], 5, sampling_ratio=2)[0], together[n])


@pytest.mark.parametrize("boxes", [torch.zeros(0, 5), [torch.zeros(0, 4)] * 3])
def test_no_boxes_give_an_empty_result(boxes):
    assert roi.roi_align(scene(0)[0].float(), boxes, (2, 3)).shape == (0, 4, 2, 3)


def test_gradients_reach_the_features():
    features, boxes = scene(5, count=5, height=4, width=5)
    features = features[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: roi.roi_align(f, boxes, 2, sampling_ratio=2), (features,))


def test_half_precision_is_rounded_once():
    features, boxes = scene(6)
    half = features.half()
    exact = roi.roi_align(half.float(), boxes.float(), 3, sampling_ratio=2)
    assert torch.equal(roi.roi_align(half, boxes.float(), 3, sampling_ratio=2), exact.half())


def torchvision_kernels(device: str) -> None:
    """Skip unless torchvision's compiled operators run on ``device``: the import alone proves nothing."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    try:
        import torchvision  # noqa: F401

        torch.ops.torchvision.nms(torch.zeros(1, 4, device=device), torch.zeros(1, device=device), 0.5)
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"torchvision's kernels are not here: {error}")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2, 3])
def test_torchvisions_compiled_kernel_gives_the_same(device, ratio, aligned):
    torchvision_kernels(device)
    features, boxes = scene(ratio, pixels=4.0)
    ours = roi.roi_align(features, boxes, (3, 2), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    sampling = {"scale": 0.25, "sampling_ratio": ratio, "aligned": aligned}
    theirs = roi._torchvisions(features.to(device), boxes.to(device), (3, 2), **sampling)
    torch.testing.assert_close(theirs.cpu(), ours, atol=1e-10, rtol=0)
    half = roi._torchvisions(features.bfloat16().to(device), boxes.to(device), (3, 2), **sampling)
    torch.testing.assert_close(half.cpu().double(), ours, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torchvisions_compiled_nms_gives_the_same(device):
    torchvision_kernels(device)
    random = torch.Generator().manual_seed(0)
    low = 50 * torch.rand(300, 2, generator=random)
    boxes = torch.cat([low, low + 30 * torch.rand(300, 2, generator=random)], 1)
    scores = torch.rand(300, generator=random)
    theirs = torch.ops.torchvision.nms(boxes.to(device), scores.to(device), 0.5).cpu()
    assert theirs.tolist() == box_ops.nms(boxes.numpy(), scores.numpy(), 0.5).tolist()


def test_detectron2s_compiled_operators_give_the_same():
    """Its own RoIAlign and NMS are those for rotated boxes; at angle 0 they are ours."""
    try:
        from detectron2 import _C  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"detectron2's kernels are not here: {error}")
    features, boxes = scene(2)
    inside = boxes[:, 3:].gt(boxes[:, 1:3]).all(1)
    features, boxes = features.float(), boxes[inside].float()
    corners = boxes[:, 1:]
    rotated = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    rotated = torch.cat([rotated, torch.zeros(len(rotated), 1)], 1)
    operator = torch.ops.detectron2.roi_align_rotated_forward
    theirs = operator(features, torch.cat([boxes[:, :1], rotated], 1), 1.0, 3, 2, 2)
    torch.testing.assert_close(roi.roi_align(features, boxes, (3, 2), sampling_ratio=2), theirs, atol=2e-5, rtol=0)
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(0))
    kept = torch.ops.detectron2.nms_rotated(rotated, scores, 0.5)
    assert kept.tolist() == box_ops.nms(corners.numpy(), scores.numpy(), 0.5).tolist()


def naive_nms(boxes, scores, threshold):
    kept = []
    for n in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
        if all(box_ops.iou(boxes[n], boxes[k]) <= threshold for k in kept):
            kept.append(n)
    return kept


box = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
scored = st.lists(st.tuples(box, st.sampled_from([0.1, 0.5, 0.5, 0.9]), st.integers(0, 2)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(scored, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_nms_is_greedy_and_ties_go_by_position(candidates, threshold):
    boxes = np.array([c[0] for c in candidates], np.float32).reshape(-1, 4)
    scores = np.array([c[1] for c in candidates], np.float32)
    labels = np.array([c[2] for c in candidates], np.int64)
    assert box_ops.nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)
    per_class = [
        members[k]
        for label in range(3)
        for members in [np.flatnonzero(labels == label)]
        for k in naive_nms(boxes[members], scores[members], threshold)
    ]
    expected = sorted(per_class, key=lambda n: (-scores[n], n))
    assert box_ops.batched_nms(boxes, scores, labels, threshold).tolist() == expected


def test_box_forms_round_trip_in_numpy_and_torch_alike():
    boxes = np.random.default_rng(0).uniform(0, 50, (6, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    for there, back in (
        (box_ops.xyxy_to_xywh, box_ops.xywh_to_xyxy),
        (box_ops.xyxy_to_cxcywh, box_ops.cxcywh_to_xyxy),
        (lambda b: box_ops.flip(b, 200), lambda b: box_ops.flip(b, 200)),
    ):
        np.testing.assert_allclose(back(there(boxes)), boxes, rtol=1e-5)
        np.testing.assert_array_equal(there(torch.from_numpy(boxes)).numpy(), there(boxes))
    for function in (box_ops.iou_matrix, lambda a, b: box_ops.giou(a[:, None], b[None]), box_ops.enclosing):
        ours = function(torch.from_numpy(boxes), torch.from_numpy(boxes[::-1].copy())).numpy()
        np.testing.assert_array_equal(ours, function(boxes, boxes[::-1]))
    np.testing.assert_array_equal(box_ops.clip(torch.from_numpy(boxes), 30, 20).numpy(), box_ops.clip(boxes, 30, 20))


def test_overlaps_of_known_boxes():
    a, b = np.array([0.0, 0, 10, 10]), np.array([5.0, 0, 15, 10])
    assert box_ops.iou(a, b) == pytest.approx(1 / 3)
    assert box_ops.giou(a, b) == pytest.approx(1 / 3)
    assert box_ops.giou(a, a + 20) == pytest.approx(200 / 900 - 1)
    assert box_ops.iou(np.zeros(4), np.zeros(4)) == 0
    assert box_ops.flip(np.array([1.0, 2, 4, 5]), 10).tolist() == [6, 2, 9, 5]
    assert box_ops.xywh_to_xyxy(np.array([1.0, 2, 3, 4])).tolist() == [1, 2, 4, 6]
    assert box_ops.enclosing(a, a + 20).tolist() == [0, 0, 30, 30]


def test_boxes_need_no_torch_and_a_cpu_never_meets_torchvision():
    code = """
import sys
from hoi_distill.stages.ops import boxes
import numpy
boxes.nms(numpy.zeros((2, 4)), numpy.zeros(2), 0.5)
assert "torch" not in sys.modules
import torch
from hoi_distill.stages.ops import roi_align as roi
roi.roi_align(torch.zeros(1, 1, 4, 4), [torch.zeros(1, 4)], 2)
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
