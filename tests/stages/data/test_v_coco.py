"""V-COCO's files: read where people have them, boxes and slots as they should be, and bad entries named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.v_coco.loader import (
    ACTIONS,
    ROLES,
    SLOTS,
    load_v_coco,
    load_v_coco_people,
    v_coco_vocabulary,
)
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError
from tests.fixtures.v_coco_files import CUP, HEIGHT, PAIRS, PERSON, WIDTH, official, write

REAL = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere")) / "data" / "v_coco"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="HOI_DISTILL_REFERENCE_DATA holds no data/v_coco")


def action(content: dict[str, Any], name: str) -> dict[str, Any]:
    return content["verbs"][ACTIONS.index(name)]


def test_there_are_26_actions_29_slots_and_25_roles():
    assert (len(ACTIONS), len(SLOTS), len(ROLES)) == (26, 29, 25)
    assert SLOTS[:8] == ("hold_obj", "stand", "sit_instr", "ride_instr", "walk", "look_obj", "hit_instr", "hit_obj")
    assert set(SLOTS) - set(ROLES) == {"stand", "walk", "run", "smile"}


def test_the_vocabulary_has_the_slots_as_verbs_and_reads_well():
    vocabulary = v_coco_vocabulary()
    assert vocabulary.verbs == SLOTS
    assert len(vocabulary) == 234
    said = {f"{vocabulary.hoi_name(hoi)}": vocabulary.prompt(hoi) for hoi in range(len(vocabulary))}
    for pair, doing in {
        ("hit_instr", "tennis_racket"): "hitting with a tennis racket",
        ("eat_instr", "fork"): "eating with a fork",
        ("sit_instr", "elephant"): "sitting on an elephant",
        ("ski_instr", "skis"): "skiing on a pair of skis",
        ("work_on_computer_instr", "laptop"): "working on a laptop",
        ("talk_on_phone_instr", "cell_phone"): "talking on a cell phone",
        ("look_obj", "person"): "looking at another person",
        ("drink_instr", "wine_glass"): "drinking from a wine glass",
    }.items():
        assert said[str(pair)] == f"a photo of a person {doing}"


def test_combinations_need_not_be_those_that_are_annotated(tmp_path):
    every = v_coco_vocabulary("all")
    assert (every.verbs, every.objects) == (v_coco_vocabulary().verbs, v_coco_vocabulary().objects)
    assert len(every) == len(set(every.prompts())) == len(every.questions()) == 25 * 80
    assert not np.isin(every.hois[:, 0], [SLOTS.index(slot) for slot in ("stand", "walk", "run", "smile")]).any()
    root = write(tmp_path, official())
    found, other = (
        load_v_coco(root, "train", images=False),
        load_v_coco(root, "train", images=False, combinations="all"),
    )
    assert [every.hoi_name(hoi) for hoi in other.hoi[:2]] == [found.vocabulary.hoi_name(hoi) for hoi in found.hoi[:2]]
    assert (other.hoi >= 0).tolist() == [True, True, False, False]
    some = tmp_path / "some.json"
    Vocabulary(every.objects, every.verbs, every.hois[:3], every.verb_ing).save(some)
    assert len(v_coco_vocabulary(some)) == 3
    with pytest.raises(UserError, match=r"hico.json: not of V-COCO's 29 slots"):
        v_coco_vocabulary(Path("stages/data/vocabularies/hico.json"))


def test_a_pair_is_a_person_and_a_slot_with_or_without_its_object(tmp_path):
    found = load_v_coco(write(tmp_path, official()), "train", images=False)
    assert found.image_id.tolist() == ["7", "9"]
    assert [found.vocabulary.verbs[verb] for verb in found.verb] == ["hold_obj", "cut_instr", "cut_obj", "stand"]
    assert [found.vocabulary.objects[obj] if obj >= 0 else None for obj in found.object] == [
        "cup", "knife", None, None
    ]  # fmt: skip
    assert found.pair_offsets.tolist() == [0, 3, 4]
    assert (found.hoi >= 0).tolist() == [True, True, False, False]
    assert found.object_box[2:].tolist() == [[0] * 4] * 2
    assert len(found.classified().hoi) == 2
    assert found.classified().pair_offsets.tolist() == [0, 2, 2]


def test_boxes_are_half_open_and_clipped(tmp_path):
    found = load_v_coco(write(tmp_path, official()), "train", images=False)
    assert found.human_box[0].tolist() == [10, 10, 40, 60]
    assert found.object_box[:2].tolist() == [[30, 30, 35, 45.5], [90, 70, 100, 80]]
    assert found.width.tolist() == [WIDTH] * 2
    assert found.height.tolist() == [HEIGHT] * 2


def test_people_are_all_persons_of_the_images(tmp_path):
    people = load_v_coco_people(write(tmp_path, official()), "train")
    assert people.image_id.tolist() == ["7", "9"]
    assert people.image.tolist() == [0, 0, 0, 1]
    assert people.annotated.tolist() == [True, False, True, True]
    assert [[ACTIONS[a] for a in np.flatnonzero(row)] for row in people.actions] == [["hold", "cut"], [], [], ["stand"]]
    given = {ROLES[r]: people.role_box[0, r].tolist() for r in np.flatnonzero(people.role_box[0].any(1))}
    assert given == {"hold_obj": [30, 30, 35, 45.5], "cut_instr": [90, 70, 100, 80]}
    assert not people.role_box[1:].any()


def test_what_the_official_evaluation_leaves_out_is_left_out(tmp_path):
    """Roles of actions that are not done, boxes to be ignored, boxes without area or of a pixel's width."""
    content = official()
    set_to(action(content, "throw"), "role_object_id", 3, 77)
    for number, change in ((20, {"ignore": 1}), (21, {"area": 0}), (22, {"bbox": [10, 10, 1, 20]})):
        person = {"id": number, "image_id": 7, "category_id": PERSON, "bbox": [1, 1, 20, 20], "area": 9}
        content["instances"]["annotations"].append(person | change)
    root = write(tmp_path, content)
    assert load_v_coco_people(root, "train").image.tolist() == [0, 0, 0, 1]
    assert len(load_v_coco(root, "train", images=False).hoi) == 4


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"verbs": "data/vcoco/vcoco_train.json", "ids": "data/splits/vcoco_train.ids",
         "instances": "data/instances_vcoco_all_2014.json"},
        {"verbs": "data/vcoco_train.json", "instances": "coco/annotations/instances_train2014.json"},
        {"verbs": "annotations/vcoco_train.json", "instances": "coco_instances/instances_vcoco_train.json"},
    ],
)  # fmt: skip
def test_the_files_are_found_where_people_have_them(tmp_path, layout):
    root = write(tmp_path, official(), **layout)
    given = root / layout.get("verbs", "vcoco_train.json")
    assert load_v_coco(root, "train", images=False).digests().tolist() == (
        load_v_coco(given, images=False).digests().tolist()
    )


