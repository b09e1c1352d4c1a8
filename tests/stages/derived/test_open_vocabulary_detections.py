"""Detections of a vocabulary's objects from boxes by name: thresholds, suppression, the best hundred."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.open_vocabulary_detections import OpenVocabularyDetections
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.detectors.open_vocabulary import OBJECT_BOXES
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

WORDS = Vocabulary.from_actions([("ice_cream", "eat", "eating")], "test", objects=("person", "ice_cream", "cup"))
LEFT, NEAR, RIGHT = [0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]
"""``NEAR`` overlaps ``LEFT`` by 0.9."""


def stage(**keys) -> OpenVocabularyDetections:
    return made(OpenVocabularyDetections, vocabulary=WORDS, **keys)


def cell(*found) -> dict:
    """A cell of one name: (box, score) pairs."""
    return {"boxes": [box for box, _ in found], "scores": [score for _, score in found], "width": 64, "height": 48}


def detections(found: OpenVocabularyDetections, **names) -> list[dict]:
    """The cells of rows whose names have these cells; names that are not given were not found."""
    rows = len(next(iter(names.values())))
    given = {name: pa.array(names.get(name.replace(" ", "_"), [cell()] * rows), OBJECT_BOXES) for name in found.asked}
    batch = Batch(np.zeros(rows, "V16"), [""] * rows, rows)
    answered = found.compute(batch, ("value",), {"object_boxes": given})["value"]
    assert answered.type == DETECTIONS
    return answered.to_pylist()


def test_boxes_of_one_object_suppress_each_other_and_leave_other_objects_alone():
    (found,) = detections(stage(), person=[cell((LEFT, 0.75), (NEAR, 0.5), (RIGHT, 0.25))], cup=[cell((NEAR, 0.625))])
    assert found["labels"] == [0, 2, 0]
    assert found["scores"] == [0.75, 0.625, 0.25]
    assert found["boxes"] == [LEFT, NEAR, RIGHT]
    assert (found["width"], found["height"]) == (64, 48)


def test_the_overlap_that_is_allowed_is_a_key():
    assert len(detections(stage(overlap=0.95), person=[cell((LEFT, 0.75), (NEAR, 0.5))])[0]["boxes"]) == 2
    assert len(detections(stage(overlap=0.85), person=[cell((LEFT, 0.75), (NEAR, 0.5))])[0]["boxes"]) == 1


def test_an_object_has_its_own_threshold_or_that_of_all():
    found = stage(least=0.5, least_of={"ice cream": 0.25})
    boxes = [cell((LEFT, 0.5), (RIGHT, 0.3))]
    (each,) = detections(found, person=boxes, ice_cream=boxes)
    assert sorted(zip(each["labels"], each["scores"], strict=True)) == [(0, 0.5), (1, pytest.approx(0.3)), (1, 0.5)]


def test_boxes_of_another_name_count_as_the_objects():
    found = stage(also={"person": ["man", "woman"]})
    assert set(found.dependencies("value")["object_boxes"]) == {"person", "ice cream", "cup", "man", "woman"}
    (each,) = detections(found, man=[cell((LEFT, 0.5))], woman=[cell((NEAR, 0.75), (RIGHT, 0.25))])
    assert (each["labels"], each["scores"]) == ([0, 0], [0.75, 0.25])


def test_the_best_hundred_of_an_image_are_kept_and_rows_stay_apart():
    many = cell(*(([3 * i, 0, 3 * i + 2, 2], 0.9 - i / 1000) for i in range(80)))
    first, second, third = detections(stage(), person=[many, cell(), None], cup=[many, cell((LEFT, 0.5)), None])
    assert len(first["scores"]) == TOP
    assert first["scores"] == sorted(first["scores"], reverse=True)
    assert (second["labels"], second["boxes"]) == ([2], [LEFT])
    assert third["boxes"] == []


def test_nothing_found_is_a_cell_without_boxes():
    (found,) = detections(stage(), person=[cell()])
    assert (found["boxes"], found["width"]) == ([], 64)


def test_every_key_that_decides_a_value_is_in_the_fingerprint_and_no_other():
    usual = fingerprint_record(stage())
    changed = ({"least": 0.1}, {"least_of": {"cup": 0.1}}, {"also": {"cup": ["mug"]}}, {"overlap": 0.7})
    assert all(fingerprint_record(stage(**keys)) != usual for keys in changed)
    assert fingerprint_record(stage(batch_size=3)) == usual


def test_an_objects_own_name_counts_as_no_other_object():
    with pytest.raises(UserError, match=r"also\.person: 'cup' is an object of the vocabulary itself"):
        stage(also={"person": ["man", "cup"]})


@pytest.mark.parametrize("key", [{"least_of": {"icecream": 0.1}}, {"also": {"icecream": ["gelato"]}}])
def test_an_object_that_the_vocabulary_lacks_is_refused(key):
    with pytest.raises(UserError, match=r"\.icecream: the vocabulary has no such object.*ice cream"):
        stage(**key)
