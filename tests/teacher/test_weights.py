"""A checkpoint is its contents, and is loaded whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.teacher import weights
from stages.teacher.weights import Checkpoint, load
from storage.digests import DigestMemory
from storage.errors import UserError


@pytest.fixture
def copy(checkpoints, tmp_path):
    return shutil.copytree(checkpoints.itm, tmp_path / "moved")


def change_tensor(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors, name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nudge(tensors, name):
    tensors[name] = tensors[name] + np.float32(0.5)


def load_here(folder):
    checkpoint = Checkpoint.find(folder)
    return load(checkpoint, checkpoint.here(), "float32", "cpu")


def test_another_path_is_the_same_teacher(checkpoints, copy):
    a, b = Checkpoint.find(checkpoints.itm), Checkpoint.find(copy)
    assert (a.digest, a.tower) == (b.digest, b.tower)
    assert a.folder != b.folder


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json", "config.json", "model.safetensors"])
def test_every_file_that_decides_the_answers_is_in_the_digest(checkpoints, copy, name):
    if name.endswith("json"):
        record = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**record, "changed": 1}))
    else:
        change_tensor(copy, "itm_head.bias", nudge)
    assert Checkpoint.find(copy).digest != Checkpoint.find(checkpoints.itm).digest


def test_the_tower_is_known_by_its_own_tensors(checkpoints, copy):
    itm = Checkpoint.find(checkpoints.itm)
    assert Checkpoint.find(checkpoints.caption).tower == itm.tower
    assert Checkpoint.find(checkpoints.other).tower != itm.tower
    change_tensor(copy, "itm_head.bias", nudge)
    assert Checkpoint.find(copy).tower == itm.tower
    change_tensor(copy, "vision_model.post_layernorm.bias", nudge)
    assert Checkpoint.find(copy).tower != itm.tower


def test_a_digest_memory_gives_the_same_digest(checkpoints, tmp_path):
    remembered = Checkpoint.find(checkpoints.itm, digests=DigestMemory(tmp_path / "memory.sqlite").digests)
    assert remembered == Checkpoint.find(checkpoints.itm)


def test_missing_and_unexpected_keys_are_an_error_that_names_them(copy):
    def rename(tensors, name):
        tensors["text_proj.wait"] = tensors.pop(name)

    change_tensor(copy, "text_proj.weight", rename)
    with pytest.raises(UserError, match=r"1 missing \(text_proj.weight\), 1 unexpected \(text_proj.wait\)"):
        load_here(copy)


def test_mismatched_shapes_are_an_error_that_names_them(copy):
    def cut(tensors, name):
        tensors[name] = tensors[name][:-1].copy()

    change_tensor(copy, "text_proj.bias", cut)
    with pytest.raises(UserError, match=r"1 mismatched \(text_proj.bias\)"):
        load_here(copy)


def test_constant_buffers_of_old_checkpoints_are_no_error(copy):
    def add(tensors, name):
        tensors[name] = np.arange(40)[None]

    change_tensor(copy, "text_encoder.embeddings.position_ids", add)
    assert load_here(copy).training is False


def test_weights_changed_since_planning_are_refused(copy):
    checkpoint = Checkpoint.find(copy)
    change_tensor(copy, "itm_head.bias", nudge)
    with pytest.raises(UserError, match="planned with"):
        checkpoint.here()


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere", "someone/nothing-like-this"])
def test_an_absent_checkpoint_is_one_clear_line(source):
    with pytest.raises(UserError, match=r"no such checkpoint|not found") as error:
        Checkpoint.find(source)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_architecture_is_refused_by_name(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["Clippy"]}))
    with pytest.raises(UserError, match="Clippy"):
        load_here(copy)


def test_planning_imports_neither_torch_nor_transformers(checkpoints):
    code = (
        "import sys; from stages.teacher.weights import Checkpoint; "
        "from stages.teacher.blip import BlipCaptions, BlipFeatures, BlipItm; "
        "from stages.teacher.text_embeddings import TextEmbeddings; "
        "from stages.stage import fingerprint_record; "
        f"c = Checkpoint.find({str(checkpoints.itm)!r}); d = Checkpoint.find({str(checkpoints.caption)!r}); "
        "[fingerprint_record(s) for s in (BlipFeatures(c), BlipItm(c, ['a']), BlipCaptions(d), TextEmbeddings(c))]; "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'planning is heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_large_tower_is_not_read_again_by_the_next_process(copy, tmp_path, monkeypatch):
    old = time.time() - 60  # a file written this instant is not trusted to keep its stamp
    for path in copy.iterdir():
        os.utime(path, (old, old))
    memory = DigestMemory(tmp_path / "memory.sqlite")
    first = Checkpoint.find(copy, digests=memory.digests, derived=memory.derived)
    assert first == Checkpoint.find(copy)

    def read(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(weights, "_tensor_digests", read)
    later = DigestMemory(tmp_path / "memory.sqlite")
    assert Checkpoint.find(copy, digests=later.digests, derived=later.derived) == first
    change_tensor(copy, "vision_model.post_layernorm.bias", nudge)
    with pytest.raises(AssertionError, match="read again"):
        Checkpoint.find(copy, digests=later.digests, derived=later.derived)
