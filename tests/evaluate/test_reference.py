"""The official evaluator's own figures, on 965,800 reference detections of HICO-DET's test pictures.

``HOI_DISTILL_REFERENCE_DATA`` points to a folder with ``fixtures/hico_det``; without it these tests are skipped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from stages.evaluate.detections import Detections
from stages.evaluate.hico_det import Truths, hico_det

FOLDER = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere")) / "fixtures" / "hico_det"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="HOI_DISTILL_REFERENCE_DATA holds no fixtures/hico_det")
HALF_OPEN = np.float32([0, 0, 1, 1])  # the reference's boxes are inclusive


@pytest.fixture(scope="module")
def reference() -> tuple[Detections, Truths, np.ndarray, np.ndarray]:
    found, truth = np.load(FOLDER / "hicodet_test_dets.npz"), np.load(FOLDER / "hicodet_test_gt.npz")
    image = np.repeat(np.arange(len(found["image_names"])), np.diff(found["hoi_ptr"]))
    boxes = found["box_q4"].astype(np.float32) / 4 + HALF_OPEN
    first, hoi = found["box_ptr"][image], found["hoi_id"].astype(np.int32)
    detections = Detections(
        image.astype(np.int32), boxes[first + found["hoi_sub"]], boxes[first + found["hoi_obj"]],
        truth["hoi_object"][hoi].astype(np.int32), truth["hoi_verb"][hoi].astype(np.int32), hoi,
        (found["score_int"] / 2**20).astype(np.float32),
    )  # fmt: skip
    pairs = truth["gt_boxes"].astype(np.float32).reshape(-1, 2, 4) + HALF_OPEN
    images = len(truth["image_names"])
    shows = np.unpackbits(truth["known_object_image_level"], axis=1)[:, :images].astype(bool).T
    pair_image = np.repeat(np.arange(images), np.diff(truth["gt_ptr"]))
    truths = Truths(pair_image, pairs[:, 0], pairs[:, 1], truth["gt_hoi"].astype(np.int64), shows)
    rare = np.isin(np.arange(600), truth["rare"])
    return detections, truths, truth["hoi_object"].astype(np.int64), rare


def test_the_official_figures_to_six_decimals_in_three_seconds(reference):
    detections, truths, hoi_object, rare = reference
    start = time.process_time()
    results = hico_det(detections, truths, hoi_object)
    seconds = time.process_time() - start
    figures = [
        [round(100 * float(part.mean()), 6) for part in (setting.ap, setting.ap[rare], setting.ap[~rare])]
        for setting in (results.default, results.known_object)
    ]
    assert figures == [[49.598568, 41.235019, 52.096771], [57.498815, 52.547810, 58.977686]]
    assert seconds < 3
