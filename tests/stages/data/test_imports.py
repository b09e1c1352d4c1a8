"""Annotations of other programs: each form says the same, and what is wrong in it is one line with its place."""

from __future__ import annotations

import copy
import json

import pytest
from PIL import Image

from hoi_distill.stages.data.folder import load_annotated_folder
from hoi_distill.stages.data.imports.own_form import own_form, read_annotations
from hoi_distill.storage.errors import UserError

HEAD = "image,verb,object,human_x1,human_y1,human_x2,human_y2,object_x1,object_y1,object_x2,object_y2,split\n"
ROWS = [
    "a.jpg,ride,Bicycle,0,0,20,40,10,5,60,45,train",
    "a.jpg,hold,bicycle,0,0,20,40,10,5,60,45,",
    "day/b.jpg,,,,,,,,,,,",
    "c.jpg,ride,bicycle,0,0,20,40,10,5,64,48,test",
]
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "split": "train"}, {"id": 2, "file_name": "day/b.jpg"},
               {"id": 3, "file_name": "c.jpg", "split": "test"}, {"id": 4, "file_name": "d.jpg"}],
    "categories": [{"id": 5, "name": "person"}, {"id": 7, "name": "Bicycle"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 20, 40]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [10, 5, 50, 40]},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [10, 5, 50, 40]},
        {"id": 4, "image_id": 3, "category_id": 5, "bbox": [0, 0, 20, 40]},
        {"id": 5, "image_id": 3, "category_id": 7, "bbox": [10, 5, 54, 43]},
    ],
    "interactions": [
        {"subject_id": 1, "object_id": 2, "verb": "ride"},
        {"subject_id": 1, "object_id": 2, "verb": "hold"},
        {"subject_id": 4, "object_id": 5, "verb": "ride"},
    ],
}  # fmt: skip
CVAT = """<?xml version="1.0"?><annotations><version>1.1</version>
<image id="0" name="a.jpg" subset="Train" width="64" height="48">
 <box label="bicycle" xtl="10" ytl="5" xbr="60" ybr="45" group_id="1"><attribute name="verb">ride, hold</attribute></box>
 <box label="Person" xtl="0" ytl="0" xbr="20" ybr="40" group_id="1"/>
 <box label="person" xtl="30" ytl="0" xbr="40" ybr="40" group_id="2"/></image>
<image id="1" name="b.jpg"><box label="person" xtl="1" ytl="1" xbr="9" ybr="9"/></image>
<image id="2" name="c.jpg" subset="Test"><box label="person" xtl="0" ytl="0" xbr="20" ybr="40"/>
 <box label="bicycle" xtl="10" ytl="5" xbr="64.4" ybr="48"><attribute name="verb">ride</attribute></box></image>
<image id="3" name="d.jpg"/></annotations>"""


def _region(number, label, x, y, width, height):
    value = {"x": x / 0.64, "y": y / 0.48, "width": width / 0.64, "height": height / 0.48, "rotation": 0}
    return {
        "id": number, "type": "rectanglelabels", "original_width": 64, "original_height": 48,
        "value": {**value, "rectanglelabels": [label]},
    }  # fmt: skip


def _task(image, split, *result):
    return {"id": 1, "data": {"image": image, "split": split}, "annotations": [{"result": list(result)}]}


