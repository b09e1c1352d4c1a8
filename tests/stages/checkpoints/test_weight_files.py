"""What is digested, loaded and fetched of a model's folder are the same files; what is not whole is one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hoi_distill.stages.checkpoints.weight_files import refuse_cut, weight_files
from hoi_distill.storage.errors import UserError
from tests.fixtures.hub import hub

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n"
TENSORS = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}


def single(folder, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(TENSORS, folder / name)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in TENSORS.items()}, folder / name)
    return folder


def sharded(folder, stem="model", suffix="safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for number, (key, value) in enumerate(TENSORS.items(), 1):
        places[key] = f"{stem}-0000{number}-of-00002.{suffix}"
        if suffix == "safetensors":
            save_file({key: value}, folder / places[key])
        else:
            torch.save({key: torch.from_numpy(value)}, folder / places[key])
    index = {"metadata": {"total_size": 40}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def names(found):
    return [file.name for file in found.files]


def transformers_reads(folder, use_safetensors):
    """The files that ``from_pretrained(folder)`` opens."""
    from transformers.modeling_utils import _get_resolved_checkpoint_files as resolved

    files, _ = resolved(str(folder), None, None, use_safetensors, None, False)
    return sorted(file.rpartition("/")[2] for file in files)


SETS = {
    "one": lambda folder: single(folder),
    "shards": lambda folder: sharded(folder),
    "old": lambda folder: single(folder, "pytorch_model.bin"),
    "old_shards": lambda folder: sharded(folder, "pytorch_model", "bin"),
    "one_and_old": lambda folder: single(single(folder, "pytorch_model.bin")),
    "one_and_shards": lambda folder: sharded(single(folder)),
    "shards_and_old_shards": lambda folder: sharded(sharded(folder), "pytorch_model", "bin"),
    "strays": lambda folder: single(single(single(folder, "model.fp16.safetensors"), "open_clip_model.safetensors")),
    "old_and_stray": lambda folder: single(single(folder, "pytorch_model.bin"), "open_clip_model.safetensors"),
    "shards_and_consolidated": lambda folder: single(sharded(folder), "consolidated.safetensors"),
}


@pytest.mark.parametrize("kind", SETS)
def test_just_the_files_that_transformers_loads_are_named(tmp_path, kind):
    found = weight_files(SETS[kind](tmp_path / kind))
    assert names(found) == transformers_reads(tmp_path / kind, found.safe)
    assert names(found) == transformers_reads(tmp_path / kind, None)


@pytest.mark.parametrize(
    ("kind", "unread"),
    [
        ("one", ()),
        ("strays", ()),
        ("one_and_old", ("pytorch_model.bin",)),
        ("one_and_shards", ("model.safetensors.index.json",)),
        ("shards_and_old_shards", ("pytorch_model.bin.index.json",)),
    ],
)
def test_a_second_set_of_weights_is_named_once(tmp_path, capsys, kind, unread):
    found = weight_files(SETS[kind](tmp_path / kind))
    assert found.unread == unread
    found.tell_unread()
    found.tell_unread()
    told = capsys.readouterr().err
    assert told.count("several sets of weights") == len(unread)
    assert all(name in told for name in unread)


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BROKEN = {
    "none": lambda f: (f / "model.safetensors").unlink(),
    "variant": lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"),
    "pointer": lambda f: (f / "model.safetensors").write_text(POINTER),
    "empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "half": lambda f: cut(f / "model.safetensors"),
    "header": lambda f: cut(f / "model.safetensors", 0.05),
    "longer": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"\0" * 9),
    "web_page": lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html>Not found</html>"),
    "adapter": lambda f: (f / "adapter_config.json").write_text("{}"),
}
BROKEN_SHARDS = {
    "shard_missing": lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
    "shard_pointer": lambda f: (f / "model-00002-of-00002.safetensors").write_text(POINTER),
    "index_cut": lambda f: cut(f / "model.safetensors.index.json"),
    "index_list": lambda f: (f / "model.safetensors.index.json").write_text("[1]"),
    "index_empty": lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
    "index_outside": lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
    "index_numbers": lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'),
    "index_pointer": lambda f: (f / "model.safetensors.index.json").write_text(POINTER),
}


@pytest.mark.parametrize("kind", [*BROKEN, *BROKEN_SHARDS])
def test_weights_that_are_not_whole_are_one_line_that_names_the_file(tmp_path, kind):
    folder = single(tmp_path / "x") if kind in BROKEN else sharded(tmp_path / "x")
    (BROKEN | BROKEN_SHARDS)[kind](folder)
    with pytest.raises(UserError) as error:
        weight_files(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    if kind == "variant":
        assert "model.fp16.safetensors" in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_an_old_weight_file_that_is_cut_is_told(tmp_path, share):
    file = single(tmp_path, "pytorch_model.bin") / "pytorch_model.bin"
    refuse_cut(file)
    cut(file, share)
    with pytest.raises(UserError, match="its end is missing"):
        weight_files(tmp_path)


FIND = (
    "from hoi_distill.stages.checkpoints.weight_files import fetch, weight_files\n"
    "f = weight_files(fetch('org/name', None, ['*.json'])); "
)


@pytest.mark.parametrize("kind", ["old", "old_shards", "shards_and_consolidated"])
def test_a_hub_id_fetches_the_index_and_just_what_it_names(tmp_path, kind):
    repository = SETS[kind](tmp_path / "served/org/name")
    (repository / "config.json").write_text("{}")
    wanted = weight_files(repository)
    code = FIND + "print(*[p.name for p in f.files])"
    with hub(tmp_path / "served") as there:
        assert there.run(code, tmp_path / "home").split() == names(wanted)
        index = [wanted.index.name] if wanted.index else []
        assert sorted(there.asked) == sorted([*names(wanted), *index, "config.json"])
        assert there.run(code, tmp_path / "home", offline=True).split() == names(wanted)


def test_what_an_interrupted_fetch_left_out_is_fetched(tmp_path):
    repository = sharded(tmp_path / "served/org/name")
    with hub(tmp_path / "served") as there:
        there.run(FIND, tmp_path / "home")
        for file in (tmp_path / "home").rglob("model-00002*"):
            file.unlink()
        shutil.rmtree(tmp_path / "home/hub/models--org--name/blobs", ignore_errors=True)
        there.asked.clear()
        code = FIND + "print(*[p.name for p in f.files])"
        assert there.run(code, tmp_path / "home").split() == names(weight_files(repository))
        assert "model-00002-of-00002.safetensors" in there.asked


def test_a_hub_id_that_cannot_be_had_is_one_line(tmp_path):
    (tmp_path / "served/org/bare").mkdir(parents=True)
    (tmp_path / "served/org/bare/config.json").write_text("{}")
    code = (
        "from hoi_distill.stages.checkpoints.weight_files import fetch; from hoi_distill.storage.errors import UserError\n"
        "for name in ('org/nothing', 'org/bare'):\n"
        "    try: fetch(name, None, ['*.json'])\n"
        "    except UserError as error: print(error)"
    )
    with hub(tmp_path / "served") as there:
        nothing, bare = there.run(code, tmp_path / "home").splitlines()
    assert nothing.startswith("org/nothing@main: checkpoint not found")
    assert bare.startswith("org/bare@main: checkpoint not found")
    assert "no weight files" in bare