@pytest.mark.parametrize("folder", ["train2014", "images/train2014", "coco/images/train2014", "mscoco2014/train2014"])
def test_the_images_are_found_where_people_have_them(tmp_path, folder):
    root = write(tmp_path, official())
    (root / folder).mkdir(parents=True)
    for number in (7, 9):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / folder / f"COCO_train2014_{number:012}.jpg")
    found = load_v_coco(root, "train")
    assert [Path(path).parent for path in found.path] == [root / folder] * 2
    os.remove(found.path[1])
    with pytest.raises(UserError, match=r"no image .*000000000009\.jpg"):
        load_v_coco(root, "train")
    assert load_v_coco(root, "train", lenient=True).image_id.tolist() == ["7"]
    assert load_v_coco(root, "train", limit=1).image_id.tolist() == ["7"]


def test_both_halves_make_trainval(tmp_path):
    content = official()
    write(tmp_path, content)
    for entry in content["verbs"]:  # a val half of its own: the same persons under other ids
        for key in ("ann_id", "image_id"):
            entry[key] = [100 + number for number in entry[key]]
        entry["role_object_id"] = [number and 100 + number for number in entry["role_object_id"]]
    for image in list(content["instances"]["images"]):
        content["instances"]["images"].append(image | {"id": 100 + image["id"]})
    for box in list(content["instances"]["annotations"]):
        box = box | {"id": 100 + box["id"], "image_id": 100 + box["image_id"]}
        content["instances"]["annotations"].append(box)
    content["ids"] = "107\n109"
    write(tmp_path, content, verbs="vcoco_val.json", ids="vcoco_val.ids")
    assert load_v_coco(tmp_path, "trainval", images=False).image_id.tolist() == ["7", "9", "107", "109"]


def test_a_folder_stands_for_test_or_for_val_where_there_is_no_test(tmp_path):
    write(tmp_path, official())
    with pytest.raises(UserError, match=r"vcoco_test\.json"):
        load_v_coco(tmp_path, images=False)
    write(tmp_path, official(), verbs="vcoco_val.json", ids="vcoco_val.ids")
    assert load_v_coco(tmp_path, images=False).split == "val"
    (tmp_path / "vcoco_test.json").write_text((tmp_path / "vcoco_val.json").read_text())
    assert load_v_coco(tmp_path, images=False).split == "test"


