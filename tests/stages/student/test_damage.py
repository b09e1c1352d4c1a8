"""Whatever a training keeps may be cut, emptied or scribbled over: the next call makes it anew and ends with the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi.train import train as train_cl_hoi
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import RegionCNNConfig
from hoi_distill.stages.student.methods.pair_classifier.train import train as train_pairs
from hoi_distill.stages.student.methods.vlm_hoi.train import train as train_vlm_hoi
from tests.fixtures.toy_cl_hoi import CONFIG, TEXT, LabelledToy
from tests.fixtures.toy_student import Toy, weights
from tests.fixtures.vlm_hoi_world import World, tiny_config

NOT_OURS = ("events.out", "lock", "pixels")
CNN = RegionCNNConfig(size=64, channels=(8, 8, 8, 8), steps=2, pictures_per_step=4)


def pairs(folder: Path, config, teacher: str) -> None:
    toy = Toy(40, 0)
    train_pairs(replace(config, steps=4, teacher=teacher), toy.training_set(16), folder, Extras(report=quiet))


def own_encoder(folder: Path, config) -> None:
    toy = Toy(24, 0)
    data = toy.training_set(12)
    picture = np.full((64, 64, 3), 90, np.uint8)
    data = replace(data, read=lambda row: picture + np.uint8(row), source=replace(data.source, rows_digest="toy"))
    config = replace(config, steps=2, encoder="region_cnn")
    train_pairs(config, data, folder, Extras(shared_dir=folder / "shared", report=quiet), cnn=CNN)


def cl_hoi(folder: Path) -> None:
    train_cl_hoi(CONFIG, LabelledToy(40, 0).teacher_set(), folder, Extras(folder / "shared", TEXT, report=quiet))


def vlm_hoi(folder: Path) -> None:
    train_vlm_hoi(tiny_config(epochs=1.0), World().training_set(), folder, Extras(report=quiet))


def quiet(line: str) -> None: ...


@pytest.mark.parametrize("student", ["itm", "oracle", "self", "own encoder", "cl_hoi", "vlm_hoi"])
def test_damage_in_what_is_kept_is_made_good(tmp_path, config, student):
    teach: dict[str, Callable[[], None]] = {
        **{name: (lambda name=name: pairs(tmp_path / "run", config, name)) for name in ("itm", "oracle", "self")},
        "own encoder": lambda: own_encoder(tmp_path / "run", config),
        "cl_hoi": lambda: cl_hoi(tmp_path / "run"),
        "vlm_hoi": lambda: vlm_hoi(tmp_path / "run"),
    }
    train = teach[student]
    train()
    whole = weights(tmp_path / "run")
    kept = [path for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()]
    kept = [path for path in kept if {"state", "shared"} & set(path.relative_to(tmp_path).parts)]
    kept = [path for path in kept if not path.name.startswith(NOT_OURS)]
    assert len(kept) > 1
    for number, spoil in enumerate(
        (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0 no \xff" * 99)
    ):
        for path in kept[number::3] if len(kept) > 9 else kept:
            path.write_bytes(spoil(path.read_bytes()))
        shutil.rmtree(tmp_path / "run" / "checkpoint")
        train()
        assert weights(tmp_path / "run") == whole
