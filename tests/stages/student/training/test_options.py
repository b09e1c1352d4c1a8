"""Options of every student's training: left alone they change no name of a run, and each of them trains."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from hoi_distill.stages.student.method import Extras, method_named, parameters_of
from hoi_distill.stages.student.methods.pair_classifier.train import train
from tests.fixtures import toy_link

OPTIONS = {"fused_optimizer": True, "tf32": True, "precision": "bf16"}


@pytest.mark.parametrize("method", ["pair_classifier", "link", "cl_hoi", "vlm_hoi"])
def test_an_option_at_its_default_is_no_part_of_a_fingerprint(method):
    config = method_named(method).config()
    named = parameters_of(config)
    assert set(OPTIONS) & set(named) == ({"precision"} if method == "vlm_hoi" else set())
    assert set(OPTIONS) <= set(parameters_of(replace(config, **OPTIONS)))
    assert set(OPTIONS) <= set(asdict(config))


@pytest.fixture
def another_precision():
    """A process has one precision."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("student", ["pair classifier", "LINK"])
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"fused_optimizer": True, "tf32": True}])
def test_a_student_of_pairs_learns_with_other_arithmetic(tmp_path, toy, config, another_precision, options, student):
    changes = {**options, "steps": 30, "log_every": 1}
    if student == "LINK":
        toy_link.trained(toy_link.link_config(**changes), toy.training_set(16), tmp_path)
    else:
        train(replace(config, **changes), toy.training_set(16), tmp_path, Extras(report=lambda line: None))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert torch.get_float32_matmul_precision() == ("high" if "tf32" in options else "highest")
