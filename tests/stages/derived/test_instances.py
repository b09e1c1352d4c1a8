"""Instances are UPT's selection without scores: what is asked about them stays while only scores move."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.stages.derived.instances import Instances
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import image_of
from hoi_distill.stages.teacher.detectors.given import DETECTIONS
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made
from tests.fixtures.toy_stages import Album, run


def detections(count: int, seed: int = 0, **changes):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2)).astype(np.float32)
    boxes = np.concatenate((corners, corners + random.uniform(8, 40, (count, 2)).astype(np.float32)), 1)
    scores = np.sort(random.uniform(0, 1, count).astype(np.float32))[::-1]
    cell = {"boxes": boxes, "scores": scores, "labels": random.integers(0, 4, count), "width": 80, "height": 70}
    return {name: np.asarray(value).tolist() for name, value in {**cell, **changes}.items()}


def computed(cells, **keys):
    stage = made(Instances, **keys)
    batch = Batch(np.zeros(len(cells), "V16"), [str(row) for row in range(len(cells))], len(cells))
    answer = stage.compute(batch, ["value"], {"detections": {"value": pa.array(cells, DETECTIONS)}})["value"]
    assert answer.type == Instances.output.type
    return answer.to_pylist()


@pytest.mark.parametrize("count", [0, 1, 12, 60])
def test_the_boxes_are_those_that_a_student_puts_in_pairs(count):
    cell = detections(count, seed=count)
    (found,), student = computed([cell]), image_of(cell, PairsConfig())
    ours = sorted(zip(found["labels"], map(tuple, found["boxes"]), strict=True))
    theirs = sorted(zip(student.labels.tolist(), map(tuple, np.rint(student.boxes).astype(int).tolist()), strict=True))
    assert ours == theirs
    assert found["humans"] == student.humans
    assert all(label == 0 for label in found["labels"][: found["humans"]])
    assert (found["width"], found["height"]) == (80, 70)


def test_scores_that_move_without_the_selection_change_nothing_whatever_their_order():
    cell = detections(6)
    moved = {**cell, "scores": np.linspace(0.3, 0.9, 6).tolist()}
    before, after = computed([{**cell, "scores": np.linspace(0.9, 0.3, 6).tolist()}, moved], nms_iou=1.0)
    assert before == after


def test_a_box_counts_from_half_a_pixel_on():
    cell = detections(4, boxes=np.tile(np.float32([10, 10, 20, 20]), (4, 1)) + np.arange(4)[:, None] * 12)
    near = {**cell, "boxes": (np.array(cell["boxes"]) + 0.4).tolist()}
    far = {**cell, "boxes": (np.array(cell["boxes"]) + 0.6).tolist()}
    first, second, third = computed([cell, near, far])
    assert first == second != third


def test_the_fingerprint_is_that_of_the_rule():
    plain = str(fingerprint_record(made(Instances)))
    assert plain == str(fingerprint_record(made(Instances, batch_size=2, detections="elsewhere")))
    keys = [{"score_threshold": 0.1}, {"min_instances": 2}, {"max_instances": 4}, {"nms_iou": 0.4}]
    assert len({plain, *(str(fingerprint_record(made(Instances, **key))) for key in keys)}) == 5
    with pytest.raises(UserError, match="min_instances: 9 are more than max_instances: 4"):
        made(Instances, min_instances=9, max_instances=4)


def test_a_score_recomputes_its_instances_and_nothing_below_and_a_box_all_of_its_row(tmp_path, monkeypatch):
    from hoi_distill.pipeline.graph import registry

    monkeypatch.setitem(registry.STAGES, "toy_boxes", "tests.stages.derived.test_instances:CountedBoxes")
    album = Album(tmp_path, images=3)
    found = [
        {"image_id": f"00{row}.png", "category_id": 1 + at, "bbox": [at, at, 8, 8], "score": 0.9 - 0.1 * at}
        for row in range(3)
        for at in range(2)
    ]
    file = tmp_path / "boxes.json"
    album.config["tables"] = {
        "detections": {"stage": "detections_file", "path": str(file)},
        "instances": {"stage": "instances"},
        "below": {"stage": "toy_boxes"},
    }
    album.write()

    def ran() -> dict[str, int]:
        file.write_text(json.dumps(found))
        return {name: cells for name, cells in run(album.workspace()).cells.items() if cells}

    assert ran() == {"detections": 3, "instances": 3, "below": 3}
    found[0]["score"] = 0.5
    assert ran() == {"detections": 1, "instances": 1}
    found[0]["bbox"] = [3, 0, 8, 8]
    assert ran() == {"detections": 1, "instances": 1, "below": 1}


class CountedBoxes(Instances):
    """How many instances there are; reads the table ``instances``."""

    name = "counted_boxes"
    output = type(Instances.output)(pa.int32())

    def __init__(self, config: Instances.Config) -> None:
        super().__init__(config)
        self.inputs = ("instances",)

    def compute(self, batch, columns, inputs):
        return {
            "value": pa.array([len(cell["boxes"]) for cell in inputs["instances"]["value"].to_pylist()], pa.int32())
        }
