"""V-COCO and SWiG-HOI behind the command: the page is drawn from the rankings of the evaluators."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.swig_hoi import swig_evaluated
from hoi_distill.stages.evaluate.formats.v_coco_json import read_v_coco_json
from hoi_distill.stages.evaluate.metrics.average_precision import interpolated_precision
from hoi_distill.stages.evaluate.pages.evaluation_page import write_evaluation
from hoi_distill.stages.evaluate.protocols.evaluate_files import evaluate_files
from hoi_distill.stages.evaluate.protocols.swig_hoi import evaluate_triplets
from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest
from hoi_distill.stages.evaluate.protocols.v_coco import evaluate_persons
from tests.fixtures.small_swig_hoi import small
from tests.fixtures.small_v_coco import small_v_coco

ROOT = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere"))


@pytest.mark.parametrize("tied", [False, True])
def test_v_coco_rankings_give_the_evaluators_figures(tied: bool, tmp_path: Path):
    people, entries = small_v_coco(tied)
    (tmp_path / "found.json").write_text(json.dumps(entries))
    result = evaluate_persons(read_v_coco_json(tmp_path / "found.json", people.image_id), people, "val")
    for key, column in (("scenario_1", "ap"), ("scenario_2", "ap_scenario_2")):
        ranked = result.settings[key].ranking
        ours = 100 * interpolated_precision(ranked.klass, ranked.is_tp, ranked.positives, None)
        theirs = [np.nan if row[column] is None else row[column] for row in result.per_class]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert set(result.record["scenario_1"]) == {"roles_25", "roles_24"}
    (*_, page), _ = write_evaluation(result, tmp_path / "out", "found.json", resamples=20)
    assert "26 actions" in page.read_text()
    assert "scenario_2" in json.loads((tmp_path / "out" / "evaluation.json").read_text())["intervals"]


def test_swig_rankings_give_the_evaluators_figures(tmp_path: Path):
    result = evaluate_triplets(*small(True))
    ranked = result.settings["full"].ranking
    ours = interpolated_precision(ranked.klass, ranked.is_tp, ranked.positives, result.grid)[swig_evaluated()]
    np.testing.assert_allclose(100 * np.nan_to_num(ours), [row["ap"] for row in result.per_class], atol=1e-6)
    assert {"full", "non_rare", "rare", "unseen"} < set(result.record)
    (*_, page), _ = write_evaluation(result, tmp_path, "found.parquet", resamples=20)
    assert "The 1,500 with most annotated pairs of 5,539" in page.read_text()
    bounds = json.loads((tmp_path / "evaluation.json").read_text())["intervals"]["full"]["full"]
    assert bounds["low"] <= result.record["full"] <= bounds["high"]
    with_class = sum(
        row["all"] for row in json.loads((tmp_path / "evaluation.json").read_text())["errors"]["detections"]
    )
    assert with_class == int(result.counted.sum())


@pytest.mark.skipif(
    not (ROOT / "data" / "hico_det").is_dir(), reason="HOI_DISTILL_REFERENCE_DATA holds no data/hico_det"
)
def test_the_published_annotations_alone_say_what_is_rare_and_what_they_cannot_say(tmp_path: Path):
    from hoi_distill.stages.data.open_dataset import open_annotations
    from hoi_distill.stages.evaluate.detections import HoiDetections
    from hoi_distill.stages.evaluate.formats.parquet import write_detections

    file = tmp_path / "instances_test2015.json"  # away from the image-level labels beside it
    file.symlink_to(ROOT / "data" / "hico_det" / file.name)
    test = open_annotations("hico-det", file, None, images=False)
    perfect = HoiDetections(
        test.pair_image().astype(np.int32), test.human_box, test.object_box, test.object.astype(np.int32),
        test.verb.astype(np.int32), test.hoi.astype(np.int32), np.ones(len(test.hoi), np.float32),
    )  # fmt: skip
    write_detections(tmp_path / "perfect.parquet", perfect, test.image_id)
    result = evaluate_files(
        EvaluationRequest(
            dataset="hico-det", annotations=file, detections=tmp_path / "perfect.parquet", zero_shot="rf-uc"
        )
    )
    assert result.record["counts"]["rare_classes"] == 138
    assert result.record["known_object_from"] == "annotated pairs"
    assert any("--image-labels" in note for note in result.notes)
    assert result.record["zero_shot"]["split"] == "RF-UC"
    assert result.record["default"]["full"] > 99.9, "but for exact duplicates among the annotated pairs"
