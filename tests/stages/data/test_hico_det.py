"""The HICO-DET loader: conversions, and one line for every kind of bad entry."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.pico.layout import AnnotatedImage, save_mat, write_annotations
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.storage.errors import UserError

RIDE, HOLD = (pico_vocabulary().hoi_id()[pico_vocabulary().verbs.index(v), 1] for v in ("ride", "hold"))  # a bicycle


def _image(number, triplets, boxes=((0, 0, 20, 40), (10, 5, 64, 48), (3, 4, 9, 9)), size=(64, 48)):
    boxes = np.array(boxes)
    return AnnotatedImage(f"HICO_train2015_{number:08d}.jpg", *size, boxes, np.array([0, 1, 0]), triplets)


def _write(root, world, images=True):
    folder = root / "images/train2015"
    folder.mkdir(parents=True, exist_ok=True)
    write_annotations(root, pico_vocabulary(), {"train": world, "test": []})
    if images:
        for image in world:
            Image.new("RGB", (image.width, image.height)).save(folder / image.file_name)
    return root


@pytest.fixture
def root(tmp_path):
    good = [_image(1, [(0, 1, RIDE), (2, 1, RIDE), (0, 1, HOLD)]), _image(2, []), _image(3, [(2, 1, HOLD)])]
    return _write(tmp_path, good)


def test_boxes_become_zero_based_half_open(root):
    raw = loadmat(root / "anno_bbox.mat")["bbox_train"][0, 0]["hoi"][0, 0]["bboxobject"][0, 0]
    assert [int(raw[key].item()) for key in ("x1", "y1", "x2", "y2")] == [11, 6, 64, 48]
    read = load_hico_det(root, "train")
    assert read.object_box[0].tolist() == [10, 5, 64, 48]
    assert read.human_box[0].tolist() == [0, 0, 20, 40]
    assert read.human_box.dtype == read.object_box.dtype == np.float32


def test_columns_line_up(root):
    read = load_hico_det(root, "train")
    assert read.image_id.tolist() == [f"HICO_train2015_{n:08d}.jpg" for n in (1, 2, 3)]
    assert read.pair_offsets.tolist() == [0, 3, 3, 4]
    by_class = sorted(zip(read.hoi[:3].tolist(), read.human_box[:3, 0].tolist(), strict=True))
    assert by_class == sorted([(RIDE, 0.0), (RIDE, 3.0), (HOLD, 0.0)])
    assert set(read.object.tolist()) == {1}
    assert read.pair_image().tolist() == [0, 0, 0, 2]
    assert (read.width.tolist(), read.height.tolist()) == ([64] * 3, [48] * 3)
    assert Path(read.path[0]).exists()


def test_take_keeps_images_and_pairs_together(root):
    read = load_hico_det(root, "train")
    part = read.take(np.array([2, 0]))
    assert part.pair_offsets.tolist() == [0, 1, 4]
    assert part.image_id.tolist() == read.image_id[[2, 0]].tolist()
    assert part.hoi.tolist() == [*read.hoi[3:], *read.hoi[:3]]
    assert part.digests().tolist() == read.digests()[[2, 0]].tolist()


def test_limit_is_the_first_images(root):
    read = load_hico_det(root, "train", limit=2)
    assert len(read) == 2
    assert read.pair_offsets.tolist() == [0, 3, 3]


def test_digests_follow_boxes_and_labels_of_their_image_only(root, tmp_path):
    before = load_hico_det(root, "train").digests()
    assert before.dtype == np.uint64
    moved = [_image(1, [(0, 1, RIDE), (2, 1, RIDE), (0, 1, HOLD)]), _image(2, []), _image(3, [(2, 1, RIDE)])]
    after = load_hico_det(_write(tmp_path / "b", moved), "train").digests()
    assert (before == after).tolist() == [True, True, False]
    boxes = ((0, 0, 20, 40), (10, 5, 64, 48), (3, 4, 9, 10))
    moved = [moved[0], moved[1], _image(3, [(2, 1, HOLD)], boxes)]
    after = load_hico_det(_write(tmp_path / "c", moved), "train").digests()
    assert (before == after).tolist() == [True, True, False]


def test_invisible_interactions_give_no_pairs(root):
    mat = loadmat(root / "anno_bbox.mat")
    mat["bbox_train"][0, 0]["hoi"][0, 0]["invis"][:] = 1
    save_mat(root / "anno_bbox.mat", {k: v for k, v in mat.items() if not k.startswith("__")})
    assert load_hico_det(root, "train").pair_offsets[1] < 3


def test_image_level_labels_are_those_of_anno_mat(root):
    read = load_hico_det(root, "train")
    assert read.image_hois is not None
    assert read.image_hois.dtype == bool
    assert [np.flatnonzero(row).tolist() for row in read.image_hois] == [sorted([RIDE, HOLD]), [], [HOLD]]
    (root / "anno.mat").unlink()
    assert load_hico_det(root, "train").image_hois is None


def _says(root, *parts, split="train"):
    with pytest.raises(UserError) as error:
        load_hico_det(root, split)
    line = str(error.value)
    assert "\n" not in line
    for part in ("anno_bbox.mat", *parts):
        assert part in line


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        (_image(3, [(0, 1, 58)]), ("entry 3", "00000003.jpg", "unknown interaction 59")),
        (_image(3, [(0, 1, RIDE)], ((0, 0, 20, 40), (10, 5, 65, 48))), ("entry 3", "object box", "64 x 48")),
        (_image(3, [(0, 1, RIDE)], ((-1, 0, 20, 40), (10, 5, 60, 48))), ("entry 3", "human box", "64 x 48")),
        (_image(3, [(0, 1, RIDE)], ((9, 0, 9, 40), (10, 5, 60, 48))), ("entry 3", "human box", "empty")),
        (_image(1, [(0, 1, RIDE)]), ("entry 3 repeats", "00000001.jpg", "entry 1")),
    ],
)
def test_a_bad_entry_is_named_and_leniently_dropped(tmp_path, caplog, image, parts):
    root = _write(tmp_path, [_image(1, [(0, 1, RIDE)]), _image(2, [(0, 1, HOLD)])])
    bad = [_image(1, [(0, 1, RIDE)]), _image(2, [(0, 1, HOLD)]), image]
    _write_boxes_only(root, bad)
    (root / "images/train2015/HICO_train2015_00000003.jpg").write_bytes(b"")
    _says(root, *parts)
    with caplog.at_level(logging.WARNING):
        read = load_hico_det(root, "train", lenient=True)
    assert read.dropped == 1
    assert len(read.hoi) == 2
    assert "dropped 1" in caplog.text


def _write_boxes_only(root, images):
    from hoi_distill.stages.data.pico.layout import _list_action, _records

    save_mat(root / "anno_bbox.mat", {"list_action": _list_action(pico_vocabulary()), "bbox_train": _records(images)})
    (root / "anno.mat").unlink(missing_ok=True)


def test_a_missing_image_is_named_and_leniently_dropped(root):
    (root / "images/train2015/HICO_train2015_00000001.jpg").unlink()
    _says(root, "entry 1", "HICO_train2015_00000001.jpg")
    read = load_hico_det(root, "train", lenient=True)
    assert (len(read), read.dropped, read.pair_offsets.tolist()) == (2, 1, [0, 0, 1])
    assert len(load_hico_det(root, "train", images=False)) == 3


def test_a_connection_to_nowhere_is_named(root):
    mat = loadmat(root / "anno_bbox.mat")
    mat["bbox_train"][0, 2]["hoi"][0, 0]["connection"][:] = 7
    save_mat(root / "anno_bbox.mat", {k: v for k, v in mat.items() if not k.startswith("__")})
    _says(root, "entry 3", "hoi 1", "(7, 7)")


def test_files_that_are_not_there_or_no_matlab(tmp_path, root):
    with pytest.raises(UserError, match=r"anno_bbox\.mat: not found"):
        load_hico_det(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="splits train and test"):
        load_hico_det(root, "val")
    (root / "anno_bbox.mat").write_bytes(b"not a mat file" * 100)
    _says(root, "not a readable MATLAB file")
    shutil.copy(root / "anno.mat", root / "anno_bbox.mat")
    _says(root, "no variable bbox_train")


@pytest.mark.slow
@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_real_annotations_survive_the_layout(tmp_path):
    """HICO-DET's test annotations, put into its layout and read back: 33,405 pairs, 9,658 images."""
    import json

    from hoi_distill.stages.data.vocabulary import hico_vocabulary

    file = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det/instances_test2015.json")
    source = json.loads(file.read_text())
    images = []
    for record, (width, height), name in zip(source["annotation"], source["size"], source["filenames"], strict=True):
        boxes = np.array(record["boxes_h"] + record["boxes_o"]).reshape(-1, 4) - (1, 1, 0, 0)
        count = len(record["hoi"])
        triplets = [(i, count + i, hoi) for i, hoi in enumerate(record["hoi"])]
        images.append(AnnotatedImage(name, width, height, boxes.astype(int), np.zeros(2 * count, int), triplets))
    write_annotations(tmp_path, hico_vocabulary(), {"test": images})
    started = time.process_time()
    read = load_hico_det(tmp_path, "test", images=False)
    assert time.process_time() - started < 10
    assert (len(read), len(read.hoi)) == (9_658, 33_405)
    assert (np.diff(read.pair_offsets) > 0).sum() == 9_546
    for i in range(0, 9_658, 97):
        rows = read.pairs(i)
        want = sorted(
            (*h, *o, hoi)
            for h, o, hoi in zip(*(source["annotation"][i][k] for k in ("boxes_h", "boxes_o", "hoi")), strict=True)
        )
        got = np.concatenate([read.human_box[rows], read.object_box[rows]], axis=1) + (1, 1, 0, 0, 1, 1, 0, 0)
        assert sorted((*b, hoi) for b, hoi in zip(got.tolist(), read.hoi[rows].tolist(), strict=True)) == want
