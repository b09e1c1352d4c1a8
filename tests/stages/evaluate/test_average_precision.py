"""The official definition on cases small enough to work out by hand, and what must not change a figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRID, interpolated_precision, iou
from hoi_distill.stages.evaluate.metrics.hico_det import GroundTruth, Results, hico_det

PERSON, BALL = (0, 0, 10, 10), (20, 0, 30, 10)
HALF_BALL, UNDER_HALF = (20, 0, 30, 5), (20, 0, 30, 4.99)
HOI_OBJECT = np.array([1, 1, 2])


def truths(*rows: tuple[int, int, tuple], images: int = 4, shows: np.ndarray | None = None) -> GroundTruth:
    """Rows are (image, class, object box); every human is PERSON."""
    image, hoi, box = zip(*rows, strict=True) if rows else ((), (), ())
    return GroundTruth(
        np.array(image, int), np.tile(np.float32(PERSON), (len(rows), 1)), np.array(box, np.float32).reshape(-1, 4),
        np.array(hoi, int), np.ones((images, 3), bool) if shows is None else shows,
    )  # fmt: skip


def detections(*rows: tuple[int, int, tuple, float]) -> HoiDetections:
    """Rows are (image, class, object box, score)."""
    image, hoi, box, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    classes = np.array(hoi, np.int32)
    return HoiDetections(
        np.array(image, np.int32), np.tile(np.float32(PERSON), (len(rows), 1)),
        np.array(box, np.float32).reshape(-1, 4), HOI_OBJECT[classes], classes, classes, np.array(score, np.float32),
    )  # fmt: skip


def evaluate(found: HoiDetections, annotated: GroundTruth) -> Results:
    return hico_det(found, annotated, HOI_OBJECT)


def test_boxes_are_half_open():
    a = np.float32([[0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]])
    b = np.float32([[1, 1, 3, 3], [1, 0, 2, 1], [3, 3, 3, 3]])
    assert iou(a, b).tolist() == [1 / 7, 0.0, 0.0]


def test_an_overlap_of_exactly_one_half_counts():
    annotated = truths((0, 0, BALL))
    assert evaluate(detections((0, 0, HALF_BALL, 0.9)), annotated).default.ap[0] == 1.0
    assert evaluate(detections((0, 0, UNDER_HALF, 0.9)), annotated).default.ap[0] == 0.0


def test_both_boxes_must_overlap():
    found = detections((0, 0, BALL, 0.9))
    found.human_box[:] = BALL
    assert evaluate(found, truths((0, 0, BALL))).default.ap[0] == 0.0


def test_the_second_detection_of_a_pair_is_wrong():
    results = evaluate(detections((0, 0, BALL, 0.5), (0, 0, BALL, 0.9)), truths((0, 0, BALL)))
    assert results.matched.tolist() == [-1, 0]
    assert results.default.ap[0] == 1.0  # precision is read before the duplicate


def test_a_detection_keeps_to_its_best_pair_even_if_that_is_taken():
    close = (20, 0, 30, 9)
    results = evaluate(detections((0, 0, BALL, 0.9), (0, 0, (20, 0, 30, 10), 0.8)), truths((0, 0, BALL), (0, 0, close)))
    assert results.matched.tolist() == [0, -1], "an evaluator that takes the next free pair would match both"


def test_average_precision_by_hand():
    # Two pairs; ranked right, wrong, right: precision 1 up to recall .5 (6 of the 11 levels), 2/3 beyond (5 levels).
    found = detections((0, 0, BALL, 0.9), (1, 0, PERSON, 0.8), (1, 0, BALL, 0.7))
    results = evaluate(found, truths((0, 0, BALL), (1, 0, BALL)))
    assert results.default.ap[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert results.default.recall[0] == 1.0
    assert results.default.found[0] == 2


def test_recall_levels_are_those_of_floating_point():
    is_tp, klass = np.array([True, True, True]), np.zeros(3, int)
    assert RECALL_GRID[3] > 0.3
    assert interpolated_precision(klass, is_tp, np.array([10]))[0] == pytest.approx(3 / 11)
    assert interpolated_precision(klass, is_tp, np.array([10]), np.arange(11) / 10)[0] == pytest.approx(4 / 11)


def test_ties_go_by_image_then_as_stored():
    annotated = truths((0, 0, BALL))
    right_first = evaluate(detections((0, 0, BALL, 0.5), (0, 0, PERSON, 0.5)), annotated)
    wrong_first = evaluate(detections((0, 0, PERSON, 0.5), (0, 0, BALL, 0.5)), annotated)
    earlier_image = evaluate(detections((1, 0, PERSON, 0.5), (0, 0, BALL, 0.5)), annotated)
    assert [r.default.ap[0] for r in (right_first, wrong_first, earlier_image)] == [1.0, 0.5, 1.0]


def test_classes_without_pairs_have_no_precision_and_undetected_ones_zero():
    results = evaluate(detections((0, 1, BALL, 0.5)), truths((0, 0, BALL)))
    assert results.default.ap[0] == 0.0
    assert np.isnan(results.default.ap[1:]).all()
    assert np.isnan(results.default.recall[1])


def test_nothing_detected_and_nothing_annotated():
    assert evaluate(detections(), truths((0, 0, BALL))).default.ap[0] == 0.0
    nothing = evaluate(detections((0, 0, BALL, 0.5)), truths())
    assert np.isnan(nothing.default.ap).all()
    assert nothing.matched.tolist() == [-1]
    assert np.isnan(evaluate(detections(), truths()).known_object.ap).all()


def test_known_object_leaves_out_images_that_do_not_show_it():
    shows = np.array([[0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    found = detections((1, 0, BALL, 0.9), (0, 0, BALL, 0.8))  # the first is wrong, in an image without object 1
    results = evaluate(found, truths((0, 0, BALL), shows=shows))
    assert results.default.ap[0] == 0.5
    assert results.known_object.ap[0] == 1.0
    assert results.known_object.detections.tolist() == [1, 0, 0]


def random_case(seed: int) -> tuple[HoiDetections, GroundTruth]:
    """A crowded small world: boxes on a coarse grid, so that overlaps of a half, duplicates and rivals abound."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        corner = rng.integers(0, 4, (n, 2))
        return np.concatenate([corner, corner + rng.integers(1, 4, (n, 2))], 1).astype(np.float32)

    g, d = int(rng.integers(0, 25)), int(rng.integers(0, 80))
    annotated = GroundTruth(
        rng.integers(0, 4, g), boxes(g), boxes(g), rng.integers(0, 3, g), rng.integers(0, 2, (4, 3)).astype(bool)
    )
    hoi = rng.integers(0, 3, d).astype(np.int32)
    scores = rng.permutation(d).astype(np.float32) / 100
    found = HoiDetections(rng.integers(0, 4, d).astype(np.int32), boxes(d), boxes(d), HOI_OBJECT[hoi], hoi, hoi, scores)
    return found, annotated


