"""The report on answers about pairs tells a teacher that knows the pair from one that knows the image, on a small drawn world."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import yaml

from hoi_distill.pipeline.cli.pair_report import pair_report
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import run

IMAGES = 24
ASKED = {"stage": "simulated_pair_answers", "columns": "pair_questions"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowd")
    document = {
        "name": "crowd",
        "cache": str(root / "cache"),
        "dataset": {"kind": "crowd", "root": str(root / "world"), "train": IMAGES, "test": 2},
        "workers": {"executor": "inline"},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "instances": {"stage": "instances"},
            "true": ASKED,
            "image": {**ASKED, "elsewhere": 1.0},
            "noisy": {**ASKED, "flipped": 0.5, "seed": 1},
            "gated": {
                **ASKED, "gates": [{"by": "question", "table": "asked", "least": 0.5}], "audit": 0.5,
            },
            "asked": {"stage": "toy_asked", "columns": "verification_questions"},
        },
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.STAGES, "toy_asked", "tests.fixtures.toy_pairs:NeverYes")
        path = root / "crowd.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        run(prepare(path))
        yield path


@pytest.fixture(scope="module")
def found(config):
    return said(config)


def said(config, **options):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        pair_report(config, as_json=True, **options)
    return json.loads(out.getvalue())


def test_a_teacher_that_knows_the_pair_is_told_from_one_that_knows_the_image(found):
    assert found["true"]["localisation"] == 1.0
    assert found["true"]["verb_area"] == 1.0
    assert found["image"]["localisation"] < 0.5
    assert 0.4 < found["noisy"]["localisation"] < 0.6
    assert found["true"]["comparisons"] == found["image"]["comparisons"] > 20


def test_answers_and_what_no_pair_matches_are_counted(found):
    true = found["true"]
    assert IMAGES / 2 < true["images"] <= IMAGES, "the others have no annotation"
    assert true["positives"] == round(true["yes"] * true["answers"])
    assert true["missed"] == 0.0, "annotated boxes miss nothing but what is cut at 15 a kind"
    assert true["said"] == pytest.approx(1.0, abs=1e-3)
    assert found["noisy"]["error"] > 0.3 > found["noisy"]["calibrated"] + 0.1


def test_what_gates_spare_is_counted_where_it_was_audited(found):
    gated = found["gated"]
    assert gated["spared"] > 0
    assert gated["answers"] < found["true"]["answers"]
    assert gated["spared_yes"] == gated["yes"], "every cell was spared, so all that were asked are audited"
    assert found["true"]["spared"] is None


def test_tables_that_ask_the_same_are_compared(found):
    assert found["agreement"]["true and noisy"]["same_side"] == pytest.approx(0.5, abs=0.1)
    assert found["agreement"]["true and gated"] == {"correlation": 1.0, "same_side": 1.0}


def test_a_sample_is_always_the_same(config):
    few = said(config, sample=5)
    assert few["true"]["images"] == 5
    assert few == said(config, sample=5)


def test_people_are_warned_of_a_teacher_that_does_not_know_the_pair(config, capsys):
    pair_report(config, sample=8)
    said = capsys.readouterr().out
    assert "true: " in said
    assert "localisation AUC" in said
    assert "WARNING: localisation AUC" in said


def test_nothing_to_report_on_is_told(config, tmp_path):
    document = yaml.safe_load(config.read_text())
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text(yaml.safe_dump({**document, "cache": str(tmp_path / "cache")}))
    with pytest.raises(UserError, match=r"no annotated image of the training split has answers; .* --limit 1000"):
        pair_report(fresh)
    document["tables"] = {"detections": document["tables"]["detections"]}
    fresh.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(UserError, match="no table of answers about pairs"):
        pair_report(fresh)
