"""The report on a teacher's image-level labels: hand cases, and a small world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.pipeline.cli.labels import labels
from hoi_distill.pipeline.reports.label_quality import label_metrics
from hoi_distill.stages.derived.image_labels import InteractionLabels
from hoi_distill.stages.evaluate.metrics.average_precision import tie_averaged_precision
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import Album, run

CAPTIONER = Path(__file__).parents[3] / "stages" / "teacher" / "pico" / "caption"
TOLD = ["a photo of", "list the interactions:"]


def judged(kind, target=None, listed=None):
    kind = np.array(kind, np.int8)
    target = np.array(kind == 1 if target is None else target, np.float32)
    listed = np.ones(kind.shape, bool) if listed is None else np.array(listed, bool)
    return InteractionLabels(listed, target, kind, np.ones(kind.shape, np.float32))


def test_figures_by_hand():
    kind = [[1, 0, -1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    truth = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    listed = np.ones((4, 3), bool)
    listed[3, 2] = False
    target = [[0.9, 0, 0.3], [0.8, 0, 0], [0, 0.6, 0], [0, 0.05, 0]]
    found = label_metrics(judged(kind, target, listed), truth, ["ride bicycle", "hold cup", "no_interaction cup"])
    actions = found.pop("actions")
    assert found == {
        "positives": 3,
        "precision": round(2 / 3, 4),
        "recall": 0.4,
        "map": round((1 + 1 + (1 + 2 / 4) / 2) / 3, 4),
        "negatives": round(6 / 7, 4),
        "ignored": round(1 / 11, 4),
        "listed": 2.75,
        "missed": 0.2,
        "weak": {},
    }
    assert (actions["recall"], actions["map"], actions["ignored"]) == (round(2 / 3, 4), 1.0, 0.0)


def test_classes_whose_positives_are_mostly_wrong_are_named():
    truth = np.zeros((6, 2), bool)
    truth[:2] = True
    truth[:3, 1] = True
    found = label_metrics(judged(np.ones((6, 2))), truth, ["ride bicycle", "hold cup"])
    assert found["weak"] == {"ride bicycle": 0.3333}
    assert "actions" not in found
    nothing = label_metrics(judged(np.zeros((6, 2))), np.zeros((6, 2), bool), ["ride bicycle", "hold cup"])
    assert (nothing["precision"], nothing["recall"], nothing["map"]) == (None, None, None)


def test_equal_scores_have_no_order():
    truth = np.array([True, False, False, True])
    assert tie_averaged_precision(np.array([0.5, 0.5, 0.5, 0.5]), truth) == 0.5
    assert tie_averaged_precision(np.array([0.9, 0.1, 0.2, 0.8]), truth) == 1.0
    assert tie_averaged_precision(np.array([0.9, 0.8, 0.2, 0.1]), truth) == pytest.approx((1 + 2 / 4) / 2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve pictures of the pico world with their own boxes and the shipped captioner."""
    root = tmp_path_factory.mktemp("labels")
    album = Album(root)
    album.config["dataset"] = {"kind": "pico", "root": str(root / "world"), "seed": 0, "train": 12, "test": 2}
    teller = {"stage": "blip_captions", "checkpoint": str(CAPTIONER), "max_new_tokens": 30}
    album.config["tables"] = {
        "detections": {"stage": "ground_truth_boxes"},
        "captions": {**teller, "columns": TOLD},
        "verification": {**teller, "columns": "verification_questions", "asked_where": {"table": "detections"}},
        "triplets": {"stage": "triplets", "columns": TOLD},
        "labels": {"stage": "image_labels", "texts": TOLD, "verification": "verification"},
        "text_alone": {"stage": "image_labels", "texts": TOLD[1:]},
    }
    album.write()
    with pytest.raises(UserError, match=r"tables\.labels has empty cells; fill it with: hoi-distill run"):
        labels(album.path)
    run(album.workspace())
    return album


def test_the_pico_teacher_passes_its_gate(world, capsys):
    labels(world.path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"labels", "text_alone"}
    report = found["labels"]
    assert report["pictures"] == 12
    assert report["triplets"] > 12
    after = report["after"]
    assert after["precision"] > 0.8
    assert after["recall"] > 0.8
    assert after["map"] >= report["before"]["map"] > 0.5
    assert after["missed"] == 0, "all objects are boxes here"
    assert found["text_alone"]["after"] is None
    assert found["text_alone"]["before"]["ignored"] == 0


def test_a_sample_is_the_same_every_time(world, capsys):
    said = []
    for _ in range(2):
        labels(world.path, sample=5, as_json=True)
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["labels"]["pictures"] == 5


def test_people_are_told_and_warned(world, capsys, monkeypatch):
    labels(world.path)
    told = capsys.readouterr().out
    assert "verified" in told
    assert "text alone" in told
    assert "dropped phrases" in told
    assert "WARNING" not in told
    monkeypatch.setattr("hoi_distill.pipeline.reports.label_quality.DOUBTFUL", 1.01)
    labels(world.path)
    assert "WARNING: precision" in capsys.readouterr().out


def test_what_was_dropped_is_counted_by_reason(world, capsys):
    labels(world.path, as_json=True)
    before = json.loads(capsys.readouterr().out)["labels"]["dropped"]
    boxes = world.root / "boxes.json"
    toaster = {"image_id": "HICO_train2015_00000001.jpg", "category_id": 80, "bbox": [1, 1, 8, 8], "score": 0.01}
    boxes.write_text(json.dumps([toaster]))
    chosen = {**world.config["tables"], "detections": {"stage": "detections_file", "path": str(boxes), "lenient": True}}
    blind = Album.__new__(Album)
    blind.path, blind.config = world.root / "blind.yaml", {**world.config, "tables": chosen}
    blind.write()
    run(blind.workspace())
    labels(blind.path, as_json=True)
    report = json.loads(capsys.readouterr().out)["labels"]
    assert report["dropped"].get("object or person not detected", 0) > before.get("object or person not detected", 0)
    assert report["after"]["missed"] == 1.0
    assert report["after"]["positives"] == 0


def test_a_setup_without_labels_or_annotations_is_told(album):
    with pytest.raises(UserError, match="no table of stage image_labels"):
        labels(album.path)


def test_labels_that_are_not_there_yet_are_asked_for_with_the_same_overrides(world):
    with pytest.raises(UserError, match=r"has empty cells; fill it with: .* --set tables\.labels\.positive=0\.7"):
        labels(world.path, ["tables.labels.positive=0.7"])
