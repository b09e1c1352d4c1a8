"""The pico world's images and labels."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.pico.acts import ACTS, Group
from hoi_distill.stages.data.pico.classes import CO_LABELS, HOIS, OBJECTS, PRIMARY
from hoi_distill.stages.data.pico.render import SIZE, render_scene
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.vocabulary import hico_vocabulary


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed, temper=0.3) for seed in range(400)]


def test_scene_is_a_pure_function_of_its_arguments():
    first = render_scene(7, temper=0.5)
    render_scene(8)
    again = render_scene(7, temper=0.5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert (first.pairs, first.facts, first.co_facts) == (again.pairs, again.facts, again.co_facts)
    assert not np.array_equal(first.image, render_scene(9, temper=0.5).image)


def test_classes_are_hico_dets_in_its_order():
    hico = hico_vocabulary()
    official = [hico.hoi_name(hoi) for hoi in range(len(hico))]
    rows = [official.index(hoi) for hoi in HOIS]
    assert rows == sorted(rows)
    assert len(set(HOIS)) == len(HOIS)


def test_the_world_is_rich_enough():
    interacting = {hoi for hoi in HOIS if hoi[0] != NO_INTERACTION}
    assert len(OBJECTS) >= 12
    assert len({verb for verb, _ in interacting}) >= 12
    assert len(interacting) >= 40
    assert {(NO_INTERACTION, name) for name in OBJECTS} <= set(HOIS)
    co = {(verb, name) for (_, name), verbs in CO_LABELS.items() for verb in verbs}
    assert set(PRIMARY) | co == interacting
    assert set(ACTS) == set(PRIMARY)


def test_boxes_lie_in_the_image_and_have_an_area(scenes):
    boxes = np.concatenate([scene.boxes for scene in scenes])
    assert boxes.dtype == np.float32
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 3


def test_box_of_a_lone_object_is_its_drawn_extent():
    """The image of a group without its object differs from the whole one only inside the object's box."""
    import random

    from PIL import Image, ImageDraw

    for fact in (("kick", "sports_ball"), ("fly", "kite"), ("hold", "cup")):
        group = Group(random.Random(3))
        group.act(*fact)
        row = group.actions[0][0] + 1
        sketch = group.finish()
        extent = sketch.extents[row]
        size, x, y = 300, 300, 700
        whole, without = (Image.new("RGB", (900, 800)) for _ in range(2))
        sketch.paint(ImageDraw.Draw(whole), x, y, size, mirror=False)
        inside = [s for s in sketch.shapes if all(_within(extent, p) for p in s[1])]
        assert inside
        sketch.shapes = [s for s in sketch.shapes if s not in inside]
        sketch.paint(ImageDraw.Draw(without), x, y, size, mirror=False)
        rows, columns = np.nonzero((np.asarray(whole) != np.asarray(without)).any(2))
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        claimed = np.array([x + size * extent.x1, y - size * extent.y2, x + size * extent.x2, y - size * extent.y1])
        assert np.abs(drawn - claimed).max() <= 2.5


def _within(extent, point):
    return extent.x1 <= point[0] <= extent.x2 and extent.y1 <= point[1] <= extent.y2


def test_pairs_facts_and_co_facts_agree(scenes):
    for scene in scenes:
        names = [COCO_OBJECTS[label] for label in scene.objects]
        said = {(verb, names[obj]) for _, obj, verbs in scene.pairs for verb in verbs}
        assert said == set(scene.facts) | set(scene.co_facts)
        assert not set(scene.facts) & set(scene.co_facts)
        assert said <= set(HOIS)
        for human, obj, verbs in scene.pairs:
            assert names[human] == "person"
            assert names[obj] != "person"
            assert verbs[1:] == CO_LABELS.get((verbs[0], names[obj]), ())


def test_no_interaction_joins_idle_people_and_unused_objects(scenes):
    for scene in scenes:
        busy = {human for human, _, verbs in scene.pairs if verbs[0] != NO_INTERACTION}
        used = {obj for _, obj, verbs in scene.pairs if verbs[0] != NO_INTERACTION}
        people = set(np.flatnonzero(scene.objects == 0))
        objs = set(np.flatnonzero(scene.objects != 0))
        idle_pairs = {(h, o) for h, o, verbs in scene.pairs if verbs == (NO_INTERACTION,)}
        assert idle_pairs == {(h, o) for h in people - busy for o in objs - used}


def test_scenes_vary_as_promised(scenes):
    people = Counter(int((scene.objects == 0).sum()) for scene in scenes)
    assert set(people) == {1, 2, 3}
    assert any(len(verbs) > 1 for scene in scenes for _, _, verbs in scene.pairs)
    per_person = Counter((i, human) for i, s in enumerate(scenes) for human, _, v in s.pairs if v[0] != NO_INTERACTION)
    assert max(per_person.values()) == 2
    assert any((scene.objects != 0).sum() > len({obj for _, obj, _ in scene.pairs}) for scene in scenes)


def test_plain_scenes_hold_one_person_and_at_most_one_object():
    for seed in range(200):
        scene = render_scene(seed, plain=True)
        assert scene.objects.tolist().count(0) == 1
        assert len(scene.objects) == 2
        assert len(scene.pairs) == 1


def test_people_range_is_kept():
    assert all((render_scene(seed, people=(2, 2)).objects == 0).sum() == 2 for seed in range(50))


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_every_class_is_on_the_official_list():
    text = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det/hico_list_hoi.txt").read_text()
    official = {(verb, name) for _, name, verb in (line.split() for line in text.splitlines() if line[:1].isdigit())}
    assert len(official) == 600
    assert set(HOIS) <= official
