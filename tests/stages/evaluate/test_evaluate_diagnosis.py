"""Every kind of error and every reason for a miss, on cases made for it; what the summary counts."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.diagnosis import errors as diagnosis
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES, AnnotatedPairs, confusions, decisive, diagnose
from hoi_distill.stages.evaluate.diagnosis.summary import summarise
from hoi_distill.stages.evaluate.metrics.curves import Ranking

HUMAN, THING = (0, 0, 10, 20), (20, 0, 40, 20)
OTHER_HUMAN, OTHER_THING = (60, 0, 70, 20), (80, 0, 100, 20)
RIDE, WASH, BIKE, HORSE = 0, 1, 0, 1
FAR = (200, 200, 210, 220)


def near(box: tuple) -> tuple:
    """A third of the overlap: shifted by half a width."""
    half = (box[2] - box[0]) / 2
    return (box[0] + half, box[1], box[2] + half, box[3])


def pairs(*rows: tuple) -> AnnotatedPairs:
    """Rows are (human box, object box, object, verb), all in image 0."""
    human, thing, category, verb = zip(*rows, strict=True)
    return AnnotatedPairs(
        np.zeros(len(rows), np.int64), np.float32(human), np.float32(thing), np.array(category), np.array(verb)
    )


def found(*rows: tuple) -> HoiDetections:
    """Rows are (human box, object box, object, verb), all in image 0, of falling score; hoi is 2 * verb + object."""
    human, thing, category, verb = zip(*rows, strict=True)
    category, verb = np.array(category, np.int32), np.array(verb, np.int32)
    score = np.linspace(0.9, 0.1, len(rows), dtype=np.float32)
    image = np.zeros(len(rows), np.int32)
    return HoiDetections(image, np.float32(human), np.float32(thing), category, verb, 2 * verb + category, score)


ANNOTATED = ((HUMAN, THING, BIKE, RIDE), (OTHER_HUMAN, OTHER_THING, BIKE, RIDE))
CASES = {
    "duplicate": (HUMAN, THING, BIKE, RIDE),
    "wrong verb": (HUMAN, THING, BIKE, WASH),
    "wrong object": (HUMAN, THING, HORSE, RIDE),
    "wrong verb and object": (HUMAN, THING, HORSE, WASH),
    "object box": (HUMAN, near(THING), BIKE, RIDE),
    "human box": (near(HUMAN), THING, BIKE, RIDE),
    "both boxes": (near(HUMAN), near(THING), BIKE, RIDE),
    "wrong pairing": (HUMAN, OTHER_THING, BIKE, RIDE),
    "background": (FAR, FAR, BIKE, RIDE),
}


def kinds_of(detections: HoiDetections, annotated: AnnotatedPairs, matched: list[int]) -> list[str]:
    everything = np.ones(len(detections), bool)
    return [list(KINDS)[kind] for kind in diagnose(detections, annotated, np.array(matched), everything).kind]


def test_there_is_a_case_for_every_kind():
    assert ["right", *CASES] == list(KINDS)


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_wrong_detection_is_told(kind: str):
    right = (HUMAN, THING, BIKE, RIDE)
    assert kinds_of(found(right, CASES[kind]), pairs(*ANNOTATED), [0, -1]) == ["right", kind]


def test_the_first_kind_that_holds_is_taken():
    both_verbs = pairs((HUMAN, THING, BIKE, WASH), (HUMAN, THING, HORSE, RIDE), (near(HUMAN), THING, BIKE, RIDE))
    assert kinds_of(found((HUMAN, THING, BIKE, RIDE)), both_verbs, [-1]) == ["wrong verb"]


def test_a_nearly_right_box_of_another_class_is_background():
    assert kinds_of(found((near(HUMAN), THING, BIKE, WASH)), pairs(*ANNOTATED), [-1]) == ["background"]


def test_boxes_of_other_images_do_not_matter():
    elsewhere = pairs(*ANNOTATED)
    elsewhere.image[:] = 3
    assert kinds_of(found((HUMAN, THING, BIKE, WASH)), elsewhere, [-1]) == ["background"]


def test_what_is_not_counted_has_no_kind_and_explains_no_miss():
    detections = found((HUMAN, THING, BIKE, WASH), (HUMAN, THING, BIKE, RIDE))
    told = diagnose(detections, pairs(*ANNOTATED), np.array([-1, 0]), np.array([False, True]))
    assert told.kind.tolist() == [-1, 0]
    assert told.miss.tolist() == [-1, list(MISSES).index("not detected")]


@pytest.mark.parametrize(
    ("detection", "reason"),
    [
        (CASES["duplicate"], "taken"),
        (CASES["wrong verb"], "wrong verb"),
        (CASES["wrong object"], "wrong object"),
        (CASES["wrong verb and object"], "wrong verb and object"),
        (CASES["both boxes"], "boxes"),
        (CASES["object box"], "boxes"),
        (CASES["background"], "not detected"),
    ],
)
def test_each_reason_for_a_miss_is_told(detection: tuple, reason: str):
    told = diagnose(found(detection), pairs((HUMAN, THING, BIKE, RIDE)), np.array([-1]), np.ones(1, bool))
    assert [list(MISSES)[miss] for miss in told.miss] == [reason]


def test_parts_and_order_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 8, (2, 300, 2)).astype(np.float32)
    boxes = np.concatenate([boxes, boxes + rng.integers(2, 8, (2, 300, 2))], 2)
    image = rng.integers(0, 5, 300).astype(np.int32)
    category, verb = rng.integers(0, 2, (2, 300)).astype(np.int32)
    annotated = AnnotatedPairs(image[:60], boxes[0, :60], boxes[1, :60], category[:60], verb[:60])
    detections = HoiDetections(image, *boxes, category, verb, verb, rng.random(300).astype(np.float32))
    nothing, everything = np.full(300, -1), np.ones(300, bool)
    whole = diagnose(detections, annotated, nothing, everything)
    candidates = diagnosis._candidates
    monkeypatch.setattr(diagnosis, "_candidates", lambda *columns: candidates(*columns, at_once=7))
    in_parts = diagnose(detections, annotated, nothing, everything)
    np.testing.assert_array_equal(in_parts.kind, whole.kind)
    np.testing.assert_array_equal(in_parts.miss, whole.miss)
    order = rng.permutation(300)
    shuffled = HoiDetections(*(getattr(detections, name)[order] for name in HoiDetections.__dataclass_fields__))
    np.testing.assert_array_equal(diagnose(shuffled, annotated, nothing, everything).kind, whole.kind[order])
    assert len(set(whole.kind.tolist())) > 5


def test_a_confusion_names_the_best_overlapping_pair_with_the_same_object():
    annotated = pairs((HUMAN, THING, HORSE, RIDE), (HUMAN, (20, 0, 40, 18), BIKE, RIDE), (HUMAN, THING, BIKE, RIDE))
    row, pair = confusions(found((FAR, FAR, BIKE, WASH), (HUMAN, THING, BIKE, WASH)), annotated, np.array([0, 1]))
    assert (row.tolist(), pair.tolist()) == ([1], [2])


def ranking_of(detections: HoiDetections, annotated: AnnotatedPairs, is_tp: list[bool]) -> Ranking:
    hoi = 2 * annotated.verb + annotated.object
    order = np.lexsort((-detections.score, detections.hoi))
    return Ranking(
        row=order,
        klass=detections.hoi[order].astype(np.int64),
        image=detections.image[order].astype(np.int64),
        score=detections.score[order],
        is_tp=np.array(is_tp)[order],
        gt_class=hoi,
        gt_image=annotated.image,
        classes=4,
        images=1,
    )


def test_decisive_are_as_many_as_a_class_has_pairs():
    detections = found(*[(HUMAN, THING, BIKE, RIDE)] * 3, (HUMAN, THING, BIKE, WASH))
    ranking = ranking_of(detections, pairs(*ANNOTATED), [True, False, False, False])
    assert decisive(ranking).tolist() == [True, True, False, False]


def test_a_summary_counts_and_says_what_each_kind_costs():
    annotated = pairs(*ANNOTATED)
    detections = found((HUMAN, THING, BIKE, WASH), (FAR, FAR, BIKE, RIDE), (HUMAN, THING, BIKE, RIDE))
    told = diagnose(detections, annotated, np.array([-1, -1, 0]), np.ones(3, bool))
    ranking = ranking_of(detections, annotated, [False, False, True])
    hoi_of = np.array([[0, 1], [2, 3]])
    summary = summarise(told, ranking, np.arange(2), grid=np.arange(11) / 10, hoi_of=hoi_of)
    rows = {row.kind: row for row in summary.errors}
    assert (rows["right"].decisive, rows["right"].all, rows["right"].gain) == (1, 1, 0.0)
    assert (rows["background"].decisive, rows["background"].all) == (1, 1)
    assert rows["background"].gain == pytest.approx(100 * (6 / 11 - 3 / 11)), (
        "precision 1 instead of 1/2 up to recall 1/2"
    )
    assert (rows["wrong verb"].decisive, rows["wrong verb"].all, rows["wrong verb"].gain) == (0, 1, 0.0)
    assert {row.reason: row.pairs for row in summary.misses if row.pairs} == {"not detected": 1}
    assert summary.class_kinds[0].sum() == 2
    assert summary.class_misses.sum(1).tolist() == [1, 0, 0, 0]
    assert summary.verbs == [], "the wrong verb was not decisive"
