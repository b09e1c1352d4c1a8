"""A vocabulary's own detector: what new names cost, and SWiG-HOI's shipped configuration from images to predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hoi_distill import HOIDetector
from hoi_distill.pipeline.reports.model_card import _source
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.swig_hoi import swig_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.teacher.detectors.finders import Owlv2Finder
from hoi_distill.stages.teacher.detectors.open_vocabulary import OpenVocabularyBoxes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.swig_files import write as write_swig
from tests.fixtures.tiny_families import clip
from tests.fixtures.tiny_open_vocabulary import owlv2
from tests.fixtures.toy_stages import run

ROOT = Path(__file__).parents[2]
OBJECTS = ("person", "kite", "hang_glider")
MORE = ["cup", "dog", "red bicycle", "boat", "big dog", "photo", "list", "bird", "tree", "hat"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> str:
    return str(owlv2(tmp_path_factory.mktemp("owlv2")))


@pytest.fixture
def setup(tmp_path, detector):
    """A folder of three images, a vocabulary of its own, and an open-vocabulary detector's two tables."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(tmp_path / f"{number}.png")
    Vocabulary.from_actions([(name, "fly", "flying") for name in OBJECTS[1:]], "test", objects=OBJECTS).save(
        tmp_path / "words.json"
    )
    config = {
        "name": "own", "cache": str(tmp_path / "cache"), "runs": str(tmp_path / "runs"),
        "dataset": {"kind": "folder", "root": str(tmp_path), "vocabulary": str(tmp_path / "words.json")},
        "workers": {"executor": "inline", "count": 1},
        "tables": {
            "object_boxes": {
                "stage": "open_vocabulary_boxes", "checkpoint": detector, "columns": "object_names", "batch_size": 2,
            },
            "detections": {"stage": "open_vocabulary_detections"},
        },
    }  # fmt: skip

    def make(**changes: Any):
        document = json.loads(json.dumps(config))
        document["tables"]["object_boxes"] |= changes
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
        return prepare(tmp_path / "own.yaml")

    return make


def test_ten_more_names_compute_ten_more_columns_and_nothing_else(setup, monkeypatch):
    assert run(setup()).cells == {"object_boxes": 9, "detections": 3}
    before = setup()
    ids = before.sources["images"].ids
    (table,) = [each for each in before.cache.tables() if each.name == "object_boxes"]
    had = table.read(CellSelection(ids, ("kite",)))["kite"].to_pylist()
    looked, asked = [], []
    look, find = Owlv2Finder.look, Owlv2Finder.find
    monkeypatch.setattr(
        Owlv2Finder, "look", lambda self, pixels: looked.append(len(pixels["pixel_values"])) or look(self, pixels)
    )
    monkeypatch.setattr(
        Owlv2Finder, "find", lambda self, seen, names: asked.append(len(names)) or find(self, seen, names)
    )
    assert run(setup(columns=["object_names", *MORE])).cells == {"object_boxes": 10 * 3}
    assert set(asked) == {10}
    assert sum(looked) == 4  # three images in batches of two, the last one padded
    assert table.read(CellSelection(ids, ("kite",)))["kite"].to_pylist() == had
    assert run(setup(columns=["object_names", *MORE])).cells == {}


def test_planning_refuses_detections_of_a_name_that_nobody_asks_for(setup):
    with pytest.raises(UserError, match=r"'hang glider' of object_boxes; add it to tables\.object_boxes\.columns"):
        setup(columns=["person", "kite"])


def write_world(root: Path) -> None:
    """Two images to train on and two to test on, of an interaction each."""
    words = swig_vocabulary()
    (root / "images_512").mkdir(parents=True)
    for split in ("trainval", "test"):
        records = []
        for number in range(2):
            name = f"{split}_{number}.jpg"
            pixels = np.random.default_rng([number, len(split)]).integers(0, 255, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((100, 80)).save(root / "images_512" / name)
            verb, thing = words.hois[1].tolist()
            boxes = [([10, 10, 40, 60], 0), ([5, 50, 60, 80], thing)]
            records.append({
                "file_name": name, "img_id": number, "height": 80, "width": 100,
                "box_annotations": [{"bbox": box, "category_id": kind, "aux_category_id": []} for box, kind in boxes],
                "hoi_annotations": [{"subject_id": 0, "object_id": 1, "action_id": verb}],
            })  # fmt: skip
        write_swig(root, records, f"annotations/swig_{split}_1000.json")


@pytest.mark.slow
def test_swig_hois_configuration_runs_from_images_to_predictions_with_tiny_models(tmp_path, detector):
    write_world(tmp_path / "swig")
    words = swig_vocabulary().object_names()
    tiny_clip = clip(tmp_path / "clip", longest=96)
    small = "{train_rows: false, width: 16, pair_width: 24, heads: 2, ffn: 32, pair_ffn: 32, encoder_layers: 1, " \
        "decoder_layers: 2, roi_size: 3}"  # fmt: skip
    shown = json.dumps(dict.fromkeys((words[0], words[55], words[900]), 0.0))  # random scores would hide all people
    changes = [
        "tables.detections.least=1.0", f"tables.detections.least_of={shown}",
        f"cache={tmp_path / 'cache'}", f"runs={tmp_path / 'runs'}", f"dataset.root={tmp_path / 'swig'}",
        "workers.executor=inline", "workers.device=cpu", f"tables.object_boxes.checkpoint={detector}",
        f"tables.features.checkpoint={tiny_clip}", f"tables.text.checkpoint={tiny_clip}",
        "tables.object_boxes.dtype=float32", "tables.features.dtype=float32", "tables.object_boxes.batch_size=4",
        "tables.features.batch_size=4", "student.steps=2", "student.warmup_steps=1", "student.labelled_per_step=2",
        f"student.network={small}", "student.save_every=2", "student.top_k=20", "student.predict_batch=2",
    ]  # fmt: skip
    workspace = prepare(ROOT / "configs/swig_hoi_link.yaml", changes)
    cells = run(workspace).cells
    assert (cells["object_boxes"], cells["detections"]) == (4 * 1000, 4)
    plans = plan_all(workspace)
    labels = [cell["labels"] for cell in plans["detections"].read(np.arange(4))["value"].to_pylist()]
    assert all({0, 900} <= set(each) for each in labels)
    folder = train_student(workspace)
    assert pq.read_table(folder / "detections.parquet").num_rows
    identity = json.loads((folder / "checkpoint/config.json").read_text())["identities"]["detections"]
    assert identity["inputs"]["object_boxes"]["stage"] == "open_vocabulary_boxes"
    assert _source(identity) == f"checkpoint `{Path(detector).name}`"

    asked: list[int] = []
    own = OpenVocabularyBoxes.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            OpenVocabularyBoxes, "compute",
            lambda self, batch, columns, inputs: asked.append(len(columns)) or own(self, batch, columns, inputs),
        )  # fmt: skip
        student = HOIDetector.from_pretrained(folder / "checkpoint", device="cpu")
        result = student(tmp_path / "swig/images_512/test_0.jpg")
    assert asked == [1000]
    assert len(result)
    rows = pq.read_table(folder / "detections.parquet").to_pylist()
    best = max(row["score"] for row in rows if row["image_id"] == "test_0.jpg")
    assert float(result.score[0]) == pytest.approx(best, rel=1e-2)
