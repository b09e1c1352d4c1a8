"""The shipped teacher with marks fills its table from a configuration and tells pairs apart; the captioner that it was made from
gives all pairs of an object the same answer."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import yaml

from hoi_distill.pipeline.cli.pair_report import pair_report
from hoi_distill.pipeline.workspace import prepare
from tests.fixtures.toy_stages import run

PICO = Path(__file__).parents[2] / "stages/teacher/pico"


def test_marks_tell_pairs_apart_that_the_image_does_not(tmp_path):
    asked = {"stage": "blip_pair_answers", "columns": "pair_questions"}
    document = {
        "name": "pico",
        "cache": str(tmp_path / "cache"),
        "dataset": {"kind": "pico", "root": str(tmp_path / "world"), "train": 40, "test": 2},
        "workers": {"executor": "inline"},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "instances": {"stage": "instances"},
            "marked": {**asked, "checkpoint": str(PICO / "marked")},
            "image": {**asked, "checkpoint": str(PICO / "caption")},
        },
    }
    path = tmp_path / "pico.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    run(prepare(path))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        pair_report(path, as_json=True)
    found = json.loads(out.getvalue())
    assert found["marked"]["comparisons"] == found["image"]["comparisons"] > 20
    assert found["marked"]["localisation"] > 0.8
    assert found["image"]["localisation"] == 0.5
