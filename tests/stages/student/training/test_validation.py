"""Held-out images choose the student that is kept, and end a training that gets no better; a killed run ends alike."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.method import ClHoiMethod
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.method import PairClassifierMethod
from hoi_distill.stages.student.methods.pair_classifier.train import train
from hoi_distill.stages.student.student import HeldOut
from tests.fixtures.toy_student import Toy, weights

CONFIG = PairClassifierConfig(
    steps=12, labelled_per_step=4, unlabelled_per_step=4, width=16, log_every=2, save_every=3, warmup_steps=2
)


class Judge:
    """Scores that were fixed before, and the weights that they were given for."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), []

    def __call__(self, student, folder: Path, device: str) -> float:
        assert folder.is_dir()
        self.seen.append({name: value.clone() for name, value in student.model.state_dict().items()})
        return self.scores[len(self.seen) - 1]


def trained(folder: Path, judge: Judge, patience: int = 0, every: int | None = 2, stop=None) -> list[str]:
    lines: list[str] = []
    extras = Extras(report=lines.append, held_out=HeldOut(5, judge, every, patience), stop=stop)
    train(CONFIG, Toy(20, 0).training_set(8), folder, extras)
    return lines


def kept(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_the_best_student_is_kept_and_said(tmp_path):
    judge = Judge(10, 40, 30, 40, 20, 35)
    lines = trained(tmp_path, judge)
    assert all(torch.equal(value, judge.seen[1][name]) for name, value in kept(tmp_path).items())
    assert "kept the student of step 4 of 12: mAP 40.00 on 5 held-out images" in lines
    record = json.loads((tmp_path / "validation.json").read_text())
    assert (record["kept_step"], record["map"], record["last_step"], record["images"]) == (4, 40, 12, 5)
    assert [check["map"] for check in record["checks"]] == [10, 40, 30, 40, 20, 35]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation/mAP"] for line in logged] == [10, 40, 30, 40, 20, 35]


def test_training_ends_once_it_gets_no_better(tmp_path):
    judge = Judge(10, 40, 30, 20)
    lines = trained(tmp_path, judge, patience=2)
    assert len(judge.seen) == 4  # of the 6 that 12 steps would have
    assert "kept the student of step 4 of 12, which ended after step 8: mAP 40.00 on 5 held-out images" in lines
    again = Judge()
    trained(tmp_path, again, patience=2)  # its state says that it has ended
    assert again.seen == []
    assert all(torch.equal(value, judge.seen[1][name]) for name, value in kept(tmp_path).items())


def test_a_stopped_training_goes_on_to_the_same_student(tmp_path):
    whole = Judge(10, 40, 30, 45, 20, 35)
    trained(tmp_path / "whole", whole)
    stop = threading.Event()

    class Stopping(Judge):
        def __call__(self, student, folder, device):
            value = super().__call__(student, folder, device)
            if len(self.seen) == 3:
                stop.set()
            return value

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", Stopping(10, 40, 30), stop=stop)
    rest = Judge(45, 20, 35)
    trained(tmp_path / "parts", rest)
    assert len(rest.seen) == 3
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_looking_at_held_out_images_moves_no_weight(tmp_path):
    judge = Judge(1, 2, 3, 4, 5, 6)
    trained(tmp_path / "judged", judge)
    train(CONFIG, Toy(20, 0).training_set(8), tmp_path / "alone", Extras(report=lambda line: None))
    assert weights(tmp_path / "judged") == weights(tmp_path / "alone")  # the last was the best


def test_a_training_is_judged_twenty_times_where_nothing_is_said(tmp_path):
    judge = Judge(*range(12))
    trained(tmp_path, judge, every=None)  # more often than that is every step
    assert len(judge.seen) == 12


def test_epochs_become_steps_of_the_images_that_there_are():
    method = PairClassifierMethod()
    config = PairClassifierConfig(epochs=3, labelled_per_step=16)
    assert method.sized(config, 100, 0).steps == 19  # 3 x 100 / 16 = 18.75
    assert method.sized(config, 100, 0) == PairClassifierConfig(steps=19)  # and so is its fingerprint
    assert method.epochs(method.sized(config, 100, 0), 100, 0) == pytest.approx(3.04)
    assert method.sized(CONFIG, 100, 0) is CONFIG
    with pytest.raises(ValueError, match="epochs: 3, and steps is 12; give one of the two"):
        PairClassifierConfig(epochs=3, steps=12)
    assert ClHoiMethod().sized(ClHoiConfig(epochs=3, unlabelled_per_step=10), 0, 100).steps == 30
