"""The labels that the crowd's tower learns from: what a cell shows, and no word of who does something with what."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from hoi_distill.stages.data.crowd.classes import LINES, PARTICIPLES
from hoi_distill.stages.data.crowd.plan import plan_split
from hoi_distill.stages.data.crowd.render import PARTS, render_crowd
from hoi_distill.stages.teacher.crowd.training.corpus import HELD_OUT, PROBED, TAUGHT, CorpusPart, load
from hoi_distill.stages.teacher.crowd.training.dense import CELL, SEEN, VECTORS, dense_labels, mirrored


@pytest.fixture(scope="module")
def plans():
    return plan_split(0, "test", 60)[:20]


@pytest.fixture(scope="module")
def scenes(plans):
    return [render_crowd(plan) for plan in plans]


def vector(labels, name: str) -> np.ndarray:
    place = 2 * VECTORS.index(name)
    return labels.body[..., place : place + 2].astype(np.float32)


def test_an_arm_that_points_is_a_hand_that_lies_towards_the_target(scenes):
    for scene in scenes:
        for relation in scene.relations:
            if relation.verb != "point_at":
                continue
            parts, target = scene.bodies[relation.human].parts, scene.boxes[relation.object]
            arm = parts[PARTS.index("near_hand")] - parts[0]
            aim = (target[:2] + target[2:]) / 2 - parts[0]
            cosine = arm @ aim / np.linalg.norm(arm) / np.linalg.norm(aim)
            assert cosine > 0.97


def test_parts_lie_in_the_box_of_their_person(scenes):
    for scene in scenes:
        for box, body in zip(scene.boxes, scene.bodies, strict=False):
            inside = body.parts.clip(0, 256)
            assert (inside >= box[:2] - 1.5).all()
            assert (inside <= box[2:] + 1.5).all()


def test_labels_are_those_of_the_scene_without_its_acts(scenes):
    """Of a verb there is only what it looks like: take the names, targets and people away, and nothing changes."""
    for scene in scenes:
        nameless = [replace(r, name="", annotated=False, human=-1, object=-1, other=(-1, -1)) for r in scene.relations]
        nameless = [r if r.verb in LINES else replace(r, verb="") for r in nameless]
        ours, theirs = dense_labels(scene), dense_labels(replace(scene, relations=tuple(nameless)))
        for field in fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    assert not set(SEEN) & {word for verb in PARTICIPLES for word in (verb, PARTICIPLES[verb])}


def test_a_line_is_seen_in_the_cells_that_it_crosses(scenes):
    for scene in scenes:
        labels = dense_labels(scene)
        for relation in scene.relations:
            if relation.verb in LINES:
                stuff = SEEN.index({"pull": "rope", "spray": "water"}[relation.verb])
                middle = np.mean(relation.seen, 0)
                row, column = (middle[::-1] // CELL).astype(int)
                assert labels.seen[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, stuff].any()
        drawn = {relation.verb for relation in scene.relations}
        for verb, stuff in (("pull", "rope"), ("spray", "water")):
            assert labels.seen[..., SEEN.index(stuff)].any() == (verb in drawn)


def test_mirrored_labels_are_those_of_the_mirrored_scene(scenes):
    for scene in scenes[:5]:
        labels = dense_labels(scene)
        there = mirrored(labels)
        np.testing.assert_array_equal(there.seen, labels.seen[:, ::-1])
        np.testing.assert_array_equal(there.posture, labels.posture[:, ::-1])
        hand, other = vector(labels, "near_hand"), vector(there, "near_hand")[:, ::-1]
        np.testing.assert_array_equal(other * (-1, 1), hand)
        for field in fields(labels):
            np.testing.assert_array_equal(getattr(mirrored(there), field.name), getattr(labels, field.name))


def test_a_corpus_is_drawn_once_and_holds_no_twin_and_no_scene_of_a_student(tmp_path):
    part = CorpusPart(153, 10)
    corpus = load(part, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = load(part, tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(corpus.pixels) == len(corpus.captions) == len(corpus.labels.seen) == 7
    np.testing.assert_array_equal(again.labels.body, corpus.labels.body)
    seeds = {plan.seed for split in ("train", "test") for plan in plan_split(0, split, 3000)}
    for taught in (TAUGHT, PROBED, HELD_OUT):
        assert not seeds & {plan.seed for plan in plan_split(taught.world, "test", taught.planned)}
    assert not any(verb.split("_")[0] in caption for caption in corpus.captions for verb in PARTICIPLES.values())