def by_the_book(found: HoiDetections, annotated: GroundTruth, hoi: int) -> float:
    """One class, one detection at a time, as the definition reads."""
    positives = int((annotated.hoi == hoi).sum())
    if not positives:
        return float("nan")
    used: set[int] = set()
    is_tp = []
    rows = [row for row in range(len(found)) if found.hoi[row] == hoi]
    for row in sorted(rows, key=lambda row: (-found.score[row], found.image[row], row)):
        best, match = -1.0, -1
        for truth in range(len(annotated.hoi)):
            if annotated.hoi[truth] == hoi and annotated.image[truth] == found.image[row]:
                overlap = min(
                    float(iou(found.human_box[row][None], annotated.human_box[truth][None])[0]),
                    float(iou(found.object_box[row][None], annotated.object_box[truth][None])[0]),
                )
                if overlap > best:
                    best, match = overlap, truth
        is_tp.append(best >= 0.5 and match not in used)
        if is_tp[-1]:
            used.add(match)
    total = 0.0
    for k in range(11):
        reached = [
            sum(is_tp[: n + 1]) / (n + 1) for n in range(len(is_tp)) if sum(is_tp[: n + 1]) / positives >= k * 0.1
        ]
        total += max(reached, default=0.0)
    return total / 11


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_equals_the_definition_taken_literally(seed: int):
    found, annotated = random_case(seed)
    results = evaluate(found, annotated)
    expected = [by_the_book(found, annotated, hoi) for hoi in range(3)]
    np.testing.assert_allclose(results.default.ap, expected, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_the_order_of_rows_changes_nothing(seed: int):
    found, annotated = random_case(seed)
    order = np.random.default_rng(seed + 1).permutation(len(found))
    shuffled = HoiDetections(*(getattr(found, name)[order] for name in HoiDetections.__dataclass_fields__))
    one, other = evaluate(found, annotated), evaluate(shuffled, annotated)
    np.testing.assert_array_equal(one.default.ap, other.default.ap)
    np.testing.assert_array_equal(one.known_object.ap, other.known_object.ap)
    np.testing.assert_array_equal(one.matched[order], other.matched)
