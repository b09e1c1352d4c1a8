"""A pair teacher that answers for other pairs than its student's is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hoi_distill.pipeline.config.student import DataSection, Roles
from hoi_distill.pipeline.training.agreement import PairTeacherTable
from hoi_distill.storage.errors import UserError


def test_keys_that_choose_pairs_must_be_alike():
    data = DataSection(labelled=None)
    teacher = PairTeacherTable(("score",), "a.yaml: pair_teachers.clip.", SimpleNamespace(score=0.2), data)
    teacher.refuse_other_boxes(SimpleNamespace(score=0.2), data)
    with pytest.raises(
        UserError, match=r"a.yaml: pair_teachers.clip.score: 0.2, but its student has 0.3; write the same"
    ):
        teacher.refuse_other_boxes(SimpleNamespace(score=0.3), data)
    other = DataSection(labelled=None, tables=Roles(detections="theirs"))
    with pytest.raises(UserError, match=r"clip.tables.detections: detections, but its student has theirs"):
        teacher.refuse_other_boxes(SimpleNamespace(score=0.2), other)


def test_a_teacher_that_answers_for_whole_images_may_have_other_boxes():
    data = DataSection(labelled=None)
    other = DataSection(labelled=None, tables=Roles(detections="theirs"))
    PairTeacherTable((), "", SimpleNamespace(), data).refuse_other_boxes(SimpleNamespace(), other)


def test_a_name_that_is_no_role_is_the_tables_own():
    tables = Roles(features="maps")
    assert [tables.name_of(role) for role in ("features", "itm", "taught_maps")] == ["maps", "itm", "taught_maps"]
