"""Options of every student's training: left alone they change no name of a run, and each of them trains."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hoi_distill.stages.student.method import Extras, method_named, parameters_of
from hoi_distill.stages.student.methods.pair_classifier.train import train
from hoi_distill.stages.student.pretrained import load_student
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
    """The precision of products of matrices is the process's."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("student", ["pair classifier", "LINK"])
@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"fused_optimizer": True, "tf32": True}])
def test_a_student_of_pairs_learns_with_other_arithmetic(tmp_path, toy, config, another_precision, options, student):
    changes = {**options, "steps": 30, "log_every": 1}
    seen = []
    torch.set_float32_matmul_precision("medium")

    def note(line: str) -> None:
        seen.append(torch.get_float32_matmul_precision())

    if student == "LINK":
        toy_link.trained(toy_link.link_config(**changes), toy.training_set(16), tmp_path, note)
    else:
        train(replace(config, **changes), toy.training_set(16), tmp_path, Extras(report=note))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert ("high" if "tf32" in options else "highest") in seen
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_student_answers_as_when_it_is_loaded_whatever_it_was_trained_in(tmp_path, toy, config, another_precision):
    """One process trains in bfloat16, then in float32; answers are in float32."""
    for precision in ("bf16", "no"):
        changes = {"precision": precision, "steps": 2}
        student = train(replace(config, **changes), toy.training_set(16), tmp_path / precision, Extras(report=print))
        assert not hasattr(student.model, "_original_forward")
        loaded = load_student(tmp_path / precision / "checkpoint")
        files = [
            each.predict(toy.test_set(), tmp_path / f"{precision}-{name}", report=lambda line: None, device="cpu")
            for name, each in {"trained": student, "loaded": loaded}.items()
        ]
        first, second = (pq.read_table(file) for file in files)
        assert first.equals(second)