def test_the_pair_file_gives_the_same_pairs_where_there_is_an_object(tmp_path):
    full = load_v_coco(write(tmp_path / "official", official()), "train", images=False)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "instances_vcoco_train.json").write_text(json.dumps(PAIRS))
    for source in (tmp_path / "pairs", tmp_path / "pairs" / "instances_vcoco_train.json"):
        pairs = load_v_coco(source, "train", images=False)
        assert pairs.digests().tolist() == full.classified().digests().tolist()
        assert pairs.image_id.tolist() == full.image_id.tolist()
        assert (pairs.width.tolist(), pairs.name, pairs.split) == ([0, 0], "v-coco", "train")
    with pytest.raises(UserError, match="lists pairs only"):
        load_v_coco_people(tmp_path / "pairs", "train")


def set_to(entry: dict[str, Any], key: str, row: int, value: Any) -> None:
    entry[key] = [*entry[key][:row], value, *entry[key][row + 1 :]]


BAD_ENTRIES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: set_to(action(c, "hold"), "label", 0, 2), r"action hold, entry 0: label 2 is neither 0 nor 1"),
    (lambda c: set_to(action(c, "hold"), "role_object_id", 3, 77), r"image 7, person 1: hold_obj 77 has no box"),
    (
        lambda c: set_to(action(c, "hold"), "role_object_id", 3, 6),
        r"image 7, person 1: hold_obj 6 is of another imag",
    ),
    (lambda c: c["instances"]["annotations"][1].update(bbox=[200, 30, 5, 5]), r"hold_obj 2 has an empty box"),
    (lambda c: c["instances"]["annotations"][1].update(bbox=[30, 30, 5]), r"annotation 2: bbox \[30, 30, 5\]"),
    (lambda c: c["instances"]["annotations"][1].update(category_id=12), r"annotation 2: bbox .* of category 12"),
    (lambda c: c["instances"]["annotations"].pop(0), r"image 7: the person 1 has no box"),
    (lambda c: c["instances"]["annotations"][0].update(category_id=CUP), r"image 7: the person 1 is .* no person"),
    (lambda c: c["instances"]["images"].pop(1), r"no image 7; is it of another split"),
    (lambda c: c.update(ids="7\n9\n11"), r"image 11 is in .*vcoco_train.ids but not in the verbs"),
    (lambda c: c.update(ids="9"), r"image 7 is in the verbs but not in .*vcoco_train.ids"),
    (
        lambda c: [set_to(entry, key, 1, 1) for entry in c["verbs"] for key in ("ann_id", "role_object_id")],
        r"entry 1 repeats the person 1",
    ),
]


@pytest.mark.parametrize(("spoil", "complaint"), BAD_ENTRIES)
def test_a_bad_entry_is_an_error_in_one_line_or_leniently_dropped(tmp_path, spoil, complaint):
    content = official()
    spoil(content)
    root = write(tmp_path, content)
    with pytest.raises(UserError, match=complaint) as error:
        load_v_coco(root, "train", images=False)
    assert "\n" not in str(error.value)
    found = load_v_coco(root, "train", images=False, lenient=True)
    assert found.dropped >= 1
    assert len(found.hoi) < 4 or found.image_id.tolist() == ["7", "9"]
    load_v_coco_people(root, "train", lenient=True)


BAD_FILES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c["verbs"].pop(), r"vcoco_train.json: lists 25 actions; V-COCO has 26"),
    (
        lambda c: action(c, "hold").update(action_name="drop"),
        r"action hold with the roles agent, obj is not at its place",
    ),
    (lambda c: action(c, "hold").pop("label"), r"action hold: no list label"),
    (lambda c: set_to(action(c, "hold"), "label", 0, "yes"), r"action hold: label 0 is no whole number \('yes'\)"),
    (lambda c: action(c, "hold").update(label=[1]), r"action hold: 1 entries in label, not 3"),
    (lambda c: set_to(action(c, "cut"), "ann_id", 0, 4), r"action cut: ann_id is not that of the first action"),
    (lambda c: c.update(verbs={}), r"holds a dict, not a list"),
    (lambda c: c.update(instances={}), r"not COCO's instances"),
    (lambda c: c["instances"].update(annotations=[]), r"no boxes of the split's images"),
    (lambda c: c.update(ids="seven"), r"not a list of image numbers"),
]


