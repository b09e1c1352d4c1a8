"""Detections that others wrote are read, those that others read are written, and bad files are refused in one line."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS
from hoi_distill.stages.data.object_detections import load_detections
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.coco_results import write_coco_results
from hoi_distill.stages.evaluate.formats.hico_mat import write_hico_mat
from hoi_distill.stages.evaluate.formats.parquet import read_detections, write_detections
from hoi_distill.stages.evaluate.formats.pocket_mat import read_pocket_mat
from hoi_distill.stages.evaluate.formats.qpic_json import read_qpic_json
from hoi_distill.stages.evaluate.formats.v_coco_json import write_v_coco_json
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
from hoi_distill.stages.evaluate.metrics.v_coco import from_triplets
from hoi_distill.storage.errors import UserError
from tests.fixtures.small_disk import small_disk

INCLUSIVE = np.array([0, 0, -1, -1])
BALL, BICYCLE = 32, 1


@pytest.fixture
def found(annotations: Annotations, perfect: HoiDetections) -> HoiDetections:
    """Each annotated pair twice, the second time lower-scored, smaller and a fraction of a pixel off."""
    twice = np.sort(np.tile(np.arange(len(perfect)), 2))
    columns = {field.name: getattr(perfect, field.name)[twice] for field in fields(perfect)}
    columns["score"][1::2] /= 2
    columns["object_box"][1::2] -= np.float32([-1.5, 0, 0.25, 2])
    return HoiDetections(**columns)


def same(one: HoiDetections, other: HoiDetections) -> None:
    """``one``, read of a form that holds double precision, is ``other``."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(a, b, err_msg=field.name)
        assert a.dtype == (np.float64 if field.name == "score" else b.dtype), field.name


def as_images(annotations: Annotations, found: HoiDetections, style: str, shift: int = 0) -> list[dict[str, Any]]:
    """What PPDM, QPIC or GEN-VLKT would have written; boxes inclusive, zero-based plus ``shift``."""
    images = []
    for image, name in enumerate(annotations.image_id.tolist()):
        boxes, triplets = [], []
        for row in np.flatnonzero(found.image == image):
            thing, verb = int(found.object[row]), int(found.verb[row])
            for box, label in ((found.human_box[row], 0), (found.object_box[row], thing)):
                boxes.append({"bbox": (box + INCLUSIVE + shift).tolist()})
                if style != "genvlkt":
                    boxes[-1]["category_id"] = COCO_CATEGORY_IDS[label] if style == "ppdm" else label
            class_id = {"ppdm": verb + 1, "qpic": verb, "genvlkt": int(found.hoi[row])}[style]
            ids = {"subject_id": len(boxes) - 2, "object_id": len(boxes) - 1, "category_id": class_id}
            triplets.append({**ids, "score": float(found.score[row])})
        key = "file_name" if style == "ppdm" else "filename"
        images.append({key: name, "predictions": boxes, "hoi_prediction": triplets})
    return images


def as_truths(annotations: Annotations, shift: int) -> list[dict[str, Any]]:
    images = []
    for image, name in enumerate(annotations.image_id.tolist()):
        rows = annotations.pairs(image)
        boxes = np.concatenate([annotations.human_box[rows], annotations.object_box[rows]]) + INCLUSIVE + shift
        images.append({"filename": name, "annotations": [{"bbox": box, "category_id": 0} for box in boxes.tolist()]})
    return images


@pytest.mark.parametrize("style", ["ppdm", "qpic", "genvlkt"])
def test_json_of_each_kind_is_read(style: str, tmp_path: Path, annotations: Annotations, found: HoiDetections):
    images = as_images(annotations, found, style)
    file = tmp_path / "found.json"
    file.write_text(json.dumps(images if style == "ppdm" else json.dumps({"preds": images})))
    same(read_qpic_json(file, annotations), found)


CLOSE = np.array([0.99999999, 0.99999998, 1e40, 1e-60, 1e-61, 2.0**-40, 0.1, np.nextafter(0.1, 1), -1e300, 3])
"""Distinct finite scores, some of which single precision takes for equal, for zero or for infinite."""


