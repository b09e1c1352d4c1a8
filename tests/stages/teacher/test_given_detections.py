"""Boxes from a file or from the annotations, row by row."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.detectors.given import TOP, DetectionsFromAnnotations, DetectionsFromFile
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

KEYS = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def annotations() -> Annotations:
    """a.jpg: two verbs of one pair, and a second pair of the same person; b.jpg: one pair; c.jpg: none."""
    human = np.array([[10, 10, 40, 80], [10, 10, 40, 80], [10, 10, 40, 80], [0, 0, 20, 50]], np.float32)
    obj = np.array([[30, 30, 60, 60], [30, 30, 60, 60], [70, 5, 90, 25], [5, 5, 15, 15]], np.float32)
    labels = np.array([1, 1, 41, 16], np.int16)
    return Annotations(
        "toy", "train", hico_vocabulary(), np.array(KEYS), [f"/nowhere/{key}" for key in KEYS],
        np.full(3, 100, np.int32), np.full(3, 90, np.int32), np.array([0, 3, 4, 4]), human, obj, labels,
        np.zeros(4, np.int16), np.zeros(4, np.int16),
    )  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(entries):
        path = tmp_path / "detections.json"
        fields = ("image_id", "category_id", "bbox", "score")
        path.write_text(json.dumps([dict(zip(fields, entry, strict=True)) for entry in entries]))
        return path

    return write


ENTRIES = [
    ("b.jpg", 1, [0, 0, 20, 50], 0.5),
    ("a.jpg", 2, [30, 30, 30, 30], 0.4),
    ("a.jpg", 1, [10, 10, 30, 70], 0.9),
    ("elsewhere.jpg", 1, [0, 0, 1, 1], 0.9),
]


def from_file(path, annotations, objects=COCO_OBJECTS, **keys):
    """The stage on a file of detections, in a dataset with these objects."""
    words = replace(hico_vocabulary(), objects=tuple(objects))
    return made(DetectionsFromFile, vocabulary=words, annotations=annotations, path=path, **keys)


def cells(stage, keys=KEYS):
    stage.open("cpu", {})
    values = stage.compute(Batch(np.zeros(len(keys), "V16"), keys, len(keys)), ["value"], {})["value"]
    assert values.type == stage.output.type
    values.validate(full=True)
    return values.to_pylist()


def test_a_file_becomes_cells_in_our_conventions(annotations, write):
    a, b, c = cells(from_file(write(ENTRIES), annotations))
    assert a["boxes"] == [[10, 10, 40, 80], [30, 30, 60, 60]]
    assert a["scores"] == pytest.approx([0.9, 0.4])
    assert a["labels"] == [0, 1]
    assert (a["width"], a["height"]) == (100, 90)
    assert b["labels"] == [0]
    assert c["boxes"] == []


def test_only_the_best_hundred_are_kept(annotations, write):
    entries = [("a.jpg", 1, [index % 50, 0, 5, 5], index / 200) for index in range(150)]
    (a,) = cells(from_file(write(entries), annotations), ["a.jpg"])
    assert len(a["boxes"]) == TOP
    assert a["scores"] == pytest.approx([index / 200 for index in range(149, 49, -1)])


def test_several_files_are_read_as_one(annotations, write, tmp_path):
    expected = cells(from_file(write(ENTRIES), annotations))
    first = write(ENTRIES[:2]).rename(tmp_path / "first.json")
    assert cells(from_file([first, write(ENTRIES[2:])], annotations)) == expected


def test_an_edited_box_changes_its_own_row_only(annotations, write):
    before = from_file(write(ENTRIES), annotations).source_digests(KEYS)
    edited = [*ENTRIES[:1], ("a.jpg", 2, [31, 30, 30, 30], 0.4), *ENTRIES[2:]]
    stage = from_file(write(edited), annotations)
    assert (stage.source_digests(KEYS) != before).tolist() == [True, False, False]
    assert (from_file(write(ENTRIES[::-1]), annotations).source_digests(KEYS) == before).all()


def test_the_files_path_is_not_the_tables_name(annotations, write, tmp_path):
    stage = from_file(write(ENTRIES), annotations)
    record, external = fingerprint_record(stage), stage.source_digests(KEYS)
    moved = from_file(write(ENTRIES).rename(tmp_path / "moved.json"), annotations)
    assert fingerprint_record(moved) == record
    assert (moved.source_digests(KEYS) == external).all()


def test_annotated_boxes_come_once_each(annotations):
    a, b, c = cells(DetectionsFromAnnotations(annotations))
    assert a["boxes"] == [[10, 10, 40, 80], [30, 30, 60, 60], [70, 5, 90, 25]]
    assert a["labels"] == [0, 1, 41]
    assert a["scores"] == [1, 1, 1]
    assert b["labels"] == [0, 16]
    assert c["boxes"] == []


def test_stages_travel_without_paths_or_pairs(annotations, write):
    for stage in (from_file(write(ENTRIES), annotations), DetectionsFromAnnotations(annotations)):
        expected = cells(stage)
        sent = pickle.dumps(stage)
        assert b"nowhere" not in sent
        assert cells(pickle.loads(sent)) == expected


def test_images_without_an_entry_are_counted_once_where_it_is_planned(annotations, write, caplog):
    stage = from_file(write(ENTRIES), annotations)
    for _ in range(2):
        stage.source_digests(KEYS)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("detections.json: no entry for 1 of 3 images (first c.jpg), which get no boxes")
    caplog.clear()
    cells(pickle.loads(pickle.dumps(stage)))  # on a worker
    assert not caplog.records


def test_what_several_files_leave_out_is_counted_over_all_of_them(annotations, write, tmp_path, caplog):
    first = write(ENTRIES[:1]).rename(tmp_path / "first.json")
    far = [("a.jpg", 1, [-30, 0, 50, 50], 0.5), ("c.jpg", 1, [0, 0, 20, 50], 0.5)]
    from_file([first, write(far)], annotations).source_digests(KEYS)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("detections.json: 1 of 2 boxes reach beyond their images and are cut")


def test_a_bad_file_is_named_while_planning(annotations, tmp_path):
    with pytest.raises(UserError, match=r"absent\.json"):
        from_file(tmp_path / "absent.json", annotations).source_digests(KEYS)


OWN = ("person", "kite", "hang glider")


def test_a_file_may_count_the_vocabularys_own_objects(annotations, write):
    entries = [("a.jpg", 3, [30, 30, 30, 30], 0.4), ("a.jpg", 1, [10, 10, 30, 70], 0.9)]
    (a,) = cells(from_file(write(entries), annotations, categories="vocabulary", objects=OWN), ["a.jpg"])
    assert a["labels"] == [0, 2]
    for wrong in (0, 4):
        stage = from_file(
            write([("a.jpg", wrong, [1, 1, 9, 9], 0.4)]), annotations, categories="vocabulary", objects=OWN
        )
        with pytest.raises(UserError, match=r"entry 1 \(a\.jpg\): unknown category_id"):
            stage.source_digests(KEYS)


def test_what_the_categories_of_own_objects_are_has_to_be_said(annotations, write):
    with pytest.raises(UserError, match=r"categories: the vocabulary has objects of its own; write categories: vocab"):
        from_file(write(ENTRIES), annotations, objects=OWN)
    told = from_file(write(ENTRIES), annotations, objects=OWN, categories="coco")
    assert cells(told) == cells(from_file(write(ENTRIES), annotations))


def test_the_categories_are_not_in_the_tables_name(annotations, write):
    stages = [from_file(write(ENTRIES), annotations, categories=c) for c in (None, "coco", "vocabulary")]
    assert len({str(fingerprint_record(stage)) for stage in stages}) == 1
