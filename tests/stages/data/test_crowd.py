"""The crowd: what is planned is drawn, what is drawn is written, and only a relation tells who acts on what."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter

import numpy as np
import pytest

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.crowd.classes import CONTACT, HOIS, LINES, PARTICIPLES, RANKED, RAYS, crowd_vocabulary
from hoi_distill.stages.data.crowd.detector import detections
from hoi_distill.stages.data.crowd.plan import plan_split, twins
from hoi_distill.stages.data.crowd.render import SIZE, render_crowd
from hoi_distill.stages.data.crowd.texts import CONTEXTS, context, grounding, plain
from hoi_distill.stages.data.crowd.world import write_crowd
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.object_detections import load_detections
from hoi_distill.stages.data.pico.render import render_scene
from hoi_distill.storage.errors import UserError


@pytest.fixture(scope="module")
def plans():
    return plan_split(0, "test", 60)


@pytest.fixture(scope="module")
def scenes(plans):
    return [render_crowd(plan) for plan in plans]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_crowd(tmp_path_factory.mktemp("crowd") / "world", train=12, test=20)


def annotated(split: str, images: int) -> Counter:
    return Counter((act.verb, act.name) for plan in plan_split(0, split, images) for act in plan.acts if act.annotated)


def test_not_one_pixel_of_the_pico_world_has_moved():
    """Both worlds are drawn with the same pens."""
    digest = hashlib.sha256()
    for seed in range(12):
        for options in ({}, {"temper": 0.3}, {"plain": True}):
            scene = render_scene(seed, **options)
            digest.update(scene.image.tobytes() + scene.boxes.tobytes() + repr(scene.pairs).encode())
    assert digest.hexdigest() == "b940f0a9fc98d9ce1dae64d65fe78049a6b27e7b086eabd2d9625fa89460c1df"


def test_there_are_forty_classes_of_relations():
    assert len(HOIS) == len(set(HOIS)) == len(RANKED) >= 40
    assert set(PARTICIPLES) == RAYS | LINES | {CONTACT} == set(CONTEXTS) == {verb for verb, _ in HOIS}
    assert crowd_vocabulary().prompt(HOIS.index(("point_at", "person"))).endswith("pointing at another person")


def test_a_third_of_the_classes_has_one_to_five_annotated_training_pairs_and_none_has_no_pair():
    counts = annotated("train", 2000)
    assert set(counts) == set(HOIS)
    few = sum(count <= 5 for count in counts.values())
    assert abs(few - len(HOIS) / 3) < 1


def test_half_of_the_training_pairs_are_annotated_and_all_of_the_tests():
    everything = [act for plan in plan_split(0, "train", 2000) for act in plan.acts]
    assert sum(act.annotated for act in everything) / len(everything) == pytest.approx(0.5, abs=0.01)
    test = plan_split(0, "test", 1000)
    assert len(test) == 1000
    assert all(act.annotated for plan in test for act in plan.acts)
    assert min(annotated("test", 1000).values()) >= 40


def test_three_tenths_of_the_test_images_are_the_twins_of_others(plans):
    pairs = twins(plan_split(0, "test", 1000))
    assert len(pairs) == len({row for row, _ in pairs}) == 300
    for row, twin in twins(plans):
        assert plans[row].acts == plans[twin].acts
        assert plans[twin].acts[plans[twin].swapped].verb != CONTACT


def test_a_scene_is_a_function_of_its_plan(plans, scenes):
    again = render_crowd(plans[3])
    assert np.array_equal(again.image, scenes[3].image)
    assert again.relations == scenes[3].relations
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_scenes_are_crowds_of_equal_things(scenes):
    for scene in scenes:
        counts = Counter(scene.objects.tolist())
        people = counts.pop(0)
        assert 4 <= people <= 8
        assert scene.objects[:people].tolist() == [0] * people
        assert 2 <= len(counts) <= 3
        assert 5 <= counts.total() <= 10
        assert min(counts.values()) >= 2
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= SIZE


def test_agent_and_target_are_apart_but_where_a_foot_is_on_it(scenes):
    apart = []
    for scene in scenes:
        for relation in scene.relations:
            low = np.maximum(scene.boxes[relation.human, :2], scene.boxes[relation.object, :2])
            high = np.minimum(scene.boxes[relation.human, 2:], scene.boxes[relation.object, 2:])
            touches = bool((high > low).all())
            if relation.verb == CONTACT:
                assert touches
            else:
                apart.append(not touches)
    assert np.mean(apart) > 0.85  # an arm may be stretched over what is near


def test_twins_differ_in_nothing_but_the_act(plans, scenes):
    """The other candidate acts, every thing keeps its box, and pixels move only near the person and along the line."""
    for row, twin in twins(plans):
        one, two = scenes[row], scenes[twin]
        swapped = plans[twin].swapped
        before, after = one.relations[swapped], two.relations[swapped]
        assert (before.human, before.object) == after.other
        assert (after.human, after.object) == before.other
        assert [r for k, r in enumerate(one.relations) if k != swapped] == [
            r for k, r in enumerate(two.relations) if k != swapped
        ]
        others = np.arange(len(one.boxes)) != before.human
        assert np.array_equal(one.boxes[others], two.boxes[others])
        moved = (one.image != two.image).any(2)
        near = np.zeros_like(moved)
        for scene, relation in ((one, before), (two, after)):
            (x1, y1), (x2, y2) = relation.seen
            left, top, right, bottom = scene.boxes[relation.human]
            left, right = min(left, x1, x2) - 4, max(right, x1, x2) + 4
            top, bottom = min(top, y1, y2) - 4, max(bottom, y1, y2) + 4
            near[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = True
        assert moved.any()
        assert not (moved & ~near).any()


def test_a_line_stays_out_of_the_box_of_its_target(scenes):
    for scene in scenes:
        for relation in scene.relations:
            if relation.verb in LINES:
                x, y = relation.seen[1]
                x1, y1, x2, y2 = scene.boxes[relation.object]
                assert x < x1 or x > x2 or y < y1 or y > y2


def test_who_reads_arms_and_lines_knows_the_target(scenes):
    """Of all things of the class the true one lies best in the direction of the ray, or nearest to the line's end."""
    right = []
    for scene in scenes:
        middle = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
        for relation in scene.relations:
            if relation.verb == CONTACT:
                continue
            (x1, y1), (x2, y2) = relation.seen
            alike = [k for k in np.flatnonzero(scene.objects == scene.objects[relation.object]) if k != relation.human]
            if relation.verb in RAYS:
                aim = math.atan2(y2 - y1, x2 - x1)
                off = [abs(math.remainder(math.atan2(*(middle[k] - (x1, y1))[::-1]) - aim, math.tau)) for k in alike]
            else:
                off = [math.dist(middle[k], (x2, y2)) for k in alike]
            right.append(alike[int(np.argmin(off))] == relation.object)
    assert np.mean(right) > 0.97


