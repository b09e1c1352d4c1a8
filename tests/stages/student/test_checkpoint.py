"""A student's checkpoint is what was saved, whole, or one line that names the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import RegionCNN, RegionCNNConfig
from hoi_distill.stages.student.methods.pair_classifier.student import PairStudent
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import CHANNELS, VOCABULARY

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n"
CNN = "region_cnn.safetensors"


@pytest.fixture
def folder(tmp_path, config):
    """A pair classifier with an encoder of its own."""
    cnn = RegionCNN(RegionCNNConfig(size=32, channels=(4, 4, 4, CHANNELS))).eval()
    shape = Shape(CHANNELS, 80, None, 3, 16, 0.0, 0.0, 1.0)
    model = PairClassifier(shape, torch.from_numpy(VOCABULARY.hois[:, 0].astype("int64"))).eval()
    config = replace(config, encoder="region_cnn")
    PairStudent(model, VOCABULARY, config, {"detections": {"stage": "x"}}, cnn).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_json(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def nudge(path):
    tensors = load_file(path)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point())
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, metadata(path))


def metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def refused(folder):
    with pytest.raises(UserError) as error:
        load_student(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_what_was_saved_loads(folder):
    assert load_student(folder, VOCABULARY).region_cnn is not None
    record = json.loads((folder / "config.json").read_text())
    assert set(record["checksums"]) == {"config.json", "model.safetensors", "vocabulary.json", CNN}
    assert {path.name for path in folder.iterdir()} == set(record["checksums"])


@pytest.mark.parametrize("name", ["model.safetensors", CNN])
def test_weights_that_changed_after_training_are_refused(folder, name):
    nudge(folder / name)
    assert f"{name}: not as it was saved" in refused(folder)


def test_a_vocabulary_that_was_said_otherwise_is_refused(folder):
    """The same classes, of another name for a verb's participle: predictions would be named otherwise."""
    change_json(folder / "vocabulary.json", lambda record: record["verbs"].update(ride="ridden"))
    assert "vocabulary.json: " in refused(folder)


def test_settings_that_changed_after_training_are_refused_unless_it_is_meant(folder):
    change_json(folder / "config.json", lambda record: record["student"].update(score_threshold=0.3))
    assert "config.json: not as it was saved" in refused(folder)
    change_json(folder / "config.json", lambda record: record.pop("checksums"))
    assert load_student(folder).config.score_threshold == 0.3


def test_a_checkpoint_from_before_there_were_checksums_loads(folder):
    change_json(folder / "config.json", lambda record: record.pop("checksums"))
    assert load_student(folder)


def test_the_vocabulary_of_another_training_is_refused_without_checksums_too(folder):
    change_json(folder / "config.json", lambda record: record.pop("checksums"))
    change_json(folder / "vocabulary.json", lambda record: record["interactions"].pop())
    assert "config.json was trained for" in refused(folder)


DAMAGE = {
    "config cut": lambda f: cut(f / "config.json"),
    "config list": lambda f: (f / "config.json").write_text("[1]"),
    "config empty": lambda f: (f / "config.json").write_text(""),
    "config pointer": lambda f: (f / "config.json").write_text(POINTER),
    "config not text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00{"),
    "config nested": lambda f: (f / "config.json").write_text("[" * 100_000),
    "identities list": lambda f: change_json(
        f / "config.json", lambda r: (r.pop("checksums"), r.update(identities=[1]))
    ),
    "checksums list": lambda f: change_json(f / "config.json", lambda r: r.update(checksums=[1])),
    "vocabulary missing": lambda f: (f / "vocabulary.json").unlink(),
    "vocabulary cut": lambda f: cut(f / "vocabulary.json"),
    "weights missing": lambda f: (f / "model.safetensors").unlink(),
    "weights cut": lambda f: cut(f / "model.safetensors"),
    "weights empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights pointer": lambda f: (f / "model.safetensors").write_text(POINTER),
    "encoder missing": lambda f: (f / CNN).unlink(),
    "encoder cut": lambda f: cut(f / CNN, 0.9),
    "encoder without settings": lambda f: save_file(load_file(f / CNN), f / CNN),
    "another method": lambda f: change_json(f / "config.json", lambda r: r.update(method="link")),
    "no student": lambda f: change_json(f / "config.json", lambda r: r.pop("student")),
    "student list": lambda f: change_json(f / "config.json", lambda r: r.update(student=[1])),
    "shape of words": lambda f: change_json(f / "config.json", lambda r: r["shape"].update(width="wide")),
    "shape below zero": lambda f: change_json(f / "config.json", lambda r: r["shape"].update(width=-1)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_is_not_whole_is_one_line(folder, kind):
    DAMAGE[kind](folder)
    refused(folder)


def test_a_key_of_a_newer_version_is_named(folder):
    change_json(folder / "config.json", lambda record: record["student"].update(novelty=1))
    assert "unknown key 'novelty'" in refused(folder)
    change_json(folder / "config.json", lambda record: (record["student"].pop("novelty"), record.pop("shape")))
    assert "no key 'shape'" in refused(folder)


def test_a_path_that_looks_like_a_hub_id_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^runs/checkpoint: .*no such folder, and the model hub has it not[^\n]*$"):
        load_student("runs/checkpoint")
    (tmp_path / "runs").mkdir()  # below a folder that is here it is a path, and nobody is asked
    with pytest.raises(UserError, match=r"^runs/checkpoint: .*there is no such folder$"):
        load_student("runs/checkpoint")
