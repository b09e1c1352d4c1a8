"""What a setup's dataset is called, and that its name is of no consequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hoi_distill.pipeline.config.schema import PicoDataset
from hoi_distill.pipeline.inputs import load_dataset
from hoi_distill.stages.data.hico_det.loader import load_hico_det


def test_the_pico_world_goes_by_its_name_and_not_by_its_layouts(tmp_path: Path):
    root = tmp_path / "world"
    read = load_dataset(PicoDataset(kind="pico", root=root, seed=0, train=3, test=2))
    assert [part.name for part in read.values()] == ["pico world"] * 2
    # Fingerprints of trainings are made of these digests: the name is not in them.
    np.testing.assert_array_equal(read["test"].digests(), load_hico_det(root, "test").digests())
