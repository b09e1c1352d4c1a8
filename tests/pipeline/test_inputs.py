"""What a setup's dataset is called, and that its name is of no consequence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.pipeline.config.schema import CrowdDataset, PicoDataset
from hoi_distill.pipeline.inputs import _source, load_dataset
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.storage.digests import as_rows, digest_bytes

NOTHING, BOXES = np.zeros(0, np.int16), np.zeros((0, 4), np.float32)
SIDE = np.full(4, 640, np.int32)
EMPTY = Annotations(
    "drawn",
    "train",
    None,
    np.array(["a"]),
    ["a"],
    SIDE,
    SIDE,
    np.zeros(5, np.int64),
    BOXES,
    BOXES,
    NOTHING,
    NOTHING,
    NOTHING,
)


@pytest.mark.parametrize(
    ("section", "kind", "name"), [(PicoDataset, "pico", "pico world"), (CrowdDataset, "crowd", "crowd")]
)
def test_a_drawn_world_goes_by_its_name_and_not_by_its_layouts(tmp_path: Path, section, kind, name):
    root = tmp_path / "world"
    read = load_dataset(section(kind=kind, root=root, seed=0, train=3, test=2))
    assert [part.name for part in read.values()] == [name] * 2
    # Fingerprints of trainings are made of these digests: the name is not in them.
    np.testing.assert_array_equal(read["test"].digests(), load_hico_det(root, "test").digests())


def test_rows_are_in_order_of_first_appearance_and_images_of_one_name_share_one():
    names = {"train": "bcab", "test": "daec"}
    dataset = {
        split: replace(
            EMPTY,
            split=split,
            image_id=np.array([f"{split} {i}" for i in range(4)]),
            path=[f"{split}/{i}" for i in range(4)],
        )
        for split in names
    }
    digests = as_rows([digest_bytes(name.encode()) for name in "".join(names.values())])
    source = _source(dataset, digests)
    assert source.ids.tolist() == digests[[0, 1, 2, 4, 6]].tolist()
    assert source.uris == ["train/0", "train/1", "train/2", "test/0", "test/2"]
    assert source.keys == ["train 0", "train 1", "train 2", "test 0", "test 2"]
    assert source.rows(["train"]).tolist() == [0, 1, 2]
    assert source.rows(["test"]).tolist() == [3, 2, 4, 1]
    assert source.rows(["test", "train", "none"]).tolist() == [3, 2, 4, 1, 0]
    distinct = _source(dataset, np.arange(16, dtype=np.uint64).view("V16"))
    assert distinct.keys == [*dataset["train"].image_id, *dataset["test"].image_id]
    assert distinct.rows(["test"]).tolist() == [4, 5, 6, 7]
