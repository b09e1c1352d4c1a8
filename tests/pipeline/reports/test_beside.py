"""A report is set beside the run before and the run that is named baseline, where these can be compared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bench.viewer_world import default_plot, write_world
from hoi_distill.pipeline.reports.beside import changed, runs_beside
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det, training_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    return prepare(write_world(tmp_path_factory.mktemp("beside"), default_plot(40)))


@pytest.fixture
def runs(world, tmp_path) -> Path:
    """A folder of three runs, a, b and c, that ended in this order. a and c have the same detections."""
    made = world.config.runs / "viewed"
    for when, (name, source) in enumerate({"a": 0, "b": 1, "c": 0}.items()):
        shutil.copytree(made / f"{source:012x}", tmp_path / name)
        (tmp_path / name / "done.json").write_text("{}")
        os.utime(tmp_path / name / "done.json", (1000 + when, 1000 + when))
    return tmp_path


def beside(world, run_dir: Path):
    test = world.dataset["test"]
    found = read_detections(run_dir / "detections.parquet", test.image_id, world.vocabulary, object_optional=True)
    training = training_pairs(world.dataset["train"])
    return runs_beside(run_dir, test, evaluate_hico_det(test, found, training < 10, training=training))


def test_the_first_run_stands_alone_and_the_last_beside_the_one_before(world, runs):
    assert beside(world, runs / "a") == []
    (before,) = beside(world, runs / "c")
    assert (before.title, before.name, before.address) == ("the run before", "b", "../b/report.html")
    assert before.means["full"] == json.loads((runs / "b" / "evaluation.json").read_text())["default"]["full"]
    assert before.changed == [("seed", "1", "0")]
    ours = json.loads((runs / "c" / "evaluation.json").read_text())["default"]["full"]
    found = before.differences["full"]
    assert found.value == pytest.approx(ours - before.means["full"], abs=1e-4)
    assert found.low < found.value < found.high


def test_a_run_that_is_named_baseline_is_set_beside_every_later_one(world, runs):
    (runs / "baseline").symlink_to("a")
    baseline, before = beside(world, runs / "c")
    assert (baseline.title, baseline.name) == ("the baseline", "a")
    assert baseline.differences["full"].value == 0
    assert not baseline.differences["full"].differs
    assert before.name == "b"
    assert [other.title for other in beside(world, runs / "b")] == ["the baseline"], "which is the run before, too"
    assert beside(world, runs / "a") == []


@pytest.mark.parametrize("damage", ["no file", "no JSON", "another dataset", "old", "a list"])
def test_a_run_that_cannot_be_compared_is_left_out_and_spoils_nothing(world, runs, damage):
    student, evaluation = runs / "b" / "student.json", runs / "b" / "evaluation.json"
    if damage == "no file":
        (runs / "b" / "detections.parquet").unlink()
    elif damage == "no JSON":
        evaluation.write_text("{")
    elif damage == "another dataset":
        student.write_text(json.dumps({**json.loads(student.read_text()), "dataset": {"kind": "hico-det"}}))
    elif damage == "a list":
        student.write_text("[]")
    else:
        evaluation.write_text(json.dumps({"default": {"full": 1.0}}))
    assert beside(world, runs / "c") == []


def test_what_was_trained_otherwise_is_told_key_by_key():
    there = {"method": "link", "student": {"kd": {"logit": 1.0}, "steps": 5}, "pictures": {"labelled": 3}}
    here = {"method": "link", "student": {"kd": {"logit": 0.5}, "steps": 5, "views": ["original"] * 9}}
    read = {"itm": {"fingerprint": "ab" * 16}}
    assert changed(there, {**here, "provenance": read}) == [
        ("kd.logit", "1.0", "0.5"),
        ("pictures.labelled", "3", "not there"),
        ("views", "not there", "['original', 'original', 'original', '…"),
        ("pictures", "not there", "None"),
        ("table itm", "not there", "abababab"),
    ]
    assert changed(there, there) == []
