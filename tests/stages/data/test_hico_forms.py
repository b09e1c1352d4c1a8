"""HICO-DET from anno_bbox.mat and from either JSON pair: the same records, wherever people keep them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.storage.errors import UserError
from tests.fixtures.hico_forms import hoi, images, instances, ppdm, save, write_mat

JSON_NAMES = {"instances": "instances_{}2015.json", "ppdm": "{}_hico.json"}
COLUMNS = ("image_id", "pair_offsets", "human_box", "object_box", "object", "verb", "hoi", "width", "height")


def write_images(folder):
    for split in ("train", "test"):
        (folder / f"images/{split}2015").mkdir(parents=True)
        for p in images(split):
            Image.new("RGB", (p.width, p.height)).save(folder / f"images/{split}2015" / p.file_name)


def write(root, form):
    """All of a form, images too, in a folder of its own."""
    write_images(root)
    if form == "mat":
        write_mat(root, labels=False)
    for split, name in (("train", "train" if form != "ppdm" else "trainval"), ("test", "test")):
        if form == "ppdm":
            save(root / "annotations" / JSON_NAMES[form].format(name), ppdm(split))
        elif form != "mat":
            save(root / JSON_NAMES["instances"].format(name), instances(split, coco_order=form == "coco order"))
    return root


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("form", ["instances", "coco order", "ppdm"])
def test_all_forms_give_the_same_records(tmp_path, split, form):
    mat = load_hico_det(write(tmp_path / "mat", "mat"), split)
    other = load_hico_det(write(tmp_path / "other", form), split)
    for column in COLUMNS:
        want, got = getattr(mat, column), getattr(other, column)
        assert want.dtype == got.dtype
        assert want.tolist() == got.tolist(), column
    assert mat.vocabulary == other.vocabulary
    assert mat.digests().tolist() == other.digests().tolist()
    assert [Path(p).name for p in mat.path] == [Path(p).name for p in other.path]
    assert len(mat.hoi) == 6
    assert mat.human_box.min() == 0
    assert mat.object_box[:, 2].max() == 64


@pytest.mark.parametrize(
    ("annotations", "images", "given"),
    [
        ("anno_bbox.mat", "images", "."),
        ("annotations/test_hico.json", "images", "."),
        ("annotations/test_hico.json", "images", "annotations/test_hico.json"),
        ("instances_test2015.json", "hico_20160224_det/images", "."),
        ("instances_test2015.json", "hico_20160224_det/images", "instances_test2015.json"),
        ("hico_20160224_det/anno_bbox.mat", "hico_20160224_det/images", "."),
        ("hico_20160224_det/annotations/test_hico.json", "hico_20160224_det/images", "."),
        ("my own.json", "images", "my own.json"),
    ],
)
def test_layouts_that_people_have(tmp_path, annotations, images, given):
    file = tmp_path / annotations
    write_mat(file.parent, labels=False)
    if file.suffix == ".json":
        (file.parent / "anno_bbox.mat").unlink()
        save(file, ppdm("test") if "hico.json" in file.name else instances("test"))
    write_images((tmp_path / images).parent)
    read = open_annotations("hico-det", tmp_path / given, None)
    assert len(read) == 4
    assert all(Path(path).is_file() for path in read.path)
    assert read.path[0].startswith(str(tmp_path / images))


def test_image_level_labels_lie_beside_or_are_given(tmp_path):
    write_mat(tmp_path / "hico_20160224_det")
    (tmp_path / "hico_20160224_det/anno_bbox.mat").unlink()
    file = save(tmp_path / "instances_test2015.json", instances("test"))
    beside = load_hico_det(file, "test", images=False)
    assert beside.image_hois is not None
    assert np.flatnonzero(beside.image_hois[2]).tolist() == [hoi("walk", "dog")]
    moved = tmp_path / "elsewhere.mat"
    (tmp_path / "hico_20160224_det/anno.mat").rename(moved)
    assert load_hico_det(file, "test", images=False).image_hois is None
    given = load_hico_det(file, "test", images=False, image_labels=moved)
    assert (given.image_hois == beside.image_hois).all()
    with pytest.raises(UserError, match=r"nowhere\.mat: no such file"):
        load_hico_det(file, "test", images=False, image_labels=tmp_path / "nowhere.mat")


def test_a_file_stands_for_its_partner_too(tmp_path):
    test = save(tmp_path / "test_hico.json", ppdm("test"))
    save(tmp_path / "trainval_hico.json", ppdm("train"))
    assert load_hico_det(test, "train", images=False).image_id[0].startswith("HICO_train2015")
    (tmp_path / "trainval_hico.json").unlink()
    with pytest.raises(UserError, match=r"this is the test split; no trainval_hico\.json beside it"):
        load_hico_det(test, "train", images=False)


def test_sizes_are_unknown_without_images(tmp_path):
    read = load_hico_det(save(tmp_path / "test_hico.json", ppdm("test")), "test", images=False)
    assert read.width.tolist() == [0] * 4
    assert load_hico_det(write(tmp_path / "all", "ppdm"), "test").width.tolist() == [64] * 4


def test_what_a_large_file_counts_from_is_what_its_smallest_coordinate_says(tmp_path):
    record = {"file_name": "HICO_train2015_00000001.jpg", "annotations": [], "hoi_annotation": []}
    person, bicycle = {"bbox": [1, 1, 9, 9], "category_id": 1}, {"bbox": [3, 3, 9, 9], "category_id": 2}
    ride = {"subject_id": 0, "object_id": 1, "category_id": "77\n", "hoi_category_id": 0}
    few = save(tmp_path / "few.json", [record | {"annotations": [person, bicycle], "hoi_annotation": [ride]}])
    assert load_hico_det(few, "train", images=False).human_box.tolist() == [[1, 1, 10, 10]]
    many = save(tmp_path / "many.json", [record | {"annotations": [person, bicycle] * 600, "hoi_annotation": [ride]}])
    assert load_hico_det(many, "train", images=False).human_box.tolist() == [[0, 0, 9, 9]]


def test_images_that_ppdm_left_out_come_back(tmp_path):
    from hoi_distill.stages.data.hico_det.json import _without_pairs

    absent = _without_pairs()["test"]
    names = [f"HICO_test2015_{n:08d}.jpg" for n in range(1, 9_768) if n not in absent][:9_546]
    document = [{"file_name": name, "annotations": [], "hoi_annotation": []} for name in names]
    document[7] = ppdm("test")[0] | {"file_name": names[7]}
    read = load_hico_det(save(tmp_path / "test_hico.json", document), "test", images=False)
    assert len(read) == 9_658
    assert read.image_id.tolist() == sorted(read.image_id.tolist())
    assert read.image_id[read.pair_image()].tolist() == [names[7]]
    assert len(load_hico_det(save(tmp_path / "part.json", document[:-1]), "test", images=False)) == 9_545


def _instances(change):
    document = instances("test")
    change(document)
    return document


def _ppdm(change):
    document = sorted(ppdm("test"), key=lambda record: record["file_name"])
    change(document)
    return document


def _pair(key, value):
    def change(document):
        document[0]["hoi_annotation"][0][key] = value

    return change


def _box(value):
    def change(document):
        document["annotation"][0]["boxes_h"][0] = value

    return change


BAD_FILES = {
    "cut short": ('{"annotation": [', "JSON"),
    "binary": (b"\x89PNG\xff\xfe\x00", "JSON"),
    "a number": ("7", "it should be"),
    "no list of names": (_instances(lambda d: d.pop("filenames")), "no list 'filenames'"),
    "fewer sizes": (_instances(lambda d: d["size"].pop()), "4, 4 and 3 entries"),
    "unknown object name": (_instances(lambda d: d["objects"].__setitem__(9, "unicorn")), "names 'unicorn'"),
    "misspelt object name": (
        _instances(lambda d: d["objects"].__setitem__(9, "boatt")),
        "names 'boatt', which HICO-DET does not have (did you mean boat?)",
    ),
    "misspelt verb name": (_instances(lambda d: d["verbs"].__setitem__(0, "adjsut")), "(did you mean adjust?)"),
    "correspondence out of range": (_instances(lambda d: d["correspondence"].append([600, 3, 3])), "correspondence [600"),
    "no such class": (_instances(lambda d: d["correspondence"].__setitem__(0, [0, 1, 0])), "adjust apple is no class"),
    "the other split": (instances("train"), "those of the train split"),
}  # fmt: skip
BAD_ENTRIES = {
    "lengths differ": (_instances(lambda d: d["annotation"][0]["boxes_o"].pop()), ["entry 1", "boxes_o 3"], 2),
    "a key is missing": (_instances(lambda d: d["annotation"][2].pop("hoi")), ["entry 3", "no key 'hoi'"], 5),
    "outside": (_instances(_box([1, 1, 65, 40])), ["entry 1", "human box (1, 1, 65, 40)", "64 x 48"], 5),
    "before the first pixel": (_instances(_box([0, 1, 20, 40])), ["entry 1", "human box", "1-based"], 5),
    "inverted": (_instances(_box([20, 1, 1, 40])), ["entry 1", "human box", "empty"], 5),
    "NaN": (_instances(_box([float("nan"), 1, 20, 40])), ["entry 1", "not four finite numbers"], 5),
    "three numbers": (_instances(_box([1, 1, 20])), ["entry 1", "not four finite numbers"], 5),
    "unknown class": (
        _instances(lambda d: d["annotation"][2]["hoi"].__setitem__(0, 600)),
        ["entry 3", "unknown interaction 600; 0 to 599"],
        5,
    ),
    "class of another verb": (
        _instances(lambda d: d["annotation"][3]["verb"].__setitem__(0, 5)),
        ["entry 4", "the pair says object"],
        5,
    ),
    "repeated image": (
        _instances(lambda d: d["filenames"].__setitem__(3, d["filenames"][2])),
        ["entry 4 repeats", "00000003.jpg of entry 3"],
        5,
    ),
    "subject out of range": (_ppdm(_pair("subject_id", 9)), ["entry 1", "subject_id 9 is none of its 4 boxes"], 5),
    "object out of range": (_ppdm(_pair("object_id", -1)), ["entry 1", "object_id -1"], 5),
    "subject no person": (_ppdm(_pair("subject_id", 1)), ["entry 1", "subject_id 1 is not a person"], 5),
    "unknown verb": (_ppdm(_pair("category_id", 118)), ["entry 1", "unknown verb 118"], 5),
    "verb and object no class": (_ppdm(_pair("category_id", 1)), ["entry 1", "adjust bicycle is no class"], 5),
    "class of other words": (_ppdm(_pair("hoi_category_id", 3)), ["entry 1", "hoi_category_id 3"], 5),
    "unknown category": (
        _ppdm(lambda d: d[0]["annotations"][1].update(category_id=12)),
        ["entry 1", "unknown category_id 12"],
        3,
    ),
    "no bbox": (_ppdm(lambda d: d[0]["annotations"][1].pop("bbox")), ["entry 1", "no key 'bbox'"], 2),
    "no file name": (_ppdm(lambda d: d[0].pop("file_name")), ["entry 1", "no str 'file_name'"], 2),
    "bbox is text": (
        _ppdm(lambda d: d[0]["annotations"][2].update(bbox="all of it")),
        ["entry 1", "not four finite numbers"],
        4,
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named(tmp_path, kind):
    content, said = BAD_FILES[kind]
    file = tmp_path / "x.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        save(file, content)
    for lenient in (False, True):
        with pytest.raises(UserError) as error:
            load_hico_det(file, "test", images=False, lenient=lenient)
        assert str(error.value).startswith(str(file))
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_a_bad_entry_is_named_and_leniently_dropped(tmp_path, kind):
    document, said, left = BAD_ENTRIES[kind]
    file = save(tmp_path / "x.json", document)
    with pytest.raises(UserError) as error:
        load_hico_det(file, "test", images=False)
    for part in ("x.json", *said):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    read = load_hico_det(file, "test", images=False, lenient=True)
    assert len(read.hoi) == left
    assert read.dropped >= 1
    assert read.pair_offsets[-1] == left


def test_a_missing_image_is_named(tmp_path):
    root = write(tmp_path, "ppdm")
    (root / "images/test2015/HICO_test2015_00000003.jpg").unlink()
    with pytest.raises(UserError, match=r"no image .*00000003\.jpg"):
        load_hico_det(root, "test")
    assert len(load_hico_det(root, "test", lenient=True)) == 3


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_published_files_give_published_counts_in_seconds():
    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det")
    started = time.process_time()
    train, test = (load_hico_det(root, split, images=False) for split in ("train", "test"))
    assert time.process_time() - started < 5
    assert (len(train), len(test)) == (38_118, 9_658)
    assert (len(train.hoi), len(test.hoi)) == (117_654, 33_405)
    assert [(np.diff(read.pair_offsets) > 0).sum() for read in (train, test)] == [37_633, 9_546]
    assert (np.bincount(train.hoi, minlength=600) < 10).sum() == 138
    assert train.image_hois is not None
    assert train.image_hois.shape == (38_118, 600)
