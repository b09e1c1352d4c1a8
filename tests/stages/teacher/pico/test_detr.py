"""What the shipped pico DETR promises: a stock class, trained on scenes of its own, that a small MUREN can start from."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hoi_distill.stages.data.pico.world import TEMPER, scene_seed
from hoi_distill.stages.teacher.pico.training import detector as detector_train
from hoi_distill.stages.teacher.pico.training import detr as detr_train
from hoi_distill.stages.teacher.weights import Checkpoint

SHIPPED = Path(detr_train.__file__).parents[1] / "detr"


def test_it_is_a_stock_class_whose_early_backbone_is_the_pico_detectors():
    from transformers import AutoModelForObjectDetection

    model, info = AutoModelForObjectDetection.from_pretrained(SHIPPED, output_loading_info=True)
    assert not any(info.values())
    assert (SHIPPED / "model.safetensors").stat().st_size < 2 << 20
    detector = AutoModelForObjectDetection.from_pretrained(detr_train.DETECTOR)
    theirs = {detr_train._tail(name): value for name, value in detector.model.backbone.state_dict().items()}
    own = {detr_train._tail(name): value for name, value in model.model.backbone.state_dict().items()}
    kept = [name for name in own if "encoder.stages.2" not in name and "num_batches" not in name]
    assert len(kept) > 20
    assert all(torch.equal(own[name], theirs[name]) for name in kept)
    learned = [name for name in own if "encoder.stages.2" in name and name.endswith("convolution.weight")]
    assert learned
    assert not any(torch.equal(own[name], theirs[name]) for name in learned)


def test_it_was_trained_on_scenes_that_no_student_and_not_the_detector_shows():
    recipe = json.loads((SHIPPED / "recipe.json").read_text())
    detectors = json.loads((detr_train.DETECTOR / "recipe.json").read_text())
    shown = detectors["batch"] * (detectors["dense_steps"] + detectors["joint_steps"])
    assert detector_train.FIRST_SEED + shown <= recipe["first_scene"]
    assert max(scene_seed(99, split, 10**6) for split in TEMPER) < recipe["first_scene"]


def test_equal_recipes_give_equal_weights(tmp_path):
    for name in ("one", "two"):
        detr_train.main(["--out", str(tmp_path / name), "--steps", "3", "--batch", "2"])
    assert Checkpoint.find(tmp_path / "one").digest == Checkpoint.find(tmp_path / "two").digest