@pytest.mark.parametrize("form", ["parquet", "ppdm", "qpic", "genvlkt", "mat", "qpic as text"])
def test_distinct_scores_stay_distinct_in_every_form(
    form: str, tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    found, words = replace(found, score=CLOSE), annotations.vocabulary
    file = tmp_path / "found"
    if form == "parquet":
        write_detections(file, found, annotations.image_id)
        read = read_detections(file, annotations.image_id, words)
    elif form == "mat":
        write_hico_mat(file, found, words, len(annotations))
        read = read_pocket_mat(file, annotations.image_id, words)
        found = replace(found, score=CLOSE[np.lexsort((found.hoi, found.image))])
    else:
        images = as_images(annotations, found, form.split()[0])
        file.write_text(json.dumps(str({"preds": images}) if "text" in form else images))
        read = read_qpic_json(file, annotations)
    np.testing.assert_array_equal(read.score, found.score)


def test_close_scores_rank_as_others_do(tmp_path: Path, annotations: Annotations, perfect: HoiDetections):
    """Right detections score just above wrong ones that are stored first."""
    twice = np.concatenate([np.arange(len(perfect))] * 2)
    columns = {field.name: getattr(perfect, field.name)[twice] for field in fields(perfect)}
    columns["human_box"][: len(perfect)] += 50
    scores = [np.where(np.arange(len(twice)) < len(perfect), *pair) for pair in ((0.1, 0.9), (0.99999998, 0.99999999))]
    figures = []
    for score in scores:
        file = tmp_path / "found.json"
        file.write_text(json.dumps(as_images(annotations, HoiDetections(**{**columns, "score": score}), "qpic")))
        figures.append(evaluate_hico_det(annotations, read_qpic_json(file, annotations), np.zeros(3, bool)).default)
    assert figures[0] == figures[1]
    assert figures[0]["full"] == 100


@pytest.mark.parametrize("shift", [0, 1])
def test_a_dumped_python_dict_is_read_in_the_frame_of_its_own_annotations(
    shift: int, tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    preds = as_images(annotations, found, "qpic", shift)
    for image in preds:
        for triplet in image["hoi_prediction"]:
            triplet["score"] = np.float64(triplet["score"])  # its text is np.float64(0.5)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(str({"preds": preds, "gts": as_truths(annotations, shift)})))
    assert "np.float64(" in file.read_text()
    same(read_qpic_json(file, annotations), found)


@pytest.mark.parametrize("odd", ["a quote in a name", "None", "a tuple", "a trailing comma"])
def test_the_text_of_a_python_dict_need_not_be_json_but_for_its_quotes(
    odd: str, tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    if odd == "a quote in a name":
        annotations = replace(annotations, image_id=np.array(["a's.jpg", 'b"s.jpg', "c.jpg", "d.jpg"]))
    images: Any = as_images(annotations, found, "qpic")
    for image in images:
        if odd == "None":
            image["remark"] = None
        if odd == "a tuple":
            for box in image["predictions"]:
                box["bbox"] = tuple(box["bbox"])
    text = str({"preds": images, "gts": []})
    file = tmp_path / "results.json"
    file.write_text(json.dumps(f"{text[:-1]},}}" if odd == "a trailing comma" else text))
    same(read_qpic_json(file, annotations), found)


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "{'preds': [1] * 9}", "{'preds': " + "[" * 99_999, "[" * 999]
)
def test_the_text_of_anything_else_is_not_run(text: str, tmp_path: Path, annotations: Annotations):
    (tmp_path / "results.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"results\.json: not readable as JSON") as refusal:
        read_qpic_json(tmp_path / "results.json", annotations)
    assert "\n" not in str(refusal.value)


def test_the_frame_of_boxes_can_be_named(tmp_path: Path, annotations: Annotations, found: HoiDetections):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(as_images(annotations, found, "ppdm", shift=1)))
    same(read_qpic_json(file, annotations, "one_based"), found)
    np.testing.assert_array_equal(
        read_qpic_json(file, annotations, "half_open").human_box, found.human_box + [1, 1, 0, 0]
    )
    with pytest.raises(UserError, match="boxes are not inclusive; they are zero_based, one_based, half_open"):
        read_qpic_json(file, annotations, "inclusive")


def test_a_verb_and_an_object_that_are_no_class_are_left_out(
    tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    images = as_images(annotations, found, "qpic")
    images[2]["hoi_prediction"][0]["category_id"] = 0  # hold bicycle: the small vocabulary has no such class
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"preds": images}))
    assert len(read_qpic_json(file, annotations)) == len(found) - 1
    for image in images:
        for triplet in image["hoi_prediction"]:
            triplet["object_id"] = 0
    file.write_text(json.dumps({"preds": images}))
    with pytest.raises(UserError, match=r"entry 1 \(a.jpg\): hoi_prediction 1 and most others have a verb and an obj"):
        read_qpic_json(file, annotations)


