"""``predict`` takes patterns and lists, and writes CSV, COCO-style results, crops and lines of JSON that agree."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hoi_distill import HOIDetector
from hoi_distill.pipeline import prediction
from hoi_distill.pipeline.prediction import More, predict_images
from hoi_distill.pipeline.prediction_inputs import named_files
from hoi_distill.pipeline.prediction_outputs import Wanted
from hoi_distill.storage.errors import UserError
from tests.fixtures.untrained_student import DETECTOR, of_a_file, scene, untrained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("student"))


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("day/a.jpg", "day/b.png", "night/a.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(number).save(path)
    (tmp_path / "photos/notes.txt").write_text("day/b.png\n\nnight/a.jpg\n")
    return tmp_path / "photos"


def test_patterns_and_lists_name_images_by_their_paths(photos):
    assert list(named_files([photos / "*/a.jpg"])) == ["day/a.jpg", "night/a.jpg"]
    assert list(named_files([photos / "**/*.png"])) == ["day/b.png"]
    assert named_files([photos / "notes.txt"]) == {
        "day/b.png": photos / "day/b.png",
        "night/a.jpg": photos / "night/a.jpg",
    }


def test_what_a_list_names_elsewhere_is_not_written_there(photos, tmp_path):
    (tmp_path / "far/list.txt").parent.mkdir()
    (tmp_path / "far/list.txt").write_text(f"{photos}/day/a.jpg\n../photos/night/a.jpg\n")
    named = named_files([tmp_path / "far/list.txt"])
    assert not any(name.startswith("/") or ".." in name for name in named)
    assert len(named) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("*.webp", None, r"\*.webp: no file has such a name"),
        ("empty.txt", b"\n", "empty.txt: lists no names; write one on each line"),
        ("gone.txt", b"gone.jpg\n", "gone.jpg: cannot be read: No such file"),
        ("latin.txt", b"\xff\xfe\x00", "latin.txt: cannot be read as a list of names"),
    ],
)
def test_what_names_no_image_is_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as refusal:
        named_files([tmp_path / name])
    assert "\n" not in str(refusal.value)


def test_all_forms_of_output_say_the_same(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    more = More(wanted=Wanted(csv=True, coco=True, crops=True, lines=True))
    predict_images(checkpoint, [photos], out, threshold=0.3, more=more)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == ["day/a.jpg", "day/b.png", "night/a.jpg"]
    pairs = [(line["image"], pair) for line in lines for pair in line["pairs"]]
    assert pairs
    assert all(pair["score"] >= 0.3 for _, pair in pairs)
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    entries = json.loads((out / "detections.coco.json").read_text())
    assert len(rows) == len(entries) == len(pairs)
    for (name, pair), row, entry in zip(pairs, rows, entries, strict=True):
        assert (row["image"], row["verb"], row["object"]) == (name, pair["verb"], pair["object"])
        assert [float(row[f"human_{edge}"]) for edge in ("x1", "y1", "x2", "y2")] == pytest.approx(
            pair["human_box"], abs=0.006
        )
        assert entry["image_id"] == name
        assert entry["category_id"] == 1
        x1, y1, x2, y2 = pair["object_box"]
        assert entry["object_bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    whole = pq.read_table(out / "detections.parquet").to_pylist()
    assert sum(row["score"] >= 0.3 for row in whole) == len(pairs) < len(whole)
    name, pair = pairs[0]
    with Image.open(out / f"crops/{name}.1.jpg") as crop:
        boxes = np.array([pair["human_box"], pair["object_box"]])
        assert crop.size == pytest.approx(tuple(boxes[:, 2:].max(0) - boxes[:, :2].min(0)), abs=1.01)
    assert len(list((out / "crops").rglob("*.jpg"))) == len(pairs)


def test_a_detector_gives_boxes_to_a_student_of_given_ones(checkpoint, photos, tmp_path):
    folder = untrained(tmp_path / "given", boxes=of_a_file())
    with pytest.raises(UserError, match=r"there are none of a.jpg; name a detector with --detector") as refusal:
        HOIDetector.from_pretrained(folder, device="cpu")(photos / "day/a.jpg")
    assert "\n" not in str(refusal.value)
    result = HOIDetector.from_pretrained(folder, device="cpu", detector=DETECTOR)(photos / "day/a.jpg")
    same = HOIDetector.from_pretrained(checkpoint, device="cpu")(photos / "day/a.jpg")
    assert result.to_dict() == same.to_dict() != []


def test_given_boxes_are_looked_up_in_every_batch(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "TOGETHER", 1)
    folder = untrained(tmp_path / "given", boxes=of_a_file())
    boxes = [
        {"image_id": name, "category_id": category, "bbox": [10, 10, 50, 90], "score": 0.9}
        for name in ("day/a.jpg", "day/b.png", "night/a.jpg")
        for category in (1, 2)
    ]
    (tmp_path / "own.json").write_text(json.dumps(boxes))
    predict_images(folder, [photos], tmp_path / "out", threshold=0.3, detections=tmp_path / "own.json")
    found = pq.read_table(tmp_path / "out/detections.parquet")["image_id"].to_pylist()
    assert set(found) == {"day/a.jpg", "day/b.png", "night/a.jpg"}
    (tmp_path / "few.json").write_text(json.dumps(boxes[:2]))  # a batch without a box has no pairs
    predict_images(folder, [photos], tmp_path / "few", threshold=0.3, detections=tmp_path / "few.json")
    found = pq.read_table(tmp_path / "few/detections.parquet")["image_id"].to_pylist()
    assert set(found) == {"day/a.jpg"}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "TOGETHER", 8)
    image = scene(0).resize((640, 640))
    image.save(tmp_path / "first.jpg")
    for number in range(200):
        os.link(tmp_path / "first.jpg", tmp_path / f"{number}.jpg")
    used = []
    for count in (16, 16, 200):
        given = [tmp_path / f"{number}.jpg" for number in range(count)]
        predict_images(checkpoint, given, tmp_path / "out", threshold=0.3, more=More(wanted=Wanted(drawings=False)))
        used.append(psutil.Process().memory_info().rss)
    assert used[2] - used[1] < 40 << 20  # 184 images of 640 x 640 RGB are 215 MB
