"""A vocabulary with objects of its own, and boxes of a detector that knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.toy_stages import run

OBJECTS = ("person", "kite", "hang_glider")


def setup_of(root: Path, **detections: Any) -> Workspace:
    config = {
        "name": "own", "cache": str(root / "cache"), "runs": str(root / "runs"),
        "dataset": {"kind": "folder", "root": str(root), "annotations": str(root / "annotations.json")},
        "workers": {"executor": "inline", "count": 1},
        "tables": {"detections": {"stage": "detections_file", "path": str(root / "boxes.json"), **detections}},
    }  # fmt: skip
    (root / "own.yaml").write_text(yaml.safe_dump(config))
    return prepare(root / "own.yaml")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.jpg", "b.jpg")):
        Image.new("RGB", (64, 48), (200 * number, 0, 0)).save(tmp_path / name)
    actions = [(name, "fly", "flying") for name in OBJECTS[1:]]
    Vocabulary.from_actions(actions, "test", objects=OBJECTS).save(tmp_path / "words.json")
    pair = {"human_box": [1, 1, 20, 40], "object_box": [20, 1, 60, 20], "object": "hang glider", "verbs": ["fly"]}
    pictures = [{"file_name": "a.jpg", "pairs": [pair]}, {"file_name": "b.jpg", "split": "test", "pairs": [pair]}]
    (tmp_path / "annotations.json").write_text(json.dumps({"vocabulary": "words.json", "pictures": pictures}))
    boxes = [
        {"image_id": name, "category_id": category, "bbox": box, "score": 0.9}
        for name in ("a.jpg", "b.jpg")
        for category, box in ((1, [1, 1, 19, 39]), (3, [20, 1, 40, 19]))
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def test_a_boxes_file_and_the_annotations_mean_the_same_object(root):
    workspace = setup_of(root, categories="vocabulary")
    assert run(workspace).cells == {"detections": 2}
    (table,) = workspace.cache.tables()
    cells = table.read(CellSelection(workspace.sources["images"].ids, ("value",)))["value"].to_pylist()
    assert [cell["labels"] for cell in cells] == [[0, OBJECTS.index("hang_glider")]] * 2
    assert workspace.dataset["train"].object.tolist() == [OBJECTS.index("hang_glider")]


def test_planning_asks_what_the_categories_are(root):
    with pytest.raises(UserError, match=r"own\.yaml: tables\.detections: categories: .*objects of its own"):
        setup_of(root)


@pytest.mark.parametrize(
    ("objects", "said"),
    [(["kite", "person"], "the first must be person"), (["person", "kite", "kite"], "'kite' is there twice")],
)
def test_a_vocabulary_begins_with_the_person_and_names_each_object_once(root, objects, said):
    record = json.loads((root / "words.json").read_text()) | {"objects": objects}
    (root / "words.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"words\.json: objects: .*{said}"):
        setup_of(root, categories="vocabulary")