def edit(image: int, key: str, row: int, **values: Any):
    def change(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images[image][key][row].update(values)
        return images

    return change


def without(key: str):
    def change(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        del images[1][key]
        return images

    return change


BAD_JSON = {
    "no list": (lambda p: {"pictures": p}, "neither a list of images nor a dict"),
    "an entry that is no record": (lambda p: [*p, 3], "entry 5: needs file_name"),
    "no name": (without("file_name"), "entry 2: needs file_name"),
    "no predictions": (without("predictions"), "entry 2: needs file_name, and lists of records as predictions"),
    "unknown image": (lambda p: [*p, {**p[0], "file_name": "z.jpg"}], "entry 5: file_name 'z.jpg' is no image"),
    "an image twice": (lambda p: [*p, p[0]], "entry 5: 'a.jpg' is entry 1 already"),
    "three corners": (edit(1, "predictions", 0, bbox=[1, 2, 3]), "entry 2 (b.jpg): predictions 1 needs bbox"),
    "NaN in a box": (edit(1, "predictions", 3, bbox=[1, 2, 3, float("nan")]), "predictions 4 needs bbox"),
    "x, y, width, height": (edit(1, "predictions", 0, bbox=[50, 50, 9, 9]), "predictions 1 ends before it begins"),
    "no score": (edit(2, "hoi_prediction", 1, score=None), "entry 3 (c.jpg): hoi_prediction 2 needs subject_id"),
    "infinite score": (edit(2, "hoi_prediction", 1, score=float("inf")), "hoi_prediction 2 needs subject_id"),
    "half a box": (edit(0, "hoi_prediction", 0, object_id=0.5), "hoi_prediction 1 has an id that is not a whole"),
    "a huge box": (edit(0, "hoi_prediction", 0, object_id=2**70), "hoi_prediction 1 has an id that is not a whole"),
    "a box too large for any image": (edit(1, "predictions", 0, bbox=[1, 2, 1e40, 9]), "predictions 1 needs bbox with four"),
    "a number beyond all floats": (edit(1, "predictions", 0, bbox=[1, 2, 10**400, 9]), "predictions 1 needs bbox with four"),
    "a box that is not there": (edit(1, "hoi_prediction", 0, object_id=4), "hoi_prediction 1 points to a box that"),
    "a negative box": (edit(1, "hoi_prediction", 0, subject_id=-1), "hoi_prediction 1 points to a box that"),
    "text for a category": (edit(0, "predictions", 1, category_id="ball"), "predictions 2 needs a whole number"),
    "an object as person": (edit(1, "hoi_prediction", 1, subject_id=3), "subject_id whose category is not 1, a person"),
    "unknown object": (edit(1, "predictions", 1, category_id=12), "object_id of an unknown category; they are 1 to 90"),
    "verbs from 0": (edit(0, "hoi_prediction", 2, category_id=0), "has an unknown verb as category_id; they are 1 to 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused_in_one_line(case: str, tmp_path: Path, annotations: Annotations, found: HoiDetections):
    change, complaint = BAD_JSON[case]
    file = tmp_path / "found.json"
    file.write_text(json.dumps(change(copy.deepcopy(as_images(annotations, found, "ppdm")))))
    with pytest.raises(UserError) as refusal:
        read_qpic_json(file, annotations)
    line = str(refusal.value)
    assert line.startswith(str(file))
    assert complaint in line
    assert "\n" not in line


def test_what_is_no_json_and_unknown_interactions_are_refused(
    tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    file = tmp_path / "found.json"
    with pytest.raises(UserError, match="cannot be read"):
        read_qpic_json(file, annotations)
    for text in ("{'preds': []}", json.dumps("{'preds': [array"), ""):
        file.write_text(text)
        with pytest.raises(UserError, match="not readable as JSON"):
            read_qpic_json(file, annotations)
    images = as_images(annotations, found, "genvlkt")
    images[1]["hoi_prediction"][0]["category_id"] = 3
    file.write_text(json.dumps(images))
    with pytest.raises(UserError, match=r"hoi_prediction 1 has an unknown interaction as category_id; they are 0 to 2"):
        read_qpic_json(file, annotations)


@pytest.fixture
def mat(tmp_path: Path, annotations: Annotations, found: HoiDetections) -> Path:
    write_hico_mat(tmp_path / "mat", found, annotations.vocabulary, len(annotations))
    return tmp_path / "mat"


def test_official_mat_files_have_the_official_layout(mat: Path, found: HoiDetections):
    assert sorted(file.name for file in mat.iterdir()) == ["detections_02.mat", "detections_33.mat"]
    cells = loadmat(mat / "detections_33.mat")["all_boxes"]
    assert cells.shape == (2, 4), "holding and throwing a ball; four images"
    assert [[cell.shape for cell in row] for row in cells] == [
        [(2, 9), (2, 9), (0, 0), (0, 0)],
        [(2, 9), (0, 0), (0, 0), (0, 0)],
    ]
    rows = np.flatnonzero((found.hoi == 0) & (found.image == 0))
    expected = np.concatenate([found.human_box[rows] + INCLUSIVE, found.object_box[rows] + INCLUSIVE], 1)
    np.testing.assert_array_equal(cells[0, 0][:, :8], expected)
    np.testing.assert_array_equal(cells[0, 0][:, 8].astype(np.float32), found.score[rows])


def test_mat_files_come_back(mat: Path, annotations: Annotations, found: HoiDetections):
    order = np.lexsort((found.hoi, found.image))
    expected = HoiDetections(**{field.name: getattr(found, field.name)[order] for field in fields(found)})
    same(read_pocket_mat(mat, annotations.image_id, annotations.vocabulary), expected)


def test_mat_files_that_others_write_are_read(mat: Path, annotations: Annotations):
    for file in mat.iterdir():  # scipy's own writer, single precision, as UPT and PViC use it
        cells = loadmat(file)["all_boxes"]
        for place in np.ndindex(cells.shape):
            cells[place] = cells[place].astype(np.float32) if cells[place].size else np.zeros((0, 0))
        savemat(file.with_name("again.mat"), {"all_boxes": cells})
        again = read_pocket_mat(mat, annotations.image_id, annotations.vocabulary)
        file.with_name("again.mat").replace(file)
        same(read_pocket_mat(mat, annotations.image_id, annotations.vocabulary), again)


def test_nothing_detected_is_written_and_read(tmp_path: Path, annotations: Annotations, found: HoiDetections):
    nothing = HoiDetections(**{field.name: getattr(found, field.name)[:0] for field in fields(found)})
    write_hico_mat(tmp_path, nothing, annotations.vocabulary, len(annotations))
    assert len(read_pocket_mat(tmp_path, annotations.image_id, annotations.vocabulary)) == 0
    assert write_coco_results(tmp_path / "none.json", nothing, annotations.image_id, annotations.vocabulary) == 0


def rewritten(cells: np.ndarray | None = None, name: str = "all_boxes", **places: np.ndarray):
    def change(file: Path) -> None:
        new = loadmat(file)["all_boxes"] if cells is None else cells
        for value in places.values():
            new[0, 0] = value
        savemat(file, {name: new})

    return change


ROW = np.array([[0, 0, 9, 9, 5, 5, 9, 9, 0.5]])
BAD_MAT = {
    "missing file": (Path.unlink, "there is no such file"),
    "no mat": (lambda file: file.write_text("all_boxes"), "not a readable MAT-file"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:300]), "not a readable MAT-file"),
    "another variable": (rewritten(name="dets"), "there is no variable all_boxes"),
    "a flat table": (rewritten(np.zeros((5, 9))), "is a table of numbers, not a cell array"),
    "objects in another order": (rewritten(np.full((1, 4), "", object)), "all_boxes has 1 rows, but sports_ball has 2"),
    "images with pairs only": (rewritten(np.full((2, 3), "", object)), "all_boxes has 3 columns, but the split has 4"),
    "eight columns": (rewritten(a=ROW[:, :8]), "all_boxes{1, 1} is float64 [1, 8]; it must be n x 9"),
    "text": (rewritten(a="boxes"), "all_boxes{1, 1} is <U5 [1]; it must be n x 9"),
    "NaN": (rewritten(a=ROW * np.nan), "all_boxes{1, 1} (a.jpg) holds a number that is not finite"),
    "inverted box": (rewritten(a=-ROW), "all_boxes{1, 1} (a.jpg) holds a box that ends before it begins"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MAT)
def test_bad_mat_files_are_refused_in_one_line(case: str, mat: Path, annotations: Annotations):
    change, complaint = BAD_MAT[case]
    change(mat / "detections_33.mat")
    with pytest.raises(UserError) as refusal:
        read_pocket_mat(mat, annotations.image_id, annotations.vocabulary)
    line = str(refusal.value)
    assert line.startswith(str(mat / "detections_33.mat"))
    assert complaint in line
    assert "\n" not in line


def test_a_folder_that_is_not_there(tmp_path: Path, annotations: Annotations, found: HoiDetections):
    with pytest.raises(UserError, match="no such folder"):
        read_pocket_mat(tmp_path / "none", annotations.image_id, annotations.vocabulary)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_hico_mat(tmp_path / "file", found, annotations.vocabulary, 4)
    with pytest.raises(UserError, match="cannot be written"):
        write_coco_results(tmp_path / "file" / "x.json", found, annotations.image_id, annotations.vocabulary)


@pytest.mark.parametrize("kind", ["mat", "coco", "v-coco"])
def test_where_the_disk_runs_full_no_half_file_is_left_and_older_ones_stay(
    kind: str, tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    def write(rows: HoiDetections) -> None:
        if kind == "mat":
            write_hico_mat(tmp_path, rows, annotations.vocabulary, len(annotations))
        elif kind == "coco":
            write_coco_results(tmp_path / "boxes.json", rows, annotations.image_id, annotations.vocabulary)
        else:
            write_v_coco_json(tmp_path / "persons.json", from_triplets(rows), ["1", "2", "3", "4"])

    write(HoiDetections(**{field.name: getattr(found, field.name)[:1] for field in fields(found)}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    largest = max(map(len, before.values()))
    with small_disk(largest + 1), pytest.raises((UserError, OSError)):
        write(found)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_coco_results_hold_every_box_once_with_its_highest_score(
    tmp_path: Path, annotations: Annotations, found: HoiDetections
):
    file = tmp_path / "boxes.json"
    count = write_coco_results(file, found, annotations.image_id, annotations.vocabulary)
    boxes = json.loads(file.read_text())
    assert count == len(boxes)
    assert boxes[0] == {"image_id": "a.jpg", "category_id": 1, "bbox": [0, 0, 9, 9], "score": float(found.score[0])}
    keys = [(box["image_id"], box["category_id"], tuple(box["bbox"])) for box in boxes]
    assert len(set(keys)) == len(keys) == 15, "five humans, each detected twice; ten objects"
    assert {box["category_id"] for box in boxes} == {1, COCO_CATEGORY_IDS[BALL], COCO_CATEGORY_IDS[BICYCLE]}
    back = load_detections(file, annotations)
    assert np.diff(back.offsets).tolist() == [6, 3, 6, 0]
    assert sorted(back.labels[back.of(2)].tolist()) == [0, 0, 1, 1, 1, 1]


def test_images_that_are_numbers_stay_numbers(tmp_path: Path, annotations: Annotations, found: HoiDetections):
    write_coco_results(tmp_path / "boxes.json", found, ["17", "4", "999", "5"], annotations.vocabulary)
    assert {box["image_id"] for box in json.loads((tmp_path / "boxes.json").read_text())} == {17, 4, 999}
