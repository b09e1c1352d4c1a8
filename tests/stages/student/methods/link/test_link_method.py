"""LINK as the pipeline knows it: what it reads, what it refuses, what reports say of it."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace

import pytest

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.student.method import Extras, method_named
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_link import ALL_LEVELS, MAPS, PAIRS, TEXT, link_config
from tests.fixtures.toy_student import VOCABULARY

METHOD = method_named("link")
VIEWS = ("original", "flip")


def test_without_weights_no_teacher_is_among_the_tables():
    for kd in (KdConfig(), KdConfig((PAIRS,), (MAPS,), unlabelled=True)):
        needs = METHOD.needs(link_config(kd=kd), VOCABULARY)
        assert needs.train == {"detections": None, "features": VIEWS}
        assert needs.test == {"detections": None, "features": VIEWS[:1]}
        assert needs.text
        assert not needs.unlabelled


def test_each_weight_asks_for_its_own_tables():
    two = KdConfig(("a", "b"), ("c", "d"), unlabelled=True)
    for weights, tables in (
        ({"logit": 1.0}, {"a", "b"}),
        ({"query": 1.0}, {"a", "b"}),
        ({"map": 1.0}, {"c", "d"}),
        ({"logit": 1.0, "map": 1.0}, {"a", "b", "c", "d"}),
    ):
        needs = METHOD.needs(link_config(kd=replace(two, **weights)), VOCABULARY)
        assert set(needs.train) - {"detections", "features"} == tables
        assert all(needs.train[name] == VIEWS for name in tables)
        assert set(needs.test) == {"detections", "features"}
        assert needs.unlabelled


def test_it_can_leave_classes_out():
    assert METHOD.zero_shot


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_jitter": 0.1, "kd": asdict(ALL_LEVELS)}, r"student\.box_jitter: 0\.1 moves the boxes"),
        ({"box_jitter": 0.1, "kd": asdict(replace(ALL_LEVELS, logit=0.0))}, r"student\.box_jitter"),
        ({"box_jitter": -0.1}, r"student\.box_jitter: expected at least 0; got -0\.1"),
        ({"top_k": 0}, r"student\.top_k: expected at least 1; got 0"),
        ({"steps": 0}, r"student\.steps: expected at least 1; got 0"),
        ({"views": ()}, r"student\.views: expected at least 1 in it"),
    ],
)
def test_a_configuration_with_a_mistake_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_section({"method": "link", "labelled": None, **changes}, "student.")
    assert "\n" not in str(refusal.value)


def test_jitter_goes_with_maps_and_with_weights_of_0():
    for kd in (replace(ALL_LEVELS, logit=0.0, query=0.0), KdConfig((PAIRS,), (MAPS,))):
        assert link_config(box_jitter=0.1, kd=kd).box_jitter == 0.1


def test_reports_say_what_it_learns_from():
    plain = METHOD.trained_on(LinkConfig(), 1200, 0)
    assert plain == "the annotated pairs of 1,200 pictures. Looks through the teacher's cached feature maps"
    assert "logits and queries and maps of 1 pair teacher on" in METHOD.trained_on(link_config(kd=ALL_LEVELS), 9, 0)
    both = KdConfig(("a", "b"), (), logit=1.0, unlabelled=True)
    assert "with logits of 2 pair teachers on every pair of these and of 30 pictures" in METHOD.trained_on(
        link_config(kd=both), 9, 30
    )


def test_the_method_trains_until_it_is_stopped_and_goes_on(tmp_path, toy):
    stop = threading.Event()
    stop.set()
    extras = Extras(tmp_path / "shared", TEXT, {"features": "x"}, stop)
    with pytest.raises(KeyboardInterrupt):
        METHOD.train(link_config(), toy.training_set(16), tmp_path / "run", extras)
    student = METHOD.train(link_config(), toy.training_set(16), tmp_path / "run", replace(extras, stop=None))
    assert student.identities == {"features": "x"}
    assert load_student(tmp_path / "run" / "checkpoint", VOCABULARY).method == "link"