@pytest.mark.parametrize(("spoil", "complaint"), BAD_FILES)
def test_a_file_that_is_not_v_cocos_is_refused_even_leniently(tmp_path, spoil, complaint):
    content = official()
    spoil(content)
    with pytest.raises(UserError, match=complaint):
        load_v_coco(write(tmp_path, content), "train", images=False, lenient=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"file_name": "cup.jpg"}, r"entry 0 has no file_name with a COCO number"),
        ({"file_name": "COCO_train2014_000000000009.jpg"}, r"entry 1 repeats the image"),
        ({"actions": [0]}, r"entry 0 .*are not lists of one length"),
        ({"actions": [0, 5]}, r"the action of a pair is unknown"),
        ({"objects": [2, 0]}, r"the object of a pair is unknown"),
        ({"boxes_h": [[10, 10, 40, 60], [10, 10, 5, 60]]}, r"the human box of a pair is unknown, empty"),
        ({"boxes_o": [[10, 10, 40, 60], [10, 10]]}, r"the object box of a pair is unknown, empty"),
    ],
)
def test_a_bad_pair_is_an_error_or_leniently_dropped(tmp_path, change, complaint):
    file = tmp_path / "instances_vcoco_train.json"
    file.write_text(json.dumps(PAIRS | {"annotations": [PAIRS["annotations"][0] | change, PAIRS["annotations"][1]]}))
    with pytest.raises(UserError, match=complaint):
        load_v_coco(file, images=False)
    assert load_v_coco(file, images=False, lenient=True).dropped == 1


def test_what_is_missing_is_said_with_the_places_that_were_looked_in(tmp_path):
    with pytest.raises(UserError, match=r"no vcoco_test.json in \., data, data/vcoco"):
        load_v_coco(tmp_path, "test")
    write(tmp_path, official(), instances="elsewhere.json")
    with pytest.raises(
        UserError, match=r"no instances_vcoco_all_2014.json or instances_vcoco_train.json or inst.*train2014"
    ):
        load_v_coco(tmp_path, "train")
    with pytest.raises(UserError, match="no such file or folder"):
        load_v_coco(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="splits train, val, trainval and test, not 'dev'"):
        load_v_coco(tmp_path, "dev")
    with pytest.raises(UserError, match="the file of the split train, not of val"):
        load_v_coco(tmp_path / "vcoco_train.json", "val")


@needs_real
@pytest.mark.parametrize(("split", "images", "pairs", "points"), [("train", 2533, 6408, 8), ("val", 2867, 7430, 13)])
def test_the_official_files_and_the_pair_files_are_the_same_records(split, images, pairs, points):
    """To the last bit, but for ``point``, which the pair files leave out."""
    full = load_v_coco(REAL, split, images=False)
    listed = load_v_coco(REAL / "fredzzhang", split, images=False)
    assert len(full) == len(listed) == images
    assert full.image_id.tolist() == listed.image_id.tolist()
    with_object = full.classified()
    assert len(with_object.hoi) == (full.object >= 0).sum() == pairs
    pointing = with_object.verb == SLOTS.index("point_instr")
    assert pointing.sum() == points
    ours, theirs = (
        np.concatenate(
            [a.pair_image()[:, None], a.verb[:, None], a.object[:, None], a.hoi[:, None], a.human_box, a.object_box], 1
        )[chosen]
        for a, chosen in ((with_object, ~pointing), (listed, slice(None)))
    )
    ours, theirs = (rows[np.lexsort(rows.T[::-1])] for rows in (ours, theirs))
    assert np.array_equal(ours, theirs)


@needs_real
@pytest.mark.parametrize(("split", "images", "pairs"), [("trainval", 5400, 13817), ("test", 4946, 12402)])
def test_the_pair_files_have_the_published_counts(split, images, pairs):
    listed = load_v_coco(REAL / "fredzzhang", split, images=False)
    assert (len(listed), len(listed.hoi)) == (images, pairs)
    assert len(load_v_coco(REAL / "fredzzhang", split, images=False, limit=10)) == 10


def test_a_misspelt_name_is_told_with_the_nearest_known_one(tmp_path):
    for key, wrong, near in (("objects", "cupp", "cup"), ("classes", "holds obj", "hold_obj")):
        names = [wrong if name in ("cup", "hold obj") else name for name in PAIRS[key]]
        (tmp_path / "instances_vcoco_train.json").write_text(json.dumps(PAIRS | {key: names}))
        with pytest.raises(UserError, match=rf"{key} names '{wrong}', .* \(did you mean {near}\?\)"):
            load_v_coco(tmp_path, "train", images=False)
