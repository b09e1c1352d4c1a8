"""Training MUREN: it learns, resumes exactly, is the baseline without distillation, and knows no teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.vlm_hoi.image_set import StepBatches
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import itm_supervision
from hoi_distill.stages.student.methods.vlm_hoi.train import train
from hoi_distill.stages.student.training.metrics import NonFiniteLoss
from hoi_distill.stages.student.training.resume import save_state
from hoi_distill.storage.errors import UserError
from tests.fixtures.processes import of_two_processes
from tests.fixtures.vlm_hoi_world import World, tiny_config, weights

NO_ITM = ItmConfig(weight=0.0)
F7 = ItmConfig(family="F7", weight=0.5, ramp=1.0)


def quiet(line: str) -> None:
    pass


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_loss_falls_and_says_what_it_is_made_of(tmp_path, world):
    config = tiny_config(epochs=10.0, drop_epoch=8.0, f7=F7)
    student = train(config, world.training_set(), tmp_path, Extras(report=quiet))
    log = records(tmp_path)
    losses = [record["loss"] for record in log]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert {"loss/human_l1", "loss/object_giou", "loss/verb", "loss/itm", "loss/f7"} <= log[-1].keys()
    assert 0 < log[-1]["gradient_ratio/itm"] < 10
    assert 0 < log[-1]["gradient_ratio/f7"] < 10
    assert [log[0]["lr"], log[-1]["lr"]] == [1e-3, pytest.approx(1e-4)]
    assert len(log) == 40  # 10 epochs of 16 images, 4 a step
    assert student.origin["found"]
    assert any(name.startswith("decoders.") for name in student.origin["missing"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, world, monkeypatch, ema):
    config = tiny_config(ema=ema, f7=F7, epochs=2.0, model={**tiny_config().model, "dropout": 0.1})
    train(config, world.training_set(), tmp_path / "whole", Extras(report=quiet))

    def save_and_stop(path, model, optimizer, done, run, more):
        save_state(path, model, optimizer, done, run, more=more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hoi_distill.stages.student.training.loop.save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, world.training_set(), tmp_path / "stopped", Extras(report=quiet))
    assert len(records(tmp_path / "stopped")) == 4
    train(config, world.training_set(), tmp_path / "stopped", Extras(report=quiet))
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")
    whole, stopped = (load_file(tmp_path / name / "state/latest.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert any(name.startswith("more.ema.") for name in whole) == bool(ema)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert len(records(tmp_path / "stopped")) == len(records(tmp_path / "whole"))


def test_without_weight_it_is_the_baseline_bit_for_bit(tmp_path, world):
    without = replace(world.training_set(), source=None)  # no table is opened
    train(tiny_config(itm=NO_ITM, epochs=1.5), without, tmp_path / "baseline", Extras(report=quiet))
    for name, itm in {
        "F1": ItmConfig(weight=0.0, alpha=0.1),
        "F0": ItmConfig(family="F0"),  # weighted, but without a gradient
    }.items():
        train(tiny_config(itm=itm, epochs=1.5), world.training_set(), tmp_path / name, Extras(report=quiet))
        assert weights(tmp_path / name) == weights(tmp_path / "baseline"), name
    train(tiny_config(epochs=1.5), world.training_set(), tmp_path / "on", Extras(report=quiet))
    assert weights(tmp_path / "on") != weights(tmp_path / "baseline")


@pytest.mark.parametrize("family", ["F0", "F1", "F1-literal", "F2", "F2n", "F3", "F4", "F7"])
def test_every_family_trains(tmp_path, world, family):
    itm = ItmConfig(family=family, ramp=0.0, layers="all" if family == "F3" else "final")
    train(tiny_config(itm=itm, epochs=0.5), world.training_set(), tmp_path, Extras(report=quiet))
    assert np.isfinite([record["loss"] for record in records(tmp_path)]).all()


def test_another_images_scores_are_another_training(tmp_path, world):
    for teacher in ("itm", "shuffled"):
        config = tiny_config(teacher=teacher, itm=ItmConfig(ramp=0.0), epochs=1.0)
        train(config, world.training_set(), tmp_path / teacher, Extras(report=quiet))
    assert weights(tmp_path / "itm") != weights(tmp_path / "shuffled")


def test_trainings_of_the_same_cells_share_one_file_of_scores(tmp_path, world):
    data = replace(world.training_set(), values={"itm": "cells of today"})
    data = replace(data, source=replace(data.source, rows_digest="images of today"))
    for run in "ab":
        supervision = itm_supervision(tiny_config(), data, tmp_path / run, tmp_path / "shared")
        assert supervision.labelled is not None
    assert len([*(tmp_path / "shared").iterdir()]) == 1
    assert not (tmp_path / "a").exists(), "the run keeps none of its own"


def test_labels_of_unlabelled_images_are_never_read(tmp_path, world):
    other = World()
    other.annotations.hoi[16:] = 0
    other.annotations.verb[16:] = 0
    other.annotations.object_box[16:] = 0
    for name, data in {"true": world, "changed": other}.items():
        train(tiny_config(f7=F7, epochs=1.0), data.training_set(), tmp_path / name, Extras(report=quiet))
    assert weights(tmp_path / "true") == weights(tmp_path / "changed")


def test_a_missing_score_stops_the_training(tmp_path):
    world = World()
    for prompt in world.itm:
        world.itm[prompt][3] = None  # a recorded failure: no row
    with pytest.raises(UserError, match="image 3 has no score"):
        train(tiny_config(), world.training_set(), tmp_path, Extras(report=quiet))


def test_divergence_names_the_images(tmp_path, world):
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*; images rows \[\d+, .*'image \d+'"):
        train(tiny_config(learning_rate=1e30), world.training_set(), tmp_path, Extras(report=quiet))
    assert not (tmp_path / "checkpoint").exists()


def test_loader_workers_do_not_change_a_batch(world):
    config = tiny_config()
    batches = StepBatches(config, world.training_set(), 80, labelled=None, unlabelled=None)
    alone = [batches[step] for step in range(4)]
    with_workers = list(DataLoader(batches, batch_size=None, sampler=range(4), num_workers=2))
    for one, other in zip(alone, with_workers, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.mask, other.mask)
        assert torch.equal(one.rows, other.rows)
        for mine, theirs in zip(one.targets, other.targets, strict=True):
            assert torch.equal(mine.human_boxes, theirs.human_boxes)
            assert torch.equal(mine.verbs, theirs.verbs)


def test_ranks_share_out_a_batch_in_one_frame(world):
    config = tiny_config(labelled_per_step=5)
    untaught = {"labelled": None, "unlabelled": None}
    whole = StepBatches(config, world.training_set(), 80, **untaught)[2]
    parts = [StepBatches(config, world.training_set(), 80, **untaught, rank=rank, world=2)[2] for rank in range(2)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.rows, whole.rows[rank::2])
        assert torch.equal(part.pixels, whole.pixels[rank::2])


MANY = """
import sys
from pathlib import Path
from tests.stages.student.methods.vlm_hoi.test_training import several
several(Path(sys.argv[1]), float(sys.argv[2]))
"""


def several(folder: Path, epochs: float) -> None:
    """What every process runs. Odd numbers of images: the processes' shares differ."""
    rates = {"learning_rate": 1e-4, "backbone_learning_rate": 1e-5}  # the published ones; higher ones amplify rounding
    config = tiny_config(epochs=epochs, drop_epoch=9.0, f7=F7, labelled_per_step=5, unlabelled_per_step=3, **rates)
    train(config, World().training_set(), folder, Extras(report=quiet))


@pytest.mark.parametrize(
    "epochs", [pytest.param(1.5, marks=pytest.mark.timeout(120)), pytest.param(16.0, marks=pytest.mark.slow)]
)
def test_two_processes_learn_what_one_does_and_import_no_teacher(tmp_path, epochs):
    several(tmp_path / "one", epochs)
    of_two_processes(MANY, str(tmp_path / "two"), str(epochs))
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == len(two) == int(np.ceil(epochs * 16 / 5))
    for term in ("loss", "loss/verb", "loss/itm", "loss/f7"):
        assert [r[term] for r in two] == pytest.approx([r[term] for r in one], rel=1e-4), term


@pytest.fixture
def another_precision():
    """A process has one precision."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_half_precision_trains(tmp_path, world, another_precision):
    train(tiny_config(precision="bf16", epochs=2.0), world.training_set(), tmp_path, Extras(report=quiet))
    log = records(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    assert np.isfinite([record["loss"] for record in log]).all()
