"""A student goes to a hub and comes back the same; what is not the same is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from hoi_distill.pipeline.hub import push_to_hub
from hoi_distill.pipeline.reports.model_card import intervals_of, model_card
from hoi_distill.stages.student.student import read_record
from hoi_distill.storage.errors import UserError
from tests.fixtures.hub import hub
from tests.fixtures.untrained_student import untrained

PUSH = """
from pathlib import Path
from hoi_distill.pipeline.hub import push_to_hub
print(push_to_hub(Path({checkpoint!r}), "people/student", license_name="apache-2.0"))
"""
LOAD = """
from hoi_distill import HOIDetector
from hoi_distill.storage.errors import UserError
try:
    student = HOIDetector.from_pretrained("people/student", device="cpu").student
    print(sum(float(each.double().sum()) for each in student.model.state_dict().values()))
except UserError as error:
    print(error)
"""


@pytest.fixture
def run(tmp_path):
    """A run's folder, as training and evaluation leave it."""
    folder = tmp_path / "run"
    untrained(folder / "checkpoint")
    trained = {
        "dataset": {"kind": "pico", "root": "gone"},
        "pictures": {"labelled": 500, "unlabelled": 3500, "test": 1000},
        "provenance": {"itm": {"record": {"stage": "itm"}, "fingerprint": "0123456789abcdef0"}},
    }
    evaluation = {
        "dataset": "pico world",
        "split": "test",
        "convention": "official",
        "counts": {"pictures": 1000},
        "default": {"full": 80.25, "rare": None, "non_rare": 79.5},
        "known_object": {"full": 81.0, "rare": None, "non_rare": 80.5},
    }
    (folder / "student.json").write_text(json.dumps(trained))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.mark.slow
def test_a_student_comes_back_from_a_hub_and_a_changed_byte_or_a_newer_key_is_refused(run, tmp_path):
    from hoi_distill.stages.student.pretrained import load_student

    (tmp_path / "repositories").mkdir()
    with hub(tmp_path / "repositories") as server:
        address = server.run(PUSH.format(checkpoint=str(run / "checkpoint")), tmp_path / "home")
        assert address.endswith("/people/student/commit/0123456789abcdef0123456789abcdef01234567")
        there = tmp_path / "repositories/people/student"
        assert {path.name for path in there.iterdir()} == {
            "README.md",
            "config.json",
            "model.safetensors",
            "vocabulary.json",
        }
        ours = load_student(run / "checkpoint").model.state_dict().values()
        there_sum = float(server.run(LOAD, tmp_path / "one"))
        assert there_sum == pytest.approx(sum(float(each.double().sum()) for each in ours), abs=1e-9)
        weights = bytearray((there / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (there / "model.safetensors").write_bytes(weights)
        assert "model.safetensors: not as it was saved" in server.run(LOAD, tmp_path / "two")
        record = json.loads((there / "config.json").read_text())
        record["student"]["novelty"] = 1
        (there / "config.json").write_text(json.dumps(record))
        assert "unknown key 'novelty'" in server.run(LOAD, tmp_path / "three")


def test_the_card_says_data_teacher_figures_license_and_limits(run):
    text = model_card(
        run / "checkpoint", read_record(run / "checkpoint"), "people/student", license_name="mit", run=run
    )
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "mit"
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "mAP", "value": 80.25}]
    assert "500 labelled and 3,500 unlabelled training images, 1,000 test images" in body
    assert "| default | 80.25 | 79.50 |" in body
    assert "Without intervals" in body
    assert "read in training: stage `itm`" in body
    assert "It was trained on drawn images" in body
    assert 'from_pretrained("people/student")' in body
    assert str(run) not in text


def test_a_checkpoint_without_a_run_has_a_card_without_figures(tmp_path):
    folder = untrained(tmp_path / "alone")
    text = model_card(folder, read_record(folder), "people/student", license_name="mit", run=tmp_path)
    assert "model-index" not in text
    assert "None: it was uploaded without its run" in text


def test_intervals_are_of_the_run_s_own_means_or_none(run):
    trained = json.loads((run / "student.json").read_text())
    assert intervals_of(run, trained, json.loads((run / "evaluation.json").read_text())) == {}


@pytest.mark.parametrize(
    ("name", "license_name", "damage", "said"),
    [
        ("student", "mit", None, "student: no name of a repository; it is organisation/name"),
        ("a/b/c", "mit", None, "a/b/c: no name of a repository"),
        ("people/student", " ", None, "--license: name the license"),
        ("people/student", "mit", "model.safetensors", "model.safetensors: "),
        ("people/student", "mit", "config.json", "config.json: cannot be read as JSON"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(run, name, license_name, damage, said):
    if damage:
        (run / "checkpoint" / damage).write_bytes(b"damaged")
    with pytest.raises(UserError, match=said) as refusal:
        push_to_hub(run / "checkpoint", name, license_name=license_name)
    assert "\n" not in str(refusal.value)


def test_a_hub_that_cannot_be_reached_is_one_line(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^people/student: not uploaded: .*unset HF_HUB_OFFLINE$") as refusal:
        push_to_hub(run / "checkpoint", "people/student", license_name="mit")
    assert "\n" not in str(refusal.value)
