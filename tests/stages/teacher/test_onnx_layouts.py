"""What an exported detector's outputs mean, and where its boxes lie in the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.teacher.detectors import onnx_layouts
from hoi_distill.stages.teacher.detectors.letterbox import GREY, Placement, fitted, resized
from hoi_distill.stages.teacher.detectors.onnx_layouts import LAYOUTS, class_count, nanodet_anchors

SIZE = (96, 64)
BOX = np.float32([10, 20, 30, 44])
CENTRE = np.float32([20, 32, 20, 24])
"""``BOX`` as cxcywh."""
FRACTIONS = CENTRE / np.float32([96, 64, 96, 64])


def best(name: str, *outputs: np.ndarray) -> tuple[np.ndarray, float, int]:
    boxes, scores, classes = LAYOUTS[name].read([np.float32(each) for each in outputs], SIZE)
    assert boxes.dtype == scores.dtype == np.float32
    first = scores.argmax()
    return boxes[first], float(scores[first]), int(classes[first])


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ((192, 64), Placement((192, 64), (96, 32), (0, 16))),
        ((192, 66), Placement((192, 66), (96, 33), (0, 15))),  # 31 rows of grey: 15 above, 16 below
        ((40, 64), Placement((40, 64), (40, 64), (28, 0))),
        ((20, 20), Placement((20, 20), (64, 64), (16, 0))),
        ((2000, 3), Placement((2000, 3), (96, 1), (0, 31))),
    ],
)
def test_a_letterbox_is_placed_to_the_pixel(image, place):
    assert Placement.of(image, SIZE, "letterbox") == place
    assert Placement.of(image, SIZE, "corner") == Placement(image, place.scaled, (0, 0))
    assert Placement.of(image, SIZE, "stretch") == Placement(image, SIZE, (0, 0))


@pytest.mark.parametrize("fit", ["letterbox", "corner", "stretch"])
@pytest.mark.parametrize("image", [(191, 67), (67, 191), (13, 640), (96, 64)])
def test_a_box_of_the_input_is_the_box_of_the_image_that_it_was_made_of(fit, image):
    place = Placement.of(image, SIZE, fit)
    whole = np.float32([[0, 0, *image], [1, 2, 12, 11]])
    ratio = np.tile(np.float32(place.scaled) / np.float32(image), 2)
    there = whole * ratio + np.tile(np.float32(place.corner), 2)
    np.testing.assert_allclose(place.back(there), whole, atol=1e-3)
    assert (place.back(np.float32([[-50, -50, 500, 500]])) == np.float32([[0, 0, *image]])).all()


def test_a_letterbox_holds_the_image_and_grey_around_it():
    image = Image.new("RGB", (192, 66), (255, 0, 10))
    found = fitted(image, SIZE, "letterbox", "linear")
    assert found.shape == (64, 96, 3)
    assert (found[15:48] == (255, 0, 10)).all()
    assert (found[:15] == GREY).all()
    assert (found[48:] == GREY).all()


@pytest.mark.parametrize("size", [(96, 33), (300, 200), (40, 64), (7, 3)])
def test_linear_resizing_is_that_of_opencv_up_to_one_grey_level(size):
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 255, (66, 192, 3), np.uint8)
    expected = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    found = np.asarray(resized(Image.fromarray(pixels), size, "linear"))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_yolo_reads_every_class_of_every_anchor():
    rows = np.zeros((1, 4 + 3, 5))
    rows[0, :4, 2], rows[0, 4:, 2] = CENTRE, (0.1, 0.75, 0.5)
    box, score, kind = best("yolo", rows)
    np.testing.assert_allclose(box, BOX)
    assert (score, kind) == (0.75, 1)
    _, scores, classes = LAYOUTS["yolo"].read([rows], SIZE)
    assert sorted(zip(scores.tolist(), classes.tolist(), strict=True))[-2:] == [(0.5, 2), (0.75, 1)]


def test_objectness_multiplies_the_scores_of_classes():
    rows = np.zeros((1, 5, 5 + 3))
    rows[0, 2] = (*CENTRE, 0.5, 0.1, 0.75, 0.5)
    rows[0, 3] = (*CENTRE, 0.1, 0.9, 0.9, 0.9)
    box, score, kind = best("yolo_objectness", rows)
    np.testing.assert_allclose(box, BOX)
    assert (score, kind) == (0.375, 1)


def test_end_to_end_rows_are_boxes_scores_and_classes():
    rows = np.zeros((1, 4, 6))
    rows[0, 1] = (*BOX, 0.75, 2)
    box, score, kind = best("yolo_end_to_end", rows)
    np.testing.assert_allclose(box, BOX)
    assert (score, kind) == (0.75, 2)


def test_detr_gives_a_query_its_best_class_beside_no_object():
    logits = np.full((1, 3, 4), -9.0)
    logits[0, :, 3] = 9
    logits[0, 1] = np.log([0.125, 0.25, 0.125, 0.5])
    box, score, kind = best("detr", logits, np.tile(FRACTIONS, (1, 3, 1)))
    np.testing.assert_allclose(box, BOX, rtol=1e-5)
    assert (score, kind) == (pytest.approx(0.25), 1)


def test_rt_detr_is_the_same_in_two_outputs_and_in_one():
    logits = np.full((1, 3, 2), -9.0)
    logits[0, 1] = (0, -1)
    boxes = np.tile(FRACTIONS, (1, 3, 1))
    joined = np.concatenate([boxes, 1 / (1 + np.exp(-logits))], axis=-1)
    for found in (best("rt_detr", logits, boxes), best("rt_detr_joined", joined)):
        np.testing.assert_allclose(found[0], BOX, rtol=1e-5)
        assert found[1:] == (pytest.approx(0.5), 0)


def test_nanodets_sides_are_means_of_distributions_around_the_anchor():
    anchors = nanodet_anchors(SIZE, 12 * 8 + 6 * 4 + 3 * 2)
    assert anchors[1].tolist() == [8, 0, 8]
    assert anchors[12].tolist() == [0, 8, 8]
    assert anchors[12 * 8 + 6].tolist() == [0, 16, 16]
    assert len(nanodet_anchors(SIZE, 12 * 8 + 6 * 4 + 3 * 2 + 2 * 1)) == 128
    with pytest.raises(ValueError, match="5 anchors"):
        nanodet_anchors(SIZE, 5)
    rows = np.zeros((1, len(anchors), 2 + 32))
    at = 12 * 8 + 6 + 1  # (16, 16), stride 16
    rows[0, at, :2] = (0.25, 0.75)
    sides = np.full((4, 8), -50.0)
    sides[0, 1] = sides[1, 0] = sides[2, 2] = 0  # 1 stride left, 0 up, 2 right
    sides[3, 1] = sides[3, 2] = 0  # 1.5 down
    rows[0, at, 2:] = sides.ravel()
    box, score, kind = best("nanodet", rows)
    np.testing.assert_allclose(box, (0, 16, 48, 40), atol=1e-4)
    assert (score, kind) == (0.75, 1)


def test_ssd_ends_where_its_rows_end():
    rows = np.zeros((1, 1, 3, 7))
    rows[0, 0, 0] = (0, 17, 0.75, *(BOX / np.float32([96, 64, 96, 64])))
    rows[0, 0, 1:, 0] = -1
    box, score, kind = best("ssd", rows)
    np.testing.assert_allclose(box, BOX, rtol=1e-5)
    assert (score, kind) == (0.75, 17)
    assert len(LAYOUTS["ssd"].read([rows], SIZE)[0]) == 1


def test_only_the_best_candidates_are_looked_at(monkeypatch):
    scores = np.random.default_rng(0).random((100, 10)).astype(np.float32)
    boxes = np.arange(400, dtype=np.float32).reshape(100, 4)
    every = onnx_layouts.candidates(scores, boxes)
    monkeypatch.setattr(onnx_layouts, "CANDIDATES", 50)
    few = onnx_layouts.candidates(scores, boxes)
    order = np.argsort(-every[1])[:50]
    assert len(few[1]) == 50
    assert sorted(few[1].tolist(), reverse=True) == every[1][order].tolist()
    where = few[1].argmax()
    assert (few[0][where].tolist(), few[2][where]) == (every[0][order[0]].tolist(), every[2][order[0]])


@pytest.mark.parametrize(
    ("name", "shapes", "classes"),
    [
        ("yolo", [(1, 84, 8400)], 80),
        ("yolo", [(None, 84, None)], 80),
        ("yolo", [(None, None, None)], None),
        ("yolo_objectness", [(1, 25200, 85)], 80),
        ("detr", [(1, 100, 92), (1, 100, 4)], 91),
        ("rt_detr", [(1, 300, 80), (1, 300, 4), (1, 300, 256)], 80),
        ("rt_detr_joined", [(1, 300, 84)], 80),
        ("nanodet", [(1, 3598, 112)], 80),
        ("ssd", [(1, 1, 100, 7)], None),
    ],
)
def test_the_number_of_classes_is_read_off_the_outputs(name, shapes, classes):
    assert class_count(LAYOUTS[name], shapes) == classes


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("yolo", [(1, 84)]),
        ("yolo", [(2, 84, 8400)]),
        ("yolo", [(1, 4, 8400)]),
        ("yolo_end_to_end", [(1, 300, 7)]),
        ("detr", [(1, 100, 92)]),
        ("detr", [(1, 100, 92), (1, 90, 4)]),
        ("detr", [(1, 100, 92), (1, 100, 5)]),
        ("nanodet", [(1, 3598, 32)]),
    ],
)
def test_other_outputs_are_told_apart(name, shapes):
    with pytest.raises(ValueError, match="outputs of another layout"):
        class_count(LAYOUTS[name], shapes)
