"""What the shipped pico detector promises: stock classes load it whole, and it finds objects in images it never saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.data.pico.classes import OBJECTS
from hoi_distill.stages.data.pico.world import TEMPER, scene_seed
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.pico.evaluation import detector as detector_evaluate
from hoi_distill.stages.teacher.pico.training import corpus
from hoi_distill.stages.teacher.pico.training import detector as detector_train
from hoi_distill.stages.teacher.weights import Checkpoint
from tests.fixtures.stages import made


@pytest.fixture(scope="module")
def detector():
    stage = made(Detector, checkpoint=Checkpoint.find(detector_evaluate.SHIPPED), batch_size=50)
    stage.open("cpu", {})
    return stage


def test_the_shipped_detector_finds_people_and_objects_in_a_hundred_test_images(detector):
    images, truths = (list(part) for part in zip(*detector_evaluate.held_out(100), strict=True))
    figures = detector_evaluate.average_precision(detector_evaluate.detect(detector, images), truths, 0.5)
    stated = json.loads((detector_evaluate.SHIPPED / "heldout.json").read_text())
    assert np.mean(list(figures.values())) >= 0.9
    assert figures[0] >= 0.95
    assert stated["pictures"] == 1000
    assert stated["AP50"] >= 0.9
    assert set(stated["classes"]) == {"person", *OBJECTS}


def test_it_is_a_stock_class_of_a_few_megabytes_with_coco_names(detector):
    from transformers import AutoModelForObjectDetection

    model, info = AutoModelForObjectDetection.from_pretrained(detector_evaluate.SHIPPED, output_loading_info=True)
    assert not any(info.values())
    assert type(model).__module__.startswith("transformers.")
    assert (detector_evaluate.SHIPPED / "model.safetensors").stat().st_size < 5 << 20
    assert [COCO_OBJECTS[label] for label in detector.labels.values()] == sorted(
        ["person", *OBJECTS], key=OBJECT_INDEX.__getitem__
    )


def test_it_was_trained_on_scenes_that_no_student_and_no_other_corpus_shows():
    recipe = json.loads((detector_evaluate.SHIPPED / "recipe.json").read_text())
    shown = recipe["batch"] * (recipe["dense_steps"] + recipe["joint_steps"])
    parts = (*corpus.TRAINED, corpus.HELD_OUT)
    first, end = detector_train.FIRST_SEED, detector_train.FIRST_SEED + shown
    assert all(part.first_seed + part.count <= first or end <= part.first_seed for part in parts)
    assert max(scene_seed(99, split, 10**6) for split in TEMPER) < 10**9 <= first


def test_equal_recipes_give_equal_weights(tmp_path):
    """A few steps of both phases."""
    short = ["--dense-steps", "3", "--joint-steps", "2", "--batch", "4"]
    for name in ("one", "two"):
        detector_train.main(["--out", str(tmp_path / name), *short])
    one, two = (Checkpoint.find(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    assert made(Detector, checkpoint=one).labels == dict(enumerate(detector_train.LABELS))


def test_each_box_is_given_its_nearest_cells_of_its_own_scale():
    grid = torch.cat([detector_train._grid(128 // stride, 0.05 * stride / 8) for stride in (8, 16, 32)])
    targets = [
        {"class_labels": torch.tensor([1, 2]), "boxes": torch.tensor([[0.25, 0.25, 0.15, 0.15], [0.7, 0.6, 0.6, 0.6]])},
        {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])},
    ]
    from hoi_distill.stages.ops import boxes as box_ops

    owner, overlap = detector_train.assign(box_ops.cxcywh_to_xyxy(grid).expand(2, -1, -1), targets, grid, 4)
    assert owner.shape == overlap.shape == (2, 16**2 + 8**2 + 4**2)
    assert [int((owner[0] == box).sum()) for box in (0, 1)] == [4, 4]
    assert int((owner[1] == 0).sum()) == 4
    assert (owner[1] <= 0).all()  # a padded row owns nothing
    small, large = (torch.nonzero(owner[0] == box)[:, 0] for box in (0, 1))
    assert (small < 256).all()
    assert (large >= 256).all()
    assert ((grid[small, :2] - 0.25).abs() < 0.1).all()
    assert (overlap[owner < 0] == 0).all()
    assert (overlap[owner >= 0] > 0).any()


def test_average_precision_is_cocos():
    """Worked by hand: two truths; found, a double of it, a miss, then the other one."""
    truth = {"boxes": np.array([[0, 0, 10, 10], [20, 20, 30, 30.0]]), "labels": np.array([3, 3])}
    found = {
        "boxes": np.array([[0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60], [20, 20, 30, 30.0]]),
        "scores": np.array([0.9, 0.8, 0.7, 0.6]),
        "labels": np.array([3, 3, 3, 3]),
    }
    recall_one_half, beyond = 51, 50  # levels 0 to 0.5 at precision 1, the rest at 2 of 4
    expected = (recall_one_half * 1.0 + beyond * 0.5) / 101
    assert detector_evaluate.average_precision([found], [truth], 0.5)[3] == pytest.approx(expected)
    strict = detector_evaluate.average_precision([found], [truth], 0.95)[3]  # 0.9 and 0.8 overlap are too little
    assert strict == pytest.approx(51 * 0.25 / 101)
