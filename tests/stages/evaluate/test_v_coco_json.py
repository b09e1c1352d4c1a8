"""The official list of dicts as JSON: read, written, and refused with one line where it is something else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi_distill.stages.data.v_coco.loader import ACTIONS, ROLES
from hoi_distill.stages.evaluate.detections import VCocoDetections
from hoi_distill.stages.evaluate.formats.v_coco_json import read_v_coco_json, write_v_coco_json
from hoi_distill.storage.errors import UserError
from tests.fixtures.small_v_coco import small_v_coco

IDS = ["165", "436"]
ENTRY = {
    "image_id": 436, "person_box": [0, 0, 9, 19], "hold_agent": 0.5, "hold_obj": [2, 3, 4, 5, 0.25],
    "look_obj": [0, 0, 0, 0, 0.75], "hit_obj": [None, None, None, None, 0.125], "kick_obj": [1, 1, 2, 2, None],
}  # fmt: skip


def read(folder: Path, *entries: dict[str, Any]) -> VCocoDetections:
    (folder / "found.json").write_text(json.dumps(entries))
    return read_v_coco_json(folder / "found.json", IDS)


def test_inclusive_boxes_become_half_open_and_empty_roles_stay_empty(tmp_path):
    found = read(tmp_path, ENTRY)
    assert found.image.tolist() == [1]
    assert found.person_box.tolist() == [[0, 0, 10, 20]]
    boxes = found.role_box[0, [ROLES.index(name) for name in ("hold_obj", "look_obj", "hit_obj")]]
    assert boxes.tolist() == [[2, 3, 5, 6], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.role_score[0, [ROLES.index(name) for name in ("hold_obj", "look_obj", "hit_obj")]].tolist() == [
        0.25, 0.75, 0.125
    ]  # fmt: skip


def test_what_is_not_said_is_not_detected(tmp_path):
    found = read(tmp_path, ENTRY)
    assert np.isnan(found.agent_score[0]).sum() == len(ACTIONS) - 1
    assert np.isnan(found.role_score[0]).sum() == len(ROLES) - 3


@pytest.mark.parametrize("name", [436, "436", "COCO_val2014_000000000436.jpg", "000000000436.jpg"])
def test_a_image_is_named_by_number_or_file(tmp_path, name):
    assert read(tmp_path, ENTRY | {"image_id": name}).image.tolist() == [1]


def test_nan_is_read_as_python_writes_it(tmp_path):
    assert np.isnan(read(tmp_path, ENTRY | {"hold_agent": float("nan")}).agent_score).all()


def test_scores_and_their_order_are_those_of_the_file(tmp_path):
    close = {
        "hold_agent": 0.99999999,
        "hit_agent": 1e40,
        "hold_obj": [2, 3, 4, 5, 0.99999998],
        "hit_obj": [2, 3, 4, 5, 1e-60],
    }
    found = read(tmp_path, ENTRY | close)
    assert found.agent_score[0, [ACTIONS.index("hold"), ACTIONS.index("hit")]].tolist() == [0.99999999, 1e40]
    assert found.role_score[0, [ROLES.index("hold_obj"), ROLES.index("hit_obj")]].tolist() == [0.99999998, 1e-60]
    assert found.role_box.dtype == found.person_box.dtype == np.float32
    write_v_coco_json(tmp_path / "written.json", found, IDS)
    assert np.array_equal(read_v_coco_json(tmp_path / "written.json", IDS).role_score, found.role_score, equal_nan=True)


def test_what_is_written_is_read_back(tmp_path):
    people, entries = small_v_coco(tied=False)
    (tmp_path / "found.json").write_text(json.dumps(entries))
    found = read_v_coco_json(tmp_path / "found.json", people.image_id)
    write_v_coco_json(tmp_path / "written.json", found, people.image_id)
    again = read_v_coco_json(tmp_path / "written.json", people.image_id)
    for name in VCocoDetections.__annotations__:
        assert np.array_equal(getattr(found, name), getattr(again, name), equal_nan=True), name
    written = json.loads((tmp_path / "written.json").read_text(), parse_constant=pytest.fail)
    assert {len(entry) for entry in written} == {2 + len(ACTIONS) + len(ROLES)}
    write_v_coco_json(tmp_path / "none.json", read(tmp_path), IDS)
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_id": 999}, "entry 1: image_id 999 is no image of this split"),
        ({"image_id": None}, "entry 1: image_id None is no image of this split"),
        ({"image_id": [436]}, "entry 1: image_id [436] is no image of this split"),
        ({"person_box": [0, 0, 9]}, "entry 1: person_box [0, 0, 9] is not 4 numbers"),
        ({"person_box": None}, "entry 1: person_box None is not 4 numbers"),
        ({"person_box": [0, 0, None, 1]}, "entry 1: person_box [0, 0, None, 1] is not four finite numbers"),
        ({"person_box": [9, 0, 3, 1]}, "entry 1: person_box [9, 0, 3, 1] ends before it begins"),
        ({"hold_agent": "high"}, "entry 1: hold_agent 'high' is not a number"),
        ({"hold_agent": "0.5"}, "entry 1: hold_agent '0.5' is not a number"),
        ({"hold_agent": True}, "entry 1: hold_agent True is not a number"),
        ({"hold_agent": 10**400}, "entry 1: hold_agent 1"),
        ({"hold_obj": [1, 2, 1e40, 4, 0.5]}, "entry 1: hold_obj [1, 2, 1e+40, 4, 0.5] is not finite"),
        ({"hold_agent": float("inf")}, "entry 1: hold_agent inf is not a finite score"),
        ({"hold_obj": [1, 2, 3, 4]}, "entry 1: hold_obj [1, 2, 3, 4] is not 5 numbers"),
        ({"hold_obj": 0.5}, "entry 1: hold_obj 0.5 is not 5 numbers"),
        ({"hold_obj": [None, 2, 3, 4, 0.5]}, "entry 1: hold_obj [None, 2, 3, 4, 0.5] is a box half given"),
        ({"hold_obj": [5, 2, 3, 4, 0.5]}, "entry 1: hold_obj [5, 2, 3, 4, 0.5] ends before it begins"),
    ],
)
def test_a_bad_entry_is_named_in_one_line(tmp_path, change, complaint):
    with pytest.raises(UserError) as error:
        read(tmp_path, ENTRY, ENTRY | change)
    assert str(error.value).startswith(f"{tmp_path / 'found.json'}: {complaint}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[{", "not readable as JSON"),
        (b"{}", "holds a dict, not a list"),
        (b"[1]", "entry 0 is no dict but int"),
        (b'[{"image_id": 165, "person_box": [0, 0, 1, 1]}]', "no entry has a key such as hold_agent"),
        (pickle.dumps([ENTRY]), "this is a pickle"),
        (pickle.dumps([ENTRY], protocol=0), "this is a pickle"),
        (pickle.dumps([ENTRY], protocol=1), "this is a pickle"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, complaint):
    file = tmp_path / "found.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{file}: .*{complaint}"):
        read_v_coco_json(file, IDS)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_v_coco_json(tmp_path / "none.json", IDS)