def test_texts_say_which_one_or_what_it_looks_like_but_a_plain_one_no_verb(scenes):
    verbs = {word.split("_")[0] for word in PARTICIPLES.values()}
    grounded = 0
    for scene in scenes:
        assert not verbs & set(plain(scene).replace(",", "").split())
        for relation in scene.relations:
            assert not verbs & set(context(relation).split())
            said = grounding(scene, relation)
            assert PARTICIPLES[relation.verb].replace("_", " ") in said
            grounded += " one of " in said or "the person in" in said
    assert grounded > 0


def test_the_detector_misses_what_is_small_or_hidden_and_twins_share_its_faults():
    boxes = np.array([[10, 10, 60, 60]] * 200 + [[10, 10, 20, 20]] * 200 + [[10, 10, 60, 60]] * 200)
    hidden = np.repeat([0.0, 0.0, 0.9], 200)
    one = detections(5, boxes, np.zeros(600, int), hidden)
    plainly = detections(5, boxes[:200], np.zeros(200, int), hidden[:200])
    small = detections(5, boxes[200:400], np.zeros(200, int), hidden[200:400])
    behind = detections(5, boxes[400:], np.zeros(200, int), hidden[400:])
    assert len(small) < 0.5 * len(plainly) > len(behind)
    again = detections(5, boxes, np.zeros(600, int), hidden)
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, again, strict=True))


def test_the_detectors_ap50_is_between_60_and_75(plans, scenes):
    from hoi_distill.stages.teacher.pico.evaluation.detector import average_precision

    found, truth = [], []
    for plan, scene in zip(plans, scenes, strict=True):
        rows = sorted(detections(plan.seed, scene.boxes, scene.objects, scene.hidden), key=lambda row: -row[2])
        columns = zip(("boxes", "labels", "scores"), zip(*rows, strict=True), strict=True)
        found.append({name: np.array(column) for name, column in columns})
        truth.append({"boxes": scene.boxes, "labels": scene.objects})
    by_class = average_precision(found, truth, 0.5)
    assert 0.6 < np.mean(list(by_class.values())) < 0.75
    assert by_class[OBJECT_INDEX["sports_ball"]] < by_class[OBJECT_INDEX["person"]]  # the small are missed


def test_same_seed_same_bytes(world, tmp_path):
    files = {p.relative_to(world): p.read_bytes() for p in world.rglob("*") if p.is_file()}
    again = write_crowd(tmp_path / "again", train=12, test=20)
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == files


def test_a_crowd_is_read_as_hico_det(world):
    for split, images in (("train", 12), ("test", 20)):
        read = load_hico_det(world, split)
        assert len(read) == images
        assert read.vocabulary == crowd_vocabulary()
        planned = [act for plan in plan_split(0, split, images) for act in plan.acts if act.annotated]
        assert len(read.hoi) == len(planned)
        assert len(load_detections(world / f"detections_{split}2015.json", read).scores) > 5 * images
        said = json.loads((world / f"texts_{split}2015.json").read_text())
        assert [entry["image_id"] for entry in said] == read.image_id.tolist()


def test_another_world_in_the_folder_is_named(world, tmp_path):
    with pytest.raises(UserError, match=r"holds another crowd \(seed: 0 -> 1\), which is never rewritten"):
        write_crowd(world, seed=1, train=12, test=20)
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and no crowd"):
        write_crowd(tmp_path, train=2, test=1)
