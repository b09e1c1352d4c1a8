"""Ties that may move a figure are counted, for every figure of every protocol, and said."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.v_coco_json import read_v_coco_json
from hoi_distill.stages.evaluate.metrics.average_precision import interpolated_precision
from hoi_distill.stages.evaluate.metrics.conventions import convention
from hoi_distill.stages.evaluate.metrics.curves import undecided
from hoi_distill.stages.evaluate.metrics.hico_det import hico_det
from hoi_distill.stages.evaluate.protocols.hico_det import evaluate_triplets
from hoi_distill.stages.evaluate.protocols.swig_hoi import evaluate_triplets as judge_swig_triplets
from hoi_distill.stages.evaluate.protocols.v_coco import evaluate_persons
from tests.fixtures.small_hico import CLASSES, HOI_OBJECT, small_world
from tests.fixtures.small_swig_hoi import small
from tests.fixtures.small_v_coco import small_v_coco

TRAINING = np.array([5, 50, 50])


def test_undecided_are_equal_scores_of_one_class_that_are_right_and_wrong():
    klass = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2])
    score = np.array([0.9, 0.9, 0.8, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5])
    is_tp = np.array([1, 0, 1, 1, 1, 0, 1, 0, 0], bool)
    assert undecided(klass, score, is_tp).tolist() == [True, True] + 7 * [False]
    assert undecided(klass[:0], score[:0], is_tp[:0]).tolist() == []
    assert not undecided(klass, score + np.arange(9) / -1e15, is_tp).any(), "distinct scores are no ties"


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_is_undecided_no_order_of_equals_moves_a_class(seed: int):
    found, truths = small_world(seed, ties=True)
    rng, aps = np.random.default_rng(seed), []
    for _ in range(12):
        order = rng.permutation(len(found))
        shuffled = HoiDetections(*(getattr(found, field.name)[order] for field in fields(found)))
        results = hico_det(shuffled, truths, HOI_OBJECT)
        rank = np.lexsort((-shuffled.score, shuffled.hoi))
        tied = undecided(shuffled.hoi[rank], shuffled.score[rank], results.matched[rank] >= 0)
        open_classes = np.bincount(shuffled.hoi[rank][tied], minlength=CLASSES) > 0
        aps.append(np.where(open_classes, np.nan, results.default.ap))
    assert np.nanmax(np.ptp(np.array(aps), axis=0), initial=0) == 0
    moved = interpolated_precision(np.zeros(2, int), np.array([True, False]), np.array([1]))
    assert moved != interpolated_precision(np.zeros(2, int), np.array([False, True]), np.array([1]))


def tied(annotations: Annotations, perfect: HoiDetections) -> HoiDetections:
    """The pair of class 0 in image a found twice with one score, once elsewhere; all else distinct."""
    columns = {
        field.name: np.append(getattr(perfect, field.name), getattr(perfect, field.name)[:1], 0)
        for field in fields(perfect)
    }
    columns["human_box"][-1] += 50
    return HoiDetections(**columns)


def test_hico_dets_ties_are_counted_by_figure_and_said(annotations: Annotations, perfect: HoiDetections):
    result = evaluate_triplets(annotations, tied(annotations, perfect), TRAINING)
    assert result.record["ties"] == {
        "default": {"full": 2, "rare": 2, "non_rare": 0}, "known_object": {"full": 2, "rare": 2, "non_rare": 0}
    }  # fmt: skip
    (line,) = [note for note in result.notes if note.startswith("Tied")]
    assert ": default full 2, rare 2; known object full 2, rare 2." in line
    assert line.endswith("here equal scores rank by image, then as stored.")
    assert line in result.table()
    json.dumps(result.record)


def test_a_convention_that_leaves_a_detection_out_leaves_its_tie_out(annotations: Annotations, perfect: HoiDetections):
    found = tied(annotations, perfect)
    last = evaluate_triplets(annotations, found, TRAINING, convention("official", ["ties=last"]))
    assert last.record["ties"]["default"]["full"] == 2
    assert "equal scores rank by falling image" in " ".join(last.notes)
    one = evaluate_triplets(annotations, found, TRAINING, convention("official", ["top_per_class=1"]))
    assert one.record["ties"]["default"] == {"full": 0, "rare": 0, "non_rare": 0}
    assert not any(note.startswith("Tied") for note in one.notes)


def test_without_ties_nothing_is_said(annotations: Annotations, perfect: HoiDetections):
    result = evaluate_triplets(annotations, perfect, TRAINING)
    assert result.record["ties"]["default"] == {"full": 0, "rare": 0, "non_rare": 0}
    assert not any(note.startswith("Tied") for note in result.notes)
    same = evaluate_triplets(annotations, replace(perfect, score=np.full(len(perfect), 0.5)), TRAINING)
    assert same.record["ties"]["default"]["full"] == 0, "all of them right: any order is the same"


@pytest.mark.parametrize("quarters", [False, True])
def test_v_cocos_ties_are_counted_by_scenario_and_agent(quarters: bool, tmp_path: Path):
    people, entries = small_v_coco(quarters)
    (tmp_path / "found.json").write_text(json.dumps(entries))
    result = evaluate_persons(read_v_coco_json(tmp_path / "found.json", people.image_id), people, "val")
    ties = result.record["ties"]
    assert {key: set(value) for key, value in ties.items()} == {
        "scenario_1": {"roles_25", "roles_24"}, "scenario_2": {"roles_25", "roles_24"}, "agent": {"actions_26"}
    }  # fmt: skip
    assert all((count > 0) == quarters for value in ties.values() for count in value.values())
    assert any("agent 26 actions" in note and "later images come first" in note for note in result.notes) == quarters


def test_swig_hois_ties_are_counted_by_figure():
    result = judge_swig_triplets(*small(True))
    assert set(result.record["ties"]["full"]) == {"full", "non_rare", "rare", "unseen"}
    found = result.detections
    distinct = replace(found, score=np.random.default_rng(0).permutation(len(found)) / len(found))
    assert set(judge_swig_triplets(small(True)[0], distinct).record["ties"]["full"].values()) == {0}
