"""Every family is loaded whole or not at all, in every layout that the hub has."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint, load
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

TOWERS = {
    "clip": "vision_model.",
    "siglip": "vision_model.",
    "instructblip": "vision_model.",
    "llava": ("model.vision_tower.", "vision_tower."),
    "qwen": ("model.visual.", "visual."),
}
"""How the names of each family's tower begin, in this release's layout or the hub's old one."""
FAMILIES = (*TOWERS, "dinov2", "sentence_encoder")


@pytest.fixture
def copy(families, tmp_path):
    return lambda name: shutil.copytree(families(name), tmp_path / name)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def some_tensor(tensors):
    """The name of a tensor that is tied to no other and is called the same in the model (DINOv2's attention is not)."""
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim and "norm" in name.lower())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_checkpoint_loads_with_every_tensor_in_place(families, name):
    checkpoint = Checkpoint.find(families(name))
    model = load(checkpoint, checkpoint.here(), "float32", "cpu")
    assert type(model).__name__ == checkpoint.architecture
    stored = load_file(families(name) / "model.safetensors")
    total = sum(float(np.abs(tensor.astype(np.float64)).sum()) for tensor in stored.values())
    held = {id(p): float(p.double().abs().sum()) for p in model.parameters()}
    assert sum(held.values()) == pytest.approx(total, rel=1e-6)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
def test_a_partial_checkpoint_is_an_error_that_lists_the_keys(copy, name, kind):
    folder = copy(name)
    chosen = some_tensor(load_file(folder / "model.safetensors"))

    def break_it(tensors):
        if kind == "missing":
            del tensors[chosen]
        elif kind == "unexpected":
            tensors["another.head.weight"] = np.zeros((2, 2), np.float32)
        else:
            tensors[chosen] = tensors[chosen][:-1].copy()

    rewrite(folder, break_it)
    checkpoint = Checkpoint.find(folder)
    named = "another.head.weight" if kind == "unexpected" else chosen.rpartition(".")[0].rpartition(".")[2]
    with pytest.raises(UserError, match=rf"do not fill .*{kind} \(.*{named}"):
        load(checkpoint, checkpoint.here(), "float32", "cpu")


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_known_by_its_own_tensors(copy, families, name):
    folder, known = copy(name), Checkpoint.find(families(name)).tower

    def nudge(inside):
        def change(tensors):
            chosen = next(key for key in sorted(tensors) if key.startswith(TOWERS[name]) == inside)
            tensors[chosen] = np.asarray(tensors[chosen] + np.float32(1))

        return change

    rewrite(folder, nudge(inside=False))
    assert Checkpoint.find(folder).tower == known
    rewrite(folder, nudge(inside=True))
    assert Checkpoint.find(folder).tower != known


def test_a_model_that_is_a_tower_is_taken_whole(copy, families):
    folder, known = copy("dinov2"), Checkpoint.find(families("dinov2"))
    assert Checkpoint.find(folder).tower == known.tower
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert Checkpoint.find(folder).tower != known.tower
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9"}))
    assert Checkpoint.find(folder).tower == known.tower


def test_sharded_weights_are_the_same_tower(families, tmp_path):
    """A shard without tensors of the tower says nothing of it."""
    one, two = families("clip"), tmp_path / "shards"
    shutil.copytree(one, two)
    tensors = load_file(one / "model.safetensors")
    (two / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": [n for n in names if n.startswith("vision_model")]}
    parts["model-00002-of-00002.safetensors"] = [n for n in names if not n.startswith("vision_model")]
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, two / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (two / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, sharded = Checkpoint.find(one), Checkpoint.find(two)
    assert whole.tower == sharded.tower
    assert load(sharded, sharded.here(), "float32", "cpu")


def test_the_hubs_old_layout(families, make_batch, tmp_path):
    """``pytorch_model.bin``, ``preprocessor_config.json``, no safetensors."""
    new, old = families("clip"), tmp_path / "old"
    shutil.copytree(new, old)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(new / "model.safetensors").items()}
    positions = torch.arange(17)[None]
    torch.save({**tensors, "vision_model.embeddings.position_ids": positions}, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    record = json.loads((old / "processor_config.json").read_text())["image_processor"]
    (old / "preprocessor_config.json").write_text(json.dumps(record))
    (old / "processor_config.json").unlink()
    batch = make_batch()
    maps = []
    for folder in (new, old):
        stage = made(VisionFeatures, checkpoint=Checkpoint.find(folder), width="projected")
        stage.open("cpu", {})
        maps.append(stage.compute(batch, ["original"], {})["original"])
        batch = Batch(batch.row_ids, batch.keys, batch.count, batch.images)
    torch.testing.assert_close(maps[0], maps[1])


def test_an_old_sentence_encoder(families, tmp_path):
    """``pytorch_model.bin`` and ``vocab.txt``; the pooler, which nobody reads, may be missing, and a head left over."""
    from tests.fixtures.tiny_families import WORDS

    new, old = families("sentence_encoder"), tmp_path / "old"
    shutil.copytree(new, old)
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (old / name).unlink(missing_ok=True)
    (old / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(new / "model.safetensors").items()}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    kept |= {"cls.predictions.bias": torch.zeros(4), "embeddings.position_ids": torch.arange(24)[None]}
    torch.save(kept, old / "pytorch_model.bin")
    texts = ["a person riding the bicycle", "a dog"]
    vectors = []
    for folder in (new, old):
        stage = made(TextEmbeddings, checkpoint=Checkpoint.find(folder))
        stage.open("cpu", {})
        cells = stage.compute(Batch(np.zeros(2, "V16"), texts, 2, texts=texts), ["value"], {})["value"]
        vectors.append(np.array(cells.to_pylist()))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "qwen"])
def test_remote_code_stays_off(copy, name):
    folder = copy(name)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Surprise"], "auto_map": {"AutoModel": "surprise.Surprise"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "surprise.py").write_text("raise SystemExit('remote code ran')")
    checkpoint = Checkpoint.find(folder)
    with pytest.raises(UserError, match="remote code stays off"):
        load(checkpoint, checkpoint.here(), "float32", "cpu")
