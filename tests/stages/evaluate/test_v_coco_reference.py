"""The official V-COCO evaluator's own figures, on 28,670 reference persons of the val images.

``HOI_DISTILL_REFERENCE_DATA`` points to a folder with ``fixtures/v_coco`` and ``data/v_coco``; without it skipped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.v_coco.loader import People, load_v_coco_people
from hoi_distill.stages.evaluate.detections import VCocoDetections
from hoi_distill.stages.evaluate.metrics.v_coco import v_coco

ROOT = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere"))
FILE = ROOT / "fixtures" / "v_coco" / "vcoco_val_dets.npz"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="HOI_DISTILL_REFERENCE_DATA holds no fixtures/v_coco")


@pytest.fixture(scope="module")
def people() -> People:
    return load_v_coco_people(ROOT / "data" / "v_coco", "val")


@pytest.fixture(scope="module")
def reference(people) -> VCocoDetections:
    stored = np.load(FILE)
    assert people.image_id.tolist() == stored["image_id"].astype(str).tolist()
    image = np.repeat(np.arange(len(people.image_id)), int(stored["entries_per_image"]))
    inclusive = stored["box_q4"].astype(np.float32) / 4
    box = np.concatenate([inclusive + np.float32([0, 0, 1, 1]), np.zeros((1, 4), np.float32)])
    first = stored["box_ptr"][image]
    role = np.where(stored["role_box"] == 255, -1, first[:, None] + stored["role_box"])
    return VCocoDetections(
        image.astype(np.int32), box[first + stored["person"]], (stored["agent_rank"] / 65536).astype(np.float32),
        box[role], (stored["role_rank"] / 65536).astype(np.float32),
    )  # fmt: skip


def test_the_official_figures_to_six_decimals_in_two_seconds(reference, people):
    start = time.process_time()
    results = v_coco(reference, people)
    seconds = time.process_time() - start
    figures = results.percentages()
    assert round(figures["agent"], 6) == 35.375741
    assert {name: round(value, 6) for name, value in figures["scenario_1"].items()} == {
        "roles_25": 17.316278, "roles_24": 17.952987
    }  # fmt: skip
    assert {name: round(value, 6) for name, value in figures["scenario_2"].items()} == {
        "roles_25": 21.051075, "roles_24": 21.709890
    }  # fmt: skip
    assert seconds < 2
