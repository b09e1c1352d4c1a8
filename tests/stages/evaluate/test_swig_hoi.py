"""SWiG-HOI's evaluation: values of the published evaluator on a small fixture, and its rules one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.stages.data.swig_hoi import swig_evaluated
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics import swig_hoi as module
from hoi_distill.stages.evaluate.metrics.swig_hoi import swig_hoi
from tests.fixtures.small_swig_hoi import IMAGES, annotated, classes, detected, small

BOX, FAR = (0, 0, 20, 20), (60, 60, 80, 80)


@pytest.mark.parametrize(
    ("tied", "cap", "published"),
    [  # from the published calc_ap, its sort made stable
        (True, 19999, [65.833294, 72.665113, 41.955691]),
        (True, 17, [58.11561, 70.13986, 27.548922]),
        (False, 19999, [64.108527, 64.378379, 48.876313]),
        (False, 17, [57.272727, 55.30303, 40.353586]),
    ],
)
def test_the_published_evaluator_on_ties_and_duplicates(monkeypatch, tied, cap, published):
    monkeypatch.setattr(module, "CONVENTION", replace(module.CONVENTION, top_per_class=cap))
    annotations, found = small(tied)
    assert (100 * swig_hoi(found, annotations).ap[classes()]).tolist() == pytest.approx(published, abs=1e-6)


def one_class(
    *found: tuple[int, tuple[int, ...], tuple[int, ...], float], pairs: int = 1, hoi: int | None = None
) -> float:
    """AP of detections (image, human, object, score) where the first images show one pair each."""
    which = classes()[2] if hoi is None else hoi
    image = np.arange(pairs)
    boxes = np.array([BOX] * pairs)
    images, humans, things, scores = (np.array(column) for column in zip(*found, strict=True))
    results = swig_hoi(
        detected(images, humans, things, np.full(len(found), which), scores),
        annotated(image, boxes, boxes, np.full(pairs, which)),
    )
    return float(results.ap[which])


def test_half_an_overlap_is_enough_and_less_is_not():
    assert one_class((0, (0, 0, 20, 10), BOX, 0.5)) == pytest.approx(1)
    assert one_class((0, (0, 0, 20, 9), BOX, 0.5)) == 0
    assert one_class((0, BOX, (0, 0, 20, 9), 0.5)) == 0


def test_recall_is_read_at_exact_tenths():
    """3 of 10 found reaches the level 3/10 here, as 0.3 >= 0.3, though not on HICO-DET's official grid."""
    found = [(0, BOX, BOX, 0.9), (1, BOX, BOX, 0.8), (2, BOX, BOX, 0.7)]
    image, boxes = np.repeat(np.arange(IMAGES), 2), np.array([BOX, FAR] * IMAGES)
    which = np.full(10, classes()[0])
    hits = detected(
        np.array([part[0] for part in found]), np.array([BOX] * 3), np.array([BOX] * 3), which[:3],
        np.array([part[3] for part in found]),
    )  # fmt: skip
    assert swig_hoi(hits, annotated(image, boxes, boxes, which)).ap[which[0]] == pytest.approx(4 / 11)


def test_a_second_detection_of_a_pair_is_wrong():
    assert one_class((0, BOX, BOX, 0.9), (1, BOX, BOX, 0.5), pairs=2) == pytest.approx(1)
    twice = one_class((0, BOX, BOX, 0.9), (0, BOX, BOX, 0.7), (1, BOX, BOX, 0.5), pairs=2)
    assert twice == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_only_the_best_scored_of_a_class_count(monkeypatch):
    monkeypatch.setattr(module, "CONVENTION", replace(module.CONVENTION, top_per_class=1))
    assert one_class((0, BOX, BOX, 0.5), (1, FAR, FAR, 0.9)) == 0
    assert one_class((0, BOX, BOX, 0.9), (1, FAR, FAR, 0.5)) == pytest.approx(1)


def test_means_are_over_the_evaluated_interactions_and_nothing_found_is_zero():
    unseen, rare, common = classes()
    boxes = np.array([BOX, BOX])
    hoi = np.array([unseen, common])
    results = swig_hoi(
        detected(np.array([0]), boxes[:1], boxes[:1], hoi[:1], np.array([0.5])),
        annotated(np.array([0, 0]), boxes, boxes, hoi),
    )
    assert results.percentages() == {
        "full": pytest.approx(100 / 5539), "non_rare": 0, "rare": 0, "unseen": pytest.approx(100 / 1391)
    }  # fmt: skip
    assert (results.pairs[[unseen, rare, common]].tolist(), results.found.sum()) == ([1, 0, 1], 1)
    assert (results.matched.tolist(), results.counted.tolist()) == ([0], [True])


def test_interactions_that_are_not_evaluated_count_nowhere():
    ignored = int(np.flatnonzero(~swig_evaluated())[0])
    assert one_class((0, BOX, BOX, 0.5), hoi=ignored) == 0


def test_the_order_of_detections_changes_nothing_without_ties():
    annotations, found = small(tied=False)
    rows = np.random.default_rng(0).permutation(len(found))
    other = HoiDetections(*(getattr(found, name)[rows] for name in HoiDetections.__annotations__))
    assert swig_hoi(other, annotations).ap.tolist() == swig_hoi(found, annotations).ap.tolist()


def test_lower_scored_duplicates_never_raise_average_precision():
    annotations, found = small(tied=False)
    again = replace(found, score=found.score - 1)
    both = HoiDetections(
        *(np.concatenate([getattr(part, name) for part in (found, again)]) for name in HoiDetections.__annotations__)
    )
    assert (swig_hoi(both, annotations).ap <= swig_hoi(found, annotations).ap).all()


def test_every_annotated_pair_detected_scores_one():
    annotations, _ = small(tied=True)
    hoi = annotations.hoi.astype(np.int64)
    found = detected(annotations.pair_image(), annotations.human_box, annotations.object_box, hoi, np.ones(len(hoi)))
    assert swig_hoi(found, annotations).ap[classes()].tolist() == pytest.approx([1, 1, 1])
