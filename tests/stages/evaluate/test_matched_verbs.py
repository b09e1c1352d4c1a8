"""Verbs apart from boxes: loose boxes cost nothing, wrong verbs do, and each detected pair is taken once."""

from __future__ import annotations

import json
import re

import numpy as np

from hoi_distill.pipeline.cli import app
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.stages.evaluate.metrics.matched_verbs import matched_verbs

RIDE, PUSH, HOLD = range(3)
PERSON, BICYCLE, OTHER = [0, 0, 40, 80], [30, 40, 90, 80], [100, 0, 140, 80]


def split(pairs: list[tuple[int, list[int], list[int], int]], images: int) -> Annotations:
    """Annotated (image, person, object, verb)."""
    image, human, thing, verb = (np.array(column) for column in zip(*pairs, strict=True))
    side, one = np.full(images, 200, np.int32), np.ones(len(pairs), np.int16)
    offsets = np.searchsorted(image, np.arange(images + 1))
    names = np.arange(images).astype(str)
    boxes = (np.array(each, np.float32) for each in (human, thing))
    return Annotations(
        "a", "test", None, names, list(names), side, side, offsets, *boxes, one, verb.astype(np.int16), one
    )


def detected(pairs: list[tuple[int, list[int], list[int], dict[int, float]]]) -> HoiDetections:
    """Detected (image, person, object, {verb: score})."""
    rows = [(image, human, thing, verb, score) for image, human, thing, found in pairs for verb, score in found.items()]
    image, human, thing, verb, score = (np.array(column) for column in zip(*rows, strict=True))
    one = np.ones(len(rows), np.int32)
    return HoiDetections(image, human.astype(np.float32), thing.astype(np.float32), one, verb, one, score)


def moved(box: list[int], by: int) -> list[int]:
    return [side + by for side in box]


def test_loose_boxes_cost_nothing_and_wrong_verbs_do():
    truth = split([(0, PERSON, BICYCLE, RIDE), (1, PERSON, BICYCLE, PUSH)], 2)
    for by in (0, 30):
        right = {0: {RIDE: 0.9, PUSH: 0.1}, 1: {RIDE: 0.2, PUSH: 0.8}}
        found = matched_verbs(detected([(i, moved(PERSON, by), moved(BICYCLE, by), right[i]) for i in right]), truth, 3)
        assert found.average_precision()[:2].tolist() == [1, 1]
        assert np.isnan(found.average_precision()[HOLD])
        assert (found.overlap >= 0.5).all() == (by == 0)
    wrong = [(0, PERSON, BICYCLE, right[1]), (1, PERSON, BICYCLE, right[0])]
    assert matched_verbs(detected(wrong), truth, 3).average_precision()[:2].tolist() == [0.5, 0.5]


def test_each_detected_pair_is_taken_once_and_the_rest_has_no_score():
    truth = split([(0, PERSON, BICYCLE, RIDE), (0, OTHER, BICYCLE, HOLD), (0, PERSON, BICYCLE, HOLD)], 1)
    found = matched_verbs(detected([(0, PERSON, BICYCLE, {RIDE: 0.7, HOLD: 0.6})]), truth, 3)
    assert found.annotated.tolist() == [[True, False, True], [False, False, True]]  # two verbs of a pair are one pair
    assert found.score.tolist() == [[0.7, -1, 0.6], [-1, -1, -1]]
    assert found.overlap.tolist() == [1, 0]


def test_an_image_without_a_detection_has_no_score():
    truth = split([(0, PERSON, BICYCLE, RIDE), (1, PERSON, BICYCLE, RIDE)], 2)
    found = matched_verbs(detected([(1, PERSON, BICYCLE, {RIDE: 0.7})]), truth, 3)
    assert found.score[:, RIDE].tolist() == [-1, 0.7]


def test_the_command_says_what_the_function_finds(tmp_path, capsys):
    world = write_world(tmp_path / "world", train=2, test=6)
    truth = load_hico_det(world, "test")
    score = np.linspace(0.9, 0.5, len(truth.hoi)).astype(np.float32)
    classes = (each.astype(np.int32) for each in (truth.object, truth.verb, truth.hoi))
    found = HoiDetections(truth.pair_image(), truth.human_box, truth.object_box, *classes, score)
    write_detections(tmp_path / "found.parquet", found, truth.image_id)
    call = ["matched-verbs", "--detections", str(tmp_path / "found.parquet"), "--annotations", str(world)]
    app([*call, "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert record["verb_map"] == 100
    assert record["boxes_within_half"] == 100
    app(call, standalone_mode=False)
    assert re.search(r"mean over verbs +100\.0", capsys.readouterr().out)
