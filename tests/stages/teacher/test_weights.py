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

from hoi_distill.stages.teacher import weights
from hoi_distill.stages.teacher.blip.stages import BlipFeatures, BlipItm
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import Checkpoint, load
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.stages import made


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
        "import sys; from hoi_distill.stages.teacher.weights import Checkpoint; "
        "from hoi_distill.stages.teacher.blip.stages import BlipCaptions, BlipFeatures, BlipItm; "
        "from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings; "
        "from hoi_distill.stages.stage import fingerprint_record; "
        f"c = Checkpoint.find({str(checkpoints.itm)!r}); d = Checkpoint.find({str(checkpoints.caption)!r}); "
        "from tests.fixtures.stages import made; "
        "stages = (made(BlipFeatures, checkpoint=c), made(BlipItm, checkpoint=c, columns=['a'], token_mode='cls'), "
        "made(BlipCaptions, checkpoint=d), made(TextEmbeddings, checkpoint=c)); "
        "[fingerprint_record(s) for s in stages]; "
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


def add_stray(folder):
    tensors = load_file(folder / "model.safetensors")
    nudge(tensors, "vision_model.post_layernorm.bias")
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def add_other_layout(folder):
    (folder / "pytorch_model.bin").write_bytes(b"of another day")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')


def add_shards(folder):
    """The very tensors of the tower, changed, where the glob of all safetensors would find them."""
    add_stray(folder)
    (folder / "open_clip_model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )


@pytest.mark.parametrize("add", [add_stray, add_other_layout, add_shards])
def test_what_is_not_loaded_is_not_digested(checkpoints, copy, capsys, add):
    add(copy)
    known, found = Checkpoint.find(checkpoints.itm), Checkpoint.find(copy)
    assert (found.digest, found.tower) == (known.digest, known.tower)
    assert found.part("itm_head.") == known.part("itm_head.")
    assert ("several sets of weights" in capsys.readouterr().err) == (add is not add_stray)


def test_what_is_loaded_of_two_layouts_is_what_was_digested(checkpoints, copy):
    """A stray safetensors file no longer hides the weights that are read."""
    import torch

    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(copy / "model.safetensors").items()}
    (copy / "model.safetensors").rename(copy / "open_clip_model.safetensors")
    torch.save(tensors, copy / "pytorch_model.bin")
    before = Checkpoint.find(copy)
    assert load(before, before.here(), "float32", "cpu")
    nudge(tensors, "vision_model.post_layernorm.bias")
    torch.save(tensors, copy / "pytorch_model.bin")
    after = Checkpoint.find(copy)
    assert after.digest != before.digest
    assert after.tower != before.tower


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_told_at_planning(copy, name):
    (copy / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{name}: Git LFS's pointer .*git lfs pull"):
        Checkpoint.find(copy)


@pytest.mark.parametrize(
    "config",
    [
        "[1]",
        '{"architectures": [',
        '{"architectures": {"a": 1}}',
        '{"architectures": "CLIPModel"}',
        '{"transformers_weights": "x"}',
    ],
)
def test_a_configuration_that_says_nothing_is_one_line(copy, config):
    if "transformers_weights" in config:
        config = json.dumps({**json.loads((copy / "config.json").read_text()), **json.loads(config)})
    (copy / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config.json: [^\n]*save_pretrained"):
        Checkpoint.find(copy)


@pytest.mark.parametrize("stage", [BlipFeatures, BlipItm])
def test_images_without_a_record_of_their_preprocessing_are_refused_at_planning(copy, stage):
    (copy / "processor_config.json").unlink()
    checkpoint = Checkpoint.find(copy)
    with pytest.raises(UserError, match="no preprocessor_config"):
        made(stage, checkpoint=checkpoint, columns=["original"])
    assert made(TextEmbeddings, checkpoint=checkpoint)  # looks at no image


@pytest.mark.parametrize("damage", ["tokenizer.json", "tokenizer_config.json", "config.json", "pytorch_model.bin"])
def test_a_file_that_cannot_be_made_sense_of_is_one_line_before_the_first_image(copy, damage):
    checkpoint = Checkpoint.find(copy)
    if damage == "config.json":
        vision = {**checkpoint.config["vision_config"], "hidden_size": "wide"}
        (copy / damage).write_text(json.dumps({**checkpoint.config, "vision_config": vision}))
    elif damage == "pytorch_model.bin":
        (copy / "model.safetensors").unlink()
        (copy / damage).write_bytes(b"\x80\x02no torch file of the old kind")
    else:
        (copy / damage).write_text('{"cut')
    with pytest.raises(UserError, match="cannot be loaded") as error:
        made(BlipItm, checkpoint=Checkpoint.find(copy), columns=["a photo"], token_mode="cls").open("cpu", {})
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("value", ["wide", [16, 16], 0, None, 2.5])
@pytest.mark.parametrize("key", ["patch_size", "hidden_size"])
def test_a_size_that_is_none_is_one_line_at_planning(copy, key, value):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"][key] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config.json: {key} is .*not a whole number above 0"):
        made(BlipFeatures, checkpoint=Checkpoint.find(copy))
