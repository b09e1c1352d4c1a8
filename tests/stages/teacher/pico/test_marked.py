"""What the pico teacher that is asked about pairs promises: how it is taught, that it keeps the captioner's tower, and that it
tells pairs apart."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import SIZE, render_scene
from hoi_distill.stages.data.pico.world import TEMPER, scene_seed
from hoi_distill.stages.ops.boxes import iou_matrix
from hoi_distill.stages.teacher.pico.evaluation.marked import SHIPPED, evaluate
from hoi_distill.stages.teacher.pico.training import marked as train
from hoi_distill.stages.teacher.weights import Checkpoint


def test_it_keeps_the_captioners_tower_so_that_both_look_at_an_image_once():
    marked, caption = Checkpoint.find(SHIPPED), Checkpoint.find(train.START)
    assert (marked.tower, marked.preprocessing) == (caption.tower, caption.preprocessing)
    assert marked.digest != caption.digest
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 11e6


def test_it_was_trained_on_scenes_that_no_student_shows():
    assert max(scene_seed(99, split, 10**6) for split in TEMPER) < train.FIRST_SEED


def test_it_tells_which_pair_of_a_new_scene_it_is():
    """0.5 for whatever is said of the whole image."""
    found = evaluate(SHIPPED, 25)
    assert found["comparisons"] > 100
    assert found["localisation"] > 0.9


def test_half_of_the_questions_ask_a_true_verb_of_another_pair():
    questions, kinds = train.Questions(np.random.default_rng(0)), Counter()
    for seed in range(40):
        scene = render_scene(seed, people=(2, 3))
        _, labels = questions.boxes(scene)
        true = {
            (human, object_, HOIS.index((verb, train.COCO_OBJECTS[scene.objects[object_]])))
            for human, object_, verbs in scene.pairs
            for verb in verbs
            if verb != "no_interaction"
        }
        asked = questions.chosen(scene, labels, 12)
        for each in asked:
            assert each.yes == ((each.human, each.object_, each.hoi) in true)
            assert labels[each.human] == 0
            assert train.COCO_OBJECTS[labels[each.object_]] == HOIS[each.hoi][1]
        if true:
            kinds["asked"] += len(asked)
            kinds["yes"] += sum(each.yes for each in asked)
            kinds["elsewhere"] += sum(not each.yes and each.hoi in {hoi for *_, hoi in true} for each in asked)
    assert kinds["yes"] / kinds["asked"] == pytest.approx(0.25)
    assert 0.5 <= kinds["elsewhere"] / kinds["asked"] < 0.6


def test_boxes_move_by_little_and_an_added_one_holds_nothing():
    questions = train.Questions(np.random.default_rng(0))
    for seed in range(30):
        scene = render_scene(seed)
        boxes, labels = questions.boxes(scene)
        known = len(scene.boxes)
        side = np.tile(scene.boxes[:, 2:] - scene.boxes[:, :2], 2)
        assert (np.abs(boxes[:known] - scene.boxes) <= 2 * train.JITTER * side + 1e-4).all()
        assert boxes.min() >= 0
        assert boxes.max() <= SIZE
        for box, label in zip(boxes[known:], labels[known:], strict=True):
            assert iou_matrix(box[None], scene.boxes[scene.objects == label]).max() < train.APART


def test_equal_recipes_give_equal_weights_and_the_tower_stays(tmp_path):
    for name in ("one", "two"):
        short = ["--stop", "2", "--batch", "2", "--questions", "4"]
        train.main(["--out", str(tmp_path / name), *short])
    one, two = (Checkpoint.find(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    assert one.tower == Checkpoint.find(train.START).tower
    assert json.loads((tmp_path / "one/recipe.json").read_text())["stop"] == 2


def test_without_marks_it_is_a_captioner_whom_no_box_reaches(tmp_path):
    train.main(["--out", str(tmp_path), "--stop", "1", "--batch", "2", "--questions", "4", "--without-marks"])
    assert Checkpoint.find(tmp_path).architecture == "PicoBlipForConditionalGeneration"
