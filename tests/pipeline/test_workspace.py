"""A workspace knows its images by name, and can put a pair teacher in the student's place."""

from __future__ import annotations

import numpy as np

from hoi_distill.pipeline.inputs import first_of_each
from tests.fixtures.toy_stages import paint


def test_a_row_has_the_names_of_all_images_of_its_bytes(album):
    paint(album.folder / "copy.png", 2)
    workspace = album.workspace()
    names = workspace.image_names()
    assert sorted(names) == list(range(len(workspace.images.ids)))
    assert [sorted(each) for each in names.values() if len(each) > 1] == [["002.png", "copy.png"]]
    records = workspace.images.distinct_records("train")
    assert len(records) == len(names)
    assert workspace.images.splits["train"][records].tolist() == sorted(names)


def test_the_first_of_each_value_stands_in_rising_order():
    assert first_of_each(np.array([4, 1, 4, 0, 1])).tolist() == [0, 1, 3]


def test_a_pair_teacher_stands_in_the_students_place_and_nothing_else_changes(album):
    album.config["pair_teachers"] = {"phase_1": {"labelled": 3}}
    album.write()
    workspace = album.workspace()
    own = workspace.as_student("phase_1")
    assert (workspace.config.student, own.config.student) == (None, {"labelled": 3})
    assert own.config.model_copy(update={"student": None}) == workspace.config
    assert own.nodes is workspace.nodes
    assert not workspace.annotated, "a folder without annotations"
