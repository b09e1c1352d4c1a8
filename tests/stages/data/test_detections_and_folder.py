"""Detections files and plain folders of images."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data import object_detections
from hoi_distill.stages.data.folder import load_folder
from hoi_distill.stages.data.object_detections import load_detections
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.storage.errors import UserError


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name, size in (("b.JPG", (40, 30)), ("a.png", (20, 10)), ("sub/c.webp", (64, 64)), ("notes.txt", None)):
        if size is None:
            (root / name).write_text("not an image")
        else:
            Image.new("RGB", size).save(root / name)
    return root


def test_folder_lists_images_sorted_with_sizes(photos):
    read = load_folder(photos)
    assert read.image_id.tolist() == ["a.png", "b.JPG", "sub/c.webp"]
    assert list(zip(read.width.tolist(), read.height.tolist(), strict=True)) == [(20, 10), (40, 30), (64, 64)]
    assert read.vocabulary is not None
    assert len(read.vocabulary) == 600
    assert (len(read.hoi), read.pair_offsets.tolist()) == (0, [0, 0, 0, 0])
    assert len(load_folder(photos, limit=2)) == 2
    assert len(read.digests()) == 3


def test_folder_size_is_that_of_the_upright_image(photos):
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
    with pytest.raises(UserError, match="no images"):
        load_folder(tmp_path)


def _entry(image_id="a.png", category_id=1, bbox=(1, 2, 3, 4), score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def _file(tmp_path, entries):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(entries))
    return path


def test_detections_are_sorted_by_image_and_score(photos, tmp_path):
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


def test_a_file_is_parsed_once_until_it_changes(photos, tmp_path, monkeypatch):
    """Also where the new content has the size and the time of the old one. A file written just now is never remembered."""
    parsed, whole = [], object_detections._parsed
    monkeypatch.setattr(object_detections, "_parsed", lambda path: parsed.append(path) or whole(path))
    path, images = _file(tmp_path, [_entry(score=0.5)]), load_folder(photos)
    assert [load_detections(path, images).scores[0] for _ in range(2)] == [0.5, 0.5]
    assert len(parsed) == 2
    monkeypatch.setattr(object_detections, "_SETTLED", -(10**18))
    assert [load_detections(path, images).scores[0] for _ in range(3)] == [0.5, 0.5, 0.5]
    assert len(parsed) == 3
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a tick of the file system's clock
        _file(tmp_path, [_entry(score=0.7)])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_detections(path, images).scores[0] == np.float32(0.7)


def test_detections_are_clipped(photos, tmp_path):
    found = load_detections(_file(tmp_path, [_entry(bbox=(-2, -2, 50, 5))]), load_folder(photos))
    assert found.boxes.tolist() == [[0, 0, 20, 3]]


BAD = {
    "crowd's number": (_entry(category_id=12), "unknown category_id"),
    "no category of COCO": (_entry(category_id=400), "unknown category_id"),
    "counted from 0": (_entry(category_id=0), "unknown category_id"),
    "half a category": (_entry(category_id=1.7), "category_id is no whole number"),
    "true for a category": (_entry(category_id=True), "category_id is no whole number"),
    "text for a category": (_entry(category_id="1"), "category_id is no whole number"),
    "a huge category": (_entry(category_id=2**70), "category_id is no whole number"),
    "a category beyond all floats": (_entry(category_id=10**400), "category_id is no whole number"),
    "no category": (_entry(category_id=None), "category_id is no whole number"),
    "outside": (_entry(bbox=(30, 2, 5, 5)), "outside its image"),
    "empty": (_entry(bbox=(3, 2, 0, 5)), "box empty"),
    "infinite": (_entry(bbox=(1, 1, float("inf"), 5)), "bbox is not four finite numbers"),
    "NaN": (_entry(bbox=(1, float("nan"), 3, 5)), "bbox is not four finite numbers"),
    "beyond single precision": (_entry(bbox=(1, 1, 1e39, 5)), "bbox is not four finite numbers"),
    "text for a number": (_entry(bbox=(1, 1, "3", 5)), "bbox is not four finite numbers"),
    "true for a number": (_entry(bbox=(1, True, 3, 5)), "bbox is not four finite numbers"),
    "three numbers": (_entry(bbox=(1, 2, 3)), "bbox is not four finite numbers"),
    "a logit": (_entry(score=7.5), "score is not in 0 to 1, give a probability"),
    "a negative logit": (_entry(score=-0.1), "score is not in 0 to 1"),
    "per cent": (_entry(score=97), "score is not in 0 to 1"),
    "infinite score": (_entry(score=float("inf")), "score is not in 0 to 1"),
    "no score": (_entry(score=None), "score is no number"),
    "text for a score": (_entry(score="0.5"), "score is no number"),
    "true for a score": (_entry(score=True), "score is no number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_detection_is_named_and_leniently_dropped(photos, tmp_path, case):
    bad, said = BAD[case]
    file, annotations = _file(tmp_path, [_entry(), bad]), load_folder(photos)
    with pytest.raises(UserError) as error:
        load_detections(file, annotations)
    assert all(part in str(error.value) for part in ("boxes.json: entry 2 (a.png)", said))
    assert "\n" not in str(error.value)
    found = load_detections(file, annotations, lenient=True)
    assert len(found.scores) == 1
    assert "1 such entries dropped" in found.remarks[0]
    with pytest.raises(UserError, match=r"entry 1 \(a.png\)"):
        load_detections(_file(tmp_path, [bad]), annotations, lenient=True)  # nothing would be left


def test_a_whole_number_may_be_written_as_a_fraction(photos, tmp_path):
    assert load_detections(_file(tmp_path, [_entry(category_id=18.0)]), load_folder(photos)).labels.tolist() == [16]


FINE = [_entry(bbox=(1, 2, 10, 6)), _entry("b.JPG", bbox=(20, 4, 12, 20))]  # of 20 x 10 and 40 x 30
DOUBTS = {
    "fine": (FINE, ()),
    "within a rounding of the border": ([*FINE, _entry(bbox=(-0.7, 0, 21.5, 10.9))], ()),
    "beyond the border": ([*FINE, _entry(bbox=(-4, -2, 13, 8))], ("1 of 3 boxes reach beyond their images and are cut",)),
    "less than a pixel": ([*FINE, _entry(bbox=(3, 3, 0.5, 4))], ("1 of 3 boxes are less than a pixel wide or high",)),
    "a sliver at the border": ([*FINE, _entry(bbox=(19.5, 3, 1, 4))], ("1 of 3 boxes are less than a pixel wide or high",)),
    "fractions of the image": (
        [_entry(bbox=(0.3, 0.2, 0.4, 0.6)), _entry("b.JPG", bbox=(0, 0, 1, 1))], ("not in fractions of the image",),
    ),
    "corners": (
        [_entry(bbox=(1, 2, 11, 8)), _entry("b.JPG", bbox=(20, 4, 32, 24))],
        ("1 of 2 boxes reach beyond their images and are cut; none would if they were x1, y1, x2, y2, but bbox is x,",),
    ),
    "middles": (
        [_entry(bbox=(10, 5, 18, 8)), _entry("b.JPG", bbox=(26, 14, 12, 20))],
        ("2 of 2 boxes reach beyond their images and are cut; none would if they were the middle, width and height",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBTS)
def test_what_is_allowed_and_hardly_meant_is_remarked_in_a_line(photos, tmp_path, case):
    entries, said = DOUBTS[case]
    remarks = load_detections(_file(tmp_path, entries), load_folder(photos)).remarks
    assert len(remarks) == len(said)
    for line, part in zip(remarks, said, strict=True):
        assert line.startswith(f"{tmp_path / 'boxes.json'}: ")
        assert part in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not readable as JSON"),
        ('{"annotations": []}', "holds a dict, not a list; it should be a COCO results file"),
        ("[]", "an empty list"),
        ("[1]", "entry 1 lacks 'image_id'"),
        ('[{"image_id": "a.png"}]', "entry 1 lacks 'category_id'; each needs image_id, category_id, bbox, score"),
        ('[{"image_id": "z.png", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "none of its images"),
    ],
)
def test_a_file_of_another_kind(photos, tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=said):
        load_detections(tmp_path / "x.json", load_folder(photos))
    with pytest.raises(UserError, match=r"y\.json: cannot be read \(No such file"):
        load_detections(tmp_path / "y.json", load_folder(photos))
