"""Detections files and plain folders of pictures."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from stages.data.detections import load_detections
from stages.data.folder import load_folder
from stages.data.pico.world import pico_vocabulary
from storage.errors import UserError


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name, size in (("b.JPG", (40, 30)), ("a.png", (20, 10)), ("sub/c.webp", (64, 64)), ("notes.txt", None)):
        if size is None:
            (root / name).write_text("not a picture")
        else:
            Image.new("RGB", size).save(root / name)
    return root


def test_folder_lists_pictures_sorted_with_sizes(photos):
    read = load_folder(photos)
    assert read.image_id.tolist() == ["a.png", "b.JPG", "sub/c.webp"]
    assert list(zip(read.width.tolist(), read.height.tolist(), strict=True)) == [(20, 10), (40, 30), (64, 64)]
    assert read.vocabulary is not None
    assert len(read.vocabulary) == 600
    assert (len(read.hoi), read.pair_offsets.tolist()) == (0, [0, 0, 0, 0])
    assert len(load_folder(photos, limit=2)) == 2
    assert len(read.digests()) == 3


def test_folder_size_is_that_of_the_upright_picture(photos):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 30)).save(photos / "b.JPG", exif=exif)
    read = load_folder(photos)
    assert (read.width[1], read.height[1]) == (30, 40)


def test_folder_keeps_unreadable_files_for_the_decoder_to_judge(photos):
    (photos / "a.png").write_bytes(b"")
    read = load_folder(photos)
    assert (len(read), read.width[0], read.height[0]) == (3, 0, 0)


def test_folder_takes_a_vocabulary(photos, tmp_path):
    pico_vocabulary().save(tmp_path / "v.json")
    assert load_folder(photos, tmp_path / "v.json").vocabulary == pico_vocabulary()


def test_folder_that_is_not_there_or_empty(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no pictures"):
        load_folder(tmp_path)


def _entry(image_id="a.png", category_id=1, bbox=(1, 2, 3, 4), score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def _file(tmp_path, entries):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(entries))
    return path


def test_detections_are_sorted_by_picture_and_score(photos, tmp_path):
    entries = [
        _entry("sub/c.webp", 90, score=0.2),
        _entry("a.png", 1, score=0.3),
        _entry("a.png", 18, (5, 5, 10, 4), score=0.9),
        _entry("elsewhere.png"),
    ]
    found = load_detections(_file(tmp_path, entries), load_folder(photos))
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.labels.tolist() == [16, 0, 79]
    assert found.boxes[0].tolist() == [5, 5, 15, 9]
    assert np.allclose(found.scores, [0.9, 0.3, 0.2])
    assert found.of(2) == slice(2, 3)


def test_detections_are_clipped(photos, tmp_path):
    found = load_detections(_file(tmp_path, [_entry(bbox=(-2, -2, 50, 5))]), load_folder(photos))
    assert found.boxes.tolist() == [[0, 0, 20, 3]]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (_entry(category_id=12), "unknown category_id"),
        (_entry(category_id=400), "unknown category_id"),
        (_entry(bbox=(30, 2, 5, 5)), "outside its picture"),
        (_entry(bbox=(3, 2, 0, 5)), "box empty"),
    ],
)
def test_a_bad_detection_is_named_and_leniently_dropped(photos, tmp_path, caplog, bad, said):
    file, annotations = _file(tmp_path, [_entry(), bad]), load_folder(photos)
    with pytest.raises(UserError) as error:
        load_detections(file, annotations)
    assert all(part in str(error.value) for part in ("boxes.json: entry 2 (a.png)", said))
    with caplog.at_level(logging.WARNING):
        assert len(load_detections(file, annotations, lenient=True).scores) == 1
    assert "1 such entries dropped" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a COCO results file"),
        ('[{"image_id": "a.png"}]', "lacks 'bbox'"),
        ('[{"image_id": "z.png", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "none of its pictures"),
        ('[{"image_id": "a.png", "category_id": 1, "bbox": [1, 2, 3], "score": 1}]', "not a COCO results file"),
    ],
)
def test_a_file_of_another_kind(photos, tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_detections(tmp_path / "x.json", load_folder(photos))
    with pytest.raises(UserError, match="no such detections file"):
        load_detections(tmp_path / "y.json", load_folder(photos))


def test_no_detections_at_all(photos, tmp_path):
    found = load_detections(_file(tmp_path, []), load_folder(photos))
    assert found.offsets.tolist() == [0, 0, 0, 0]
    assert found.boxes.shape == (0, 4)
