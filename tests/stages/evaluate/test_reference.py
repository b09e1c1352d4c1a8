"""The published evaluators' own figures, on 965,800 reference detections of HICO-DET's test images.

``HOI_DISTILL_REFERENCE_DATA`` points to a folder with ``fixtures/hico_det``; without it these tests are skipped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.conventions import convention
from hoi_distill.stages.evaluate.metrics.hico_det import GroundTruth, hico_det

FOLDER = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere")) / "fixtures" / "hico_det"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="HOI_DISTILL_REFERENCE_DATA holds no fixtures/hico_det")
HALF_OPEN = np.float32([0, 0, 1, 1])  # the reference's boxes are inclusive


@pytest.fixture(scope="module")
def reference() -> tuple[HoiDetections, GroundTruth, np.ndarray, np.ndarray]:
    found, truth = np.load(FOLDER / "hicodet_test_dets.npz"), np.load(FOLDER / "hicodet_test_gt.npz")
    image = np.repeat(np.arange(len(found["image_names"])), np.diff(found["hoi_ptr"]))
    boxes = found["box_q4"].astype(np.float32) / 4 + HALF_OPEN
    first, hoi = found["box_ptr"][image], found["hoi_id"].astype(np.int32)
    detections = HoiDetections(
        image.astype(np.int32), boxes[first + found["hoi_sub"]], boxes[first + found["hoi_obj"]],
        truth["hoi_object"][hoi].astype(np.int32), truth["hoi_verb"][hoi].astype(np.int32), hoi,
        (found["score_int"] / 2**20).astype(np.float32),
    )  # fmt: skip
    pairs = truth["gt_boxes"].astype(np.float32).reshape(-1, 2, 4) + HALF_OPEN
    images = len(truth["image_names"])
    shows = np.unpackbits(truth["known_object_image_level"], axis=1)[:, :images].astype(bool).T
    pair_image = np.repeat(np.arange(images), np.diff(truth["gt_ptr"]))
    truths = GroundTruth(pair_image, pairs[:, 0], pairs[:, 1], truth["gt_hoi"].astype(np.int64), shows)
    rare = np.isin(np.arange(600), truth["rare"])
    return detections, truths, truth["hoi_object"].astype(np.int64), rare


OFFICIAL, SKIPPED = (49.598568, 41.235019, 52.096771), (49.665810, 41.306223, 52.162829)
FIRST_UNUSED, POCKET = (49.707355, 41.303988, 52.217452), (49.933674, 41.832651, 52.353460)
PUBLISHED = {
    "official": OFFICIAL,
    "ppdm": OFFICIAL,
    "ppdm-9546": SKIPPED,
    "qpic": SKIPPED,
    "cdn": SKIPPED,
    "cdn-nms": (51.332946, 41.966783, 54.130631),
    "genvlkt": OFFICIAL,
    "genvlkt-nms": (51.258383, 41.890091, 54.056704),
    "ggnet": FIRST_UNUSED,
    "no_frills": FIRST_UNUSED,
    "thid": (49.796406, 41.672934, 52.222897),
    "thid-half-open": (49.900395, 41.796625, 52.321002),
    "pocket": POCKET,
    "upt": POCKET,
    "pvic": POCKET,
}
"""Full, rare, non-rare as the published evaluators give them on these detections."""
SWITCHED = {
    "recall_grid=linspace": (49.865344, 41.760621, 52.286236),
    "recall_grid=exact": (49.900395, 41.796625, 52.321002),
    "recall_grid=all": (49.356713, 40.025139, 52.144066),
    "box_area=plain": (49.496081, 41.111329, 52.000617),
    "assignment=first_unused": FIRST_UNUSED,
    "pictures=with_pairs": SKIPPED,
    "top_per_image=50": (49.480292, 41.198314, 51.954129),
    "truth_shift=1": (49.546150, 41.176207, 52.046262),
}
"""The same for one switch around the official setting."""
KNOWN_OBJECT = {"official": (57.498815, 52.547810, 58.977686), "ggnet": (57.653308, 52.663140, 59.143878)}


def means(ap: np.ndarray, rare: np.ndarray, averaged: np.ndarray | None = None) -> tuple[float, ...]:
    chosen = np.ones(len(ap), bool) if averaged is None else averaged
    return tuple(round(100 * float(ap[part].mean()), 6) for part in (chosen, chosen & rare, chosen & ~rare))


def evaluate(reference, name: str, *switches: str):
    detections, truths, hoi_object, _ = reference
    return hico_det(detections, truths, hoi_object, convention(name, switches))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_evaluators_to_six_decimals(reference, name: str):
    results = evaluate(reference, name)
    assert means(results.default.ap, reference[3]) == PUBLISHED[name]
    if name in KNOWN_OBJECT:
        assert means(results.known_object.ap, reference[3]) == KNOWN_OBJECT[name]


@pytest.mark.parametrize("switch", SWITCHED)
def test_single_switches_to_six_decimals(reference, switch: str):
    assert means(evaluate(reference, "official", switch).default.ap, reference[3]) == SWITCHED[switch]


def test_known_object_sets_of_either_level_on_matlabs_grid(reference):
    for level, expected in (("image_level", 57.768973), ("box_level", 57.771867)):
        results = evaluate(reference, "official-matlab", f"known_object={level}")
        assert means(results.known_object.ap, reference[3])[0] == expected


def test_the_mean_over_520_classes_that_thid_prints(reference):
    rule = convention("thid", ["classes=without_no_interaction"])
    words = hico_vocabulary()
    averaged = rule.averaged([words.verbs[verb] for verb in words.hois[:, 0]])
    assert averaged.sum() == 520
    assert means(evaluate(reference, "thid").default.ap, reference[3], averaged)[0] == 50.250628


def test_what_is_left_out_is_said_and_what_is_matched_is_found(reference):
    results = evaluate(reference, "cdn-nms")
    assert not (results.matched[~results.counted] >= 0).any()
    assert results.default.detections.sum() == results.counted.sum()
    assert results.default.found.sum() == (results.matched >= 0).sum()
    without_pairs = np.bincount(reference[1].image, minlength=9658) == 0
    assert without_pairs.sum() == 112
    assert not results.counted[without_pairs[reference[0].image]].any()


def test_the_reference_takes_less_than_two_seconds(reference):
    start = time.process_time()
    evaluate(reference, "official")
    assert time.process_time() - start < 2