HUMAN, BICYCLE = _region("h", "person", 0, 0, 20, 40), _region("o", "bicycle", 10, 5, 50, 40)
DOES = {"type": "relation", "from_id": "o", "to_id": "h", "direction": "left", "labels": ["ride", "hold"]}
TASKS = [
    _task("/data/upload/3/0a1b2c3d-a.jpg", "train", HUMAN, BICYCLE, DOES),
    _task("/data/local-files/?d=day/b.jpg", "train", HUMAN),
    _task("http://images.org/c.jpg?x=1", "test", HUMAN, _region("o", "bicycle", 10, 5, 54, 43), {**DOES, "labels": ["ride"]}),
    {"id": 4, "data": {"image": "d.jpg"}, "annotations": [{"was_cancelled": True, "result": []}]},
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for name in ("a.jpg", "day/b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    return tmp_path


def written(root, name, content):
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return root / name


def imported(root, path, words=None, test=0.0):
    return own_form(read_annotations(path), root / "images", words, test)


FORMS = [("x.csv", HEAD + "\n".join(ROWS)), ("x.json", COCO), ("x.json", TASKS), ("x.xml", CVAT)]


@pytest.mark.parametrize(("name", "content"), FORMS, ids=("csv", "coco", "label-studio", "cvat"))
def test_every_form_becomes_the_same_annotations(root, name, content):
    found = imported(root, written(root, name, content))
    pairs = {record["file_name"]: record["pairs"] for record in found.pictures}
    assert list(pairs) == ["a.jpg", "day/b.jpg", "c.jpg"]  # d.jpg was not looked at
    assert {verb for pair in pairs["a.jpg"] for verb in pair["verbs"]} == {"ride", "hold"}
    for pair in (*pairs["a.jpg"], *pairs["c.jpg"]):
        assert pair["human_box"] == [0, 0, 20, 40]
        assert pair["object"] == "bicycle"
    assert pairs["a.jpg"][0]["object_box"] == [10, 5, 60, 45]
    assert pairs["c.jpg"][0]["object_box"] == [10, 5, 64, 48]  # cut to the image
    assert pairs["day/b.jpg"] == []
    assert (found.images("train"), found.images("test"), found.pairs()) == (2, 1, 3)
    assert [found.vocabulary.hoi_name(hoi) for hoi in range(2)] == [("hold", "bicycle"), ("ride", "bicycle")]
    found.vocabulary.save(root / "vocabulary.json")
    own = written(root, "own.json", {"vocabulary": "vocabulary.json", "pictures": found.pictures})
    train = load_annotated_folder(own, "train", root=root / "images")
    assert train.image_id.tolist() == ["a.jpg", "day/b.jpg", "d.jpg"]
    assert train.listed.tolist() == [True, True, False]
    assert len(train.hoi) == 2


def test_where_no_image_names_a_split_a_share_is_tested_on(root):
    rows = [row.rsplit(",", 1)[0] + "," for row in ROWS]
    found = imported(root, written(root, "x.csv", HEAD + "\n".join(rows)), test=0.4)
    again = imported(root, written(root, "y.csv", HEAD + "\n".join(rows[::-1])), test=0.4)
    tested = {record["file_name"] for record in found.pictures if record["split"] == "test"}
    assert len(tested) == 1
    assert tested == {record["file_name"] for record in again.pictures if record["split"] == "test"}


def _with(document, *path, value):
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


WRONG = [
    ("x.csv", HEAD, "no row below the names of the columns"),
    ("x.csv", HEAD.replace("verb", "verbs") + ROWS[0], r"row 1: no column verb \(did you mean verbs\?\)"),
    ("x.csv", HEAD.replace("split", "spilt") + ROWS[0], "row 1: unknown column 'spilt'"),
    ("x.csv", HEAD + ROWS[0].replace(",0,0,20", ",0,zero,20"), "row 2: human_y1 is 'zero'; a number of pixels"),
    ("x.csv", HEAD + "\n\n" + ROWS[0].replace(",0,0,20", ",0,zero,20"), "row 4: human_y1 is 'zero'"),
    ("x.csv", HEAD + ROWS[0].replace("0,0,20,40", "20,0,0,40"), "row 2: the human box 20, 0, 0, 40 is empty"),
    (
        "x.csv",
        HEAD + ROWS[0].replace("60,45", "640,450"),
        "row 2: the object's box .* reaches beyond the 64 x 48 image",
    ),
    ("x.csv", HEAD + ROWS[0].replace("ride", ""), "row 2: no verb; fill the cell"),
    ("x.csv", HEAD + ROWS[0].replace("a.jpg", "aa.jpg"), r"row 2: no image aa.jpg in .*\(did you mean a.jpg\?\)"),
    ("x.csv", HEAD + ROWS[0].replace("train", "val"), "row 2: split 'val'; there are train and test"),
    ("x.csv", HEAD + ROWS[0] + ",7", "row 2: more cells than columns"),
    (
        "x.json",
        _with(COCO, "annotations", 0, "image_id", value=9),
        "annotations, entry 1: image_id 9 is no id of images",
    ),
    (
        "x.json",
        _with(COCO, "interactions", 1, "subject_id", value=2),
        "interactions, entry 2: the subject 2 is a bicycle",
    ),
    ("x.json", _with(COCO, "interactions", 0, "object_id", value=5), "subject 1 and object 5 are of two images"),
    ("x.json", _with(COCO, "annotations", 1, "bbox", value=[1, 2]), r"annotations, entry 2: bbox is \[1, 2\]"),
    ("x.json", {**COCO, "interactions": None}, "interactions is no list"),
    ("x.json", {key: COCO[key] for key in ("images", "categories", "annotations")}, "no list 'interactions'"),
    ("x.json", _with(COCO, "images", 1, "id", value=1), "images, entry 2: id 1 is that of entry 1"),
    ("x.json", _with(TASKS, 0, "annotations", 0, "result", 2, "labels", value=[]), "task 1, relation o to h: no label"),
    (
        "x.json",
        _with(TASKS, 0, "annotations", 0, "result", 2, "to_id", value="z"),
        "relation o to z: z is no rectangle",
    ),
    ("x.json", _with(TASKS, 0, "annotations", 0, "result", 0, "value", "rotation", value=9), "region h: turned by 9"),
    ("x.json", _with(TASKS, 0, "annotations", value=[{}, {}]), "task 1: 2 annotations of one image; keep one"),
    ("x.xml", CVAT.replace('group_id="1"/>', 'group_id="3"/>'), "image a.jpg, box 1: no people in group 1 to ride it"),
    ("x.xml", CVAT[:-20], "not readable as XML"),
    (
        "x.xml",
        CVAT.replace('xtl="10"', 'xtl="ten"', 1),
        "image a.jpg, box 1: xtl, ytl, xbr and ybr are not four numbers",
    ),
    ("x.json", {"a": 1}, "none of the forms that are known; annotations are a CSV table"),
    ("x.json", {"pictures": []}, "in the project's own form already"),
    ("x.json", [], "no image in it is annotated"),
]


@pytest.mark.parametrize(("name", "content", "said"), WRONG)
def test_what_is_wrong_is_one_line_with_its_place(root, name, content, said):
    path = written(root, name, content)
    with pytest.raises(UserError, match=said) as refusal:
        imported(root, path)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)
