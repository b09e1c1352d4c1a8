"""V-COCO's evaluation: values of the published evaluator on a small fixture, its rules one by one, and what must hold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.stages.data.v_coco.loader import ACTIONS, ROLES, SLOTS, People
from hoi_distill.stages.evaluate.detections import HoiDetections, VCocoDetections
from hoi_distill.stages.evaluate.formats.v_coco_json import read_v_coco_json
from hoi_distill.stages.evaluate.metrics.v_coco import from_triplets, v_coco
from tests.fixtures.small_v_coco import small_v_coco

HOLD, STAND = ACTIONS.index("hold"), ACTIONS.index("stand")
HOLD_OBJ = ROLES.index("hold_obj")
CUP = (40, 40, 60, 60)
NOTHING = (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("tied", "agent", "scenario_1", "scenario_2"),
    [  # from the published vsrl_eval, its sorts made stable
        (True, 30.362127, (4.02492, 4.192625), (10.758803, 9.595975)),
        (False, 19.330408, (4.652545, 4.791577), (7.005369, 6.98605)),
    ],
)
def test_the_published_evaluator_on_ties_duplicates_and_empty_roles(tmp_path, tied, agent, scenario_1, scenario_2):
    people, entries = small_v_coco(tied)
    (tmp_path / "found.json").write_text(json.dumps(entries))
    figures = v_coco(read_v_coco_json(tmp_path / "found.json", people.image_id), people).percentages()
    assert figures["agent"] == pytest.approx(agent, abs=3e-6)
    assert tuple(figures["scenario_1"].values()) == pytest.approx(scenario_1, abs=3e-6)
    assert tuple(figures["scenario_2"].values()) == pytest.approx(scenario_2, abs=3e-6)


def crowd(*persons: tuple[tuple[int, ...], bool, tuple[int, ...] | None]) -> People:
    """One image; of each person the box, whether annotated, and what is held (None: does nothing)."""
    box, annotated, held = zip(*persons, strict=True)
    actions = np.zeros((len(persons), len(ACTIONS)), bool)
    actions[:, HOLD] = [thing is not None for thing in held]
    role_box = np.zeros((len(persons), len(ROLES), 4), np.float32)
    role_box[:, HOLD_OBJ] = [thing or NOTHING for thing in held]
    return People(
        np.array(["7"]), np.zeros(len(persons), np.int32), np.array(box, np.float32), np.array(annotated), actions, role_box
    )  # fmt: skip


def holding(*found: tuple[tuple[int, ...], float, tuple[int, ...]]) -> VCocoDetections:
    """Detections of one action: person, score and thing held."""
    n = len(found)
    agent, score = np.full((n, len(ACTIONS)), np.nan, np.float32), np.full((n, len(ROLES)), np.nan, np.float32)
    boxes = np.zeros((n, len(ROLES), 4), np.float32)
    agent[:, HOLD] = score[:, HOLD_OBJ] = [part[1] for part in found]
    boxes[:, HOLD_OBJ] = [part[2] for part in found]
    return VCocoDetections(
        np.zeros(n, np.int32), np.array([part[0] for part in found], np.float32), agent, boxes, score
    )


def figures(people: People, found: VCocoDetections) -> list[float]:
    results = v_coco(found, people)
    return [
        float(results.agent_ap[HOLD]), float(results.scenario_1.ap[HOLD_OBJ]), float(results.scenario_2.ap[HOLD_OBJ])
    ]  # fmt: skip


MAN, WOMAN, ELSEWHERE = (0, 0, 30, 60), (100, 0, 130, 60), (300, 300, 330, 360)


def test_a_missing_role_must_be_predicted_empty_in_scenario_1_only():
    people = crowd((MAN, True, NOTHING))
    assert figures(people, holding((MAN, 0.5, NOTHING))) == [1, 1, 1]
    assert figures(people, holding((MAN, 0.5, CUP))) == [1, 0, 1]


def test_a_role_that_is_there_must_be_found_in_both_scenarios():
    people = crowd((MAN, True, CUP))
    assert figures(people, holding((MAN, 0.5, CUP))) == [1, 1, 1]
    assert figures(people, holding((MAN, 0.5, NOTHING))) == [1, 0, 0]


def test_half_an_overlap_is_enough_and_less_is_not():
    people = crowd((MAN, True, CUP))
    assert figures(people, holding(((0, 0, 30, 30), 0.5, (40, 40, 60, 50)))) == [1, 1, 1]
    assert figures(people, holding(((0, 0, 30, 29), 0.5, CUP))) == [0, 0, 0]
    assert figures(people, holding((MAN, 0.5, (40, 40, 60, 49)))) == [1, 0, 0]


def test_a_second_detection_of_a_person_is_wrong():
    people = crowd((MAN, True, CUP), (WOMAN, True, CUP))
    once = figures(people, holding((MAN, 0.9, CUP), (WOMAN, 0.5, CUP)))
    twice = figures(people, holding((MAN, 0.9, CUP), (MAN, 0.7, CUP), (WOMAN, 0.5, CUP)))
    assert once == [1, 1, 1]
    assert twice == pytest.approx([(1 + 2 / 3) / 2] * 3)


def test_detections_of_persons_without_annotation_are_left_out():
    people = crowd((MAN, True, CUP), (WOMAN, False, None))
    assert figures(people, holding((MAN, 0.5, CUP), (WOMAN, 0.9, CUP))) == [1, 1, 1]


def test_detections_of_persons_annotated_as_doing_nothing_are_wrong():
    people = crowd((MAN, True, CUP), (WOMAN, True, None))
    assert figures(people, holding((MAN, 0.5, CUP), (WOMAN, 0.9, CUP))) == [0.5, 0.5, 0.5]


def test_a_detection_of_nobody_goes_to_the_first_person_as_in_the_published_code():
    found = holding((MAN, 0.5, CUP), (ELSEWHERE, 0.9, CUP))
    assert figures(crowd((MAN, True, CUP), (WOMAN, False, None)), found) == [0.5, 0.5, 0.5]
    assert figures(crowd((WOMAN, False, None), (MAN, True, CUP)), found) == [1, 1, 1]


def test_detections_in_a_image_without_persons_are_wrong():
    people = replace(crowd((MAN, True, CUP)), image_id=np.array(["7", "8"]))
    found = holding((MAN, 0.5, CUP), (MAN, 0.9, CUP))
    assert figures(people, replace(found, image=np.array([0, 1], np.int32))) == [0.5, 0.5, 0.5]


def test_an_action_that_nobody_does_is_in_no_mean_and_nothing_found_is_zero():
    people = crowd((MAN, True, CUP))
    results = v_coco(holding((MAN, 0.5, CUP)), people)
    assert np.isnan(results.agent_ap[STAND])
    assert results.agent == 1
    nothing = v_coco(holding((MAN, np.nan, CUP)), people)
    assert (nothing.agent, nothing.scenario_1.mean, nothing.scenario_2.mean_24) == (0, 0, 0)


def test_the_order_of_detections_changes_nothing_without_ties():
    people, entries = small_v_coco(tied=False)
    found = as_columns(entries, people)
    shuffled = np.random.default_rng(0).permutation(len(found))
    other = VCocoDetections(*(getattr(found, name)[shuffled] for name in VCocoDetections.__annotations__))
    assert v_coco(other, people).percentages() == v_coco(found, people).percentages()


def test_the_order_of_images_changes_nothing_without_ties():
    people, entries = small_v_coco(tied=False)
    found = as_columns(entries, people)
    to = np.random.default_rng(1).permutation(len(people.image_id)).astype(np.int32)
    order = np.argsort(to[people.image], kind="stable")
    columns = {name: getattr(people, name)[order] for name in ("box", "annotated", "actions", "role_box")}
    other = People(image_id=people.image_id[np.argsort(to)], image=to[people.image][order], **columns)
    assert v_coco(replace(found, image=to[found.image]), other).percentages() == v_coco(found, people).percentages()


def test_lower_scored_duplicates_never_raise_average_precision():
    people, entries = small_v_coco(tied=False)
    found = as_columns(entries, people)
    again = replace(found, agent_score=found.agent_score - 1, role_score=found.role_score - 1)
    both = VCocoDetections(
        *(np.concatenate([getattr(part, name) for part in (found, again)]) for name in VCocoDetections.__annotations__)
    )
    once, twice = v_coco(found, people), v_coco(both, people)
    for before, after in (
        (once.agent_ap, twice.agent_ap),
        (once.scenario_1.ap, twice.scenario_1.ap),
        (once.scenario_2.ap, twice.scenario_2.ap),
    ):
        assert (after[~np.isnan(after)] <= before[~np.isnan(before)]).all()


def test_perfect_detections_score_one():
    people, _ = small_v_coco(tied=True)
    apart = np.arange(len(people.image))[:, None] * np.float32([0, 1000, 0, 1000])  # nobody overlaps anybody
    people = replace(people, box=people.box + apart)
    does = people.actions[:, [ACTIONS.index(role.rsplit("_", 1)[0]) for role in ROLES]]
    found = VCocoDetections(
        people.image, people.box, np.where(people.actions, np.float32(1), np.float32(np.nan)),
        people.role_box, np.where(does, np.float32(1), np.float32(np.nan)),
    )  # fmt: skip
    results = v_coco(found, people)
    assert (results.agent, results.scenario_1.mean, results.scenario_2.mean) == (1, 1, 1)


def as_columns(entries: list[dict], people: People) -> VCocoDetections:
    """What the import gives, from the entries as they are."""
    value = np.vectorize(lambda v: np.nan if v is None else v, otypes=[np.float32])
    roles = value(np.array([[entry[role] for role in ROLES] for entry in entries], object))
    box = roles[..., :4]
    empty = np.isnan(box).all(2) | (box == 0).all(2)
    return VCocoDetections(
        np.array([entry["image_id"] for entry in entries], np.int32),
        np.array([entry["person_box"] for entry in entries], np.float32) + np.float32([0, 0, 1, 1]),
        value(np.array([[entry[f"{action}_agent"] for action in ACTIONS] for entry in entries], object)),
        np.where(empty[..., None], 0, box + np.float32([0, 0, 1, 1])),
        roles[..., 4],
    )


def triplets(rows: list[tuple[int, tuple[int, ...], str, tuple[int, ...], float]]) -> HoiDetections:
    image, human, slot, thing, score = zip(*rows, strict=True)
    kind = np.array([-1 if box == NOTHING else 41 for box in thing], np.int32)
    return HoiDetections(
        np.array(image, np.int32), np.array(human, np.float32), np.array(thing, np.float32), kind,
        np.array([SLOTS.index(name) for name in slot], np.int32), np.full(len(rows), -1, np.int32),
        np.array(score, np.float32),
    )  # fmt: skip


def test_triplets_of_one_box_become_one_person_with_the_best_of_each_slot():
    found = from_triplets(
        triplets(
            [
                (0, MAN, "hit_obj", CUP, 0.25),
                (0, MAN, "hit_instr", NOTHING, 0.75),
                (0, MAN, "stand", NOTHING, 0.5),
                (0, WOMAN, "stand", NOTHING, 0.125),
            ]
        )
    )
    assert found.person_box.tolist() == [list(MAN), list(WOMAN)]
    assert found.agent_score[:, ACTIONS.index("hit")].tolist()[0] == 0.75
    assert found.agent_score[:, STAND].tolist() == [0.5, 0.125]
    assert np.isnan(found.agent_score).sum() == 2 * 26 - 3
    roles = [ROLES.index(name) for name in ("hit_instr", "hit_obj")]
    assert found.role_box[0, roles].tolist() == [list(NOTHING), list(CUP)]
    assert found.role_score[0, roles].tolist() == [0.75, 0.25]
    assert np.isnan(found.role_score).sum() == 2 * 25 - 2


def test_the_second_best_object_of_a_slot_is_a_second_entry_without_agent_scores():
    other = (0, 0, 9, 9)
    found = from_triplets(triplets([(0, MAN, "hold_obj", other, 0.25), (0, MAN, "hold_obj", CUP, 0.5)]))
    assert found.role_box[:, HOLD_OBJ].tolist() == [list(CUP), list(other)]
    assert found.role_score[:, HOLD_OBJ].tolist() == [0.5, 0.25]
    assert found.agent_score[0, HOLD] == 0.5
    assert np.isnan(found.agent_score[1]).all()
    assert figures(crowd((MAN, True, CUP)), found) == [1, 1, 1]
    assert len(from_triplets(triplets([(0, MAN, "stand", NOTHING, 0.5)]))) == 1


def test_no_triplets_are_no_persons():
    none = np.zeros(0, np.int32)
    boxes = np.zeros((0, 4), np.float32)
    found = from_triplets(HoiDetections(none, boxes, boxes, none, none, none, np.zeros(0, np.float32)))
    assert found.role_box.shape == (0, 25, 4)
    assert figures(crowd((MAN, True, CUP)), found) == [0, 0, 0]
