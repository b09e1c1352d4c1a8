"""Vocabularies: HICO-DET's 600 classes, their order and their file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data import vocabulary
from hoi_distill.stages.data.coco import ALPHABETICAL_OBJECTS, COCO_CATEGORY_IDS, COCO_OBJECTS, FROM_ALPHABETICAL
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.storage.errors import UserError


def test_hico_has_its_numbers_and_order():
    v = hico_vocabulary()
    assert (len(v), len(v.verbs), len(v.objects)) == (600, 117, 80)
    assert v.verbs[57] == "no_interaction"
    assert v.objects[0] == "person"
    assert v.hoi_name(0) == ("board", "airplane")
    assert v.hoi_name(245) == ("sit_on", "bench")
    assert v.hoi_name(599) == ("no_interaction", "zebra")


def test_hoi_id_inverts_the_list():
    v = hico_vocabulary()
    table = v.hoi_id()
    assert table.shape == (117, 80)
    assert np.array_equal(table[v.hois[:, 0], v.hois[:, 1]], np.arange(600))
    assert (table >= 0).sum() == 600


def test_coco_ids_are_the_official_ones():
    ids = dict(zip(COCO_OBJECTS, COCO_CATEGORY_IDS, strict=True))
    assert (ids["person"], ids["stop_sign"], ids["bench"], ids["dog"], ids["cup"], ids["toothbrush"]) == (
        1,
        13,
        15,
        18,
        47,
        90,
    )
    assert (ids["umbrella"], ids["dining_table"], ids["toilet"], ids["tv"], ids["book"]) == (28, 67, 70, 72, 84)


def test_saved_and_loaded_is_equal_and_keeps_its_digest(tmp_path):
    v = pico_vocabulary()
    v.save(tmp_path / "v.json", source="the pico world")
    again = Vocabulary.load(tmp_path / "v.json")
    assert again == v
    assert again.digest() == v.digest() != hico_vocabulary().digest()
    assert again.verb_ing == v.verb_ing


def test_alphabetical_objects_map_to_coco_s():
    assert [ALPHABETICAL_OBJECTS[i] for i in (0, 1, 49, 79)] == ["airplane", "apple", "person", "zebra"]
    assert [FROM_ALPHABETICAL[i] for i in (0, 1, 49, 79)] == [4, 47, 0, 22]
    assert sorted(FROM_ALPHABETICAL) == list(range(80))


def test_an_object_has_three_to_eighteen_verbs_and_the_mean_is_seven_and_a_half():
    verbs_of_object = (hico_vocabulary().hoi_id() >= 0).sum(axis=0)
    assert (verbs_of_object.min(), verbs_of_object.max(), verbs_of_object.mean()) == (3, 18, 7.5)


def test_each_object_has_one_class_without_an_interaction():
    v = hico_vocabulary()
    idle = v.hoi_id()[v.verbs.index("no_interaction")]
    assert (idle >= 0).all()
    assert len(set(idle.tolist())) == 80


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("[1, 2]", "not a vocabulary file"),
        ("nonsense", "not a vocabulary file"),
        ('{"verbs": {"ride": 5}, "interactions": ["ride bicycle"]}', "a name that is no text"),
        ('{"verbs": {"ride": "riding"}, "interactions": [], "objects": ["person", []]}', "a name that is no text"),
        ('{"verbs": {"ride": "riding"}, "interactions": [], "objects": []}', "begins with none"),
        ('{"verbs": {}, "interactions": ["ride bicycle"]}', "'ride'"),
        ('{"verbs": {"ride": "riding"}, "interactions": ["ride dragon"]}', "'dragon'"),
        ('{"verbs": {"ride": "riding"}, "interactions": ["ride horse", "ride horse"]}', "entry 2 repeats entry 1"),
    ],
)
def test_a_bad_file_is_one_line_naming_it(tmp_path, record, said):
    (tmp_path / "bad.json").write_text(record)
    with pytest.raises(UserError) as error:
        Vocabulary.load(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_shipped_vocabulary_is_the_official_file_s():
    from scipy.io import loadmat

    from hoi_distill.stages.data.hico_det.mat import list_action

    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det")
    mat = loadmat(root / "anno.mat", variable_names=["list_action"])
    assert list_action(mat["list_action"], "anno.mat") == hico_vocabulary()
    names = json.loads((root / "instances_test2015.json").read_text())
    assert tuple(names["verbs"]) == hico_vocabulary().verbs
    objects = [names["objects"][o] for _, o, _ in sorted(names["correspondence"])]
    assert objects == [hico_vocabulary().hoi_name(hoi)[1] for hoi in range(600)]


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_shipped_names_and_orders_are_the_published_lists_s():
    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det")
    rows = {
        kind: [line.split() for line in (root / f"hico_list_{kind}.txt").read_text().splitlines() if line[:1].isdigit()]
        for kind in ("hoi", "obj", "vb")
    }
    v = hico_vocabulary()
    assert tuple(row[1] for row in rows["vb"]) == v.verbs
    assert tuple(row[1] for row in rows["obj"]) == ALPHABETICAL_OBJECTS
    assert [(row[2], row[1]) for row in rows["hoi"]] == [v.hoi_name(hoi) for hoi in range(600)]


def test_every_shipped_file_of_classes_says_its_source():
    files = sorted((Path(vocabulary.__file__).parent / "vocabularies").glob("*.json"))
    assert len(files) >= 4
    assert [file.name for file in files if not json.loads(file.read_text()).get("source")] == []
