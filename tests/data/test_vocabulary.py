"""Vocabularies: HICO-DET's 600 classes and how they are said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from stages.data.pico.world import pico_vocabulary
from stages.data.vocabulary import Vocabulary, hico_vocabulary, noun_phrase
from storage.errors import UserError


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


@pytest.mark.parametrize(
    ("verb", "name", "sentence"),
    [
        ("ride", "bicycle", "a photo of a person riding a bicycle"),
        ("no_interaction", "bicycle", "a photo of a person and a bicycle"),
        ("no_interaction", "umbrella", "a photo of a person and an umbrella"),
        ("board", "airplane", "a photo of a person boarding an airplane"),
        ("text_on", "cell_phone", "a photo of a person texting on a cell phone"),
        ("brush_with", "toothbrush", "a photo of a person brushing with a toothbrush"),
        ("lie_on", "bench", "a photo of a person lying on a bench"),
        ("tie", "tie", "a photo of a person tying a tie"),
        ("control", "tv", "a photo of a person controlling a tv"),
        ("spin", "sports_ball", "a photo of a person spinning a sports ball"),
        ("hold", "scissors", "a photo of a person holding a pair of scissors"),
        ("adjust", "skis", "a photo of a person adjusting a pair of skis"),
        ("eat", "broccoli", "a photo of a person eating broccoli"),
        ("hug", "person", "a photo of a person hugging another person"),
        ("hold", "hair_drier", "a photo of a person holding a hair drier"),
    ],
)
def test_prompts_are_english(verb, name, sentence):
    v = hico_vocabulary()
    assert v.prompts()[v.hoi_id()[v.verbs.index(verb), v.objects.index(name)]] == sentence


def test_every_prompt_differs_and_has_no_underscore():
    prompts = hico_vocabulary().prompts()
    assert len(set(prompts)) == 600
    assert not any("_" in prompt or "  " in prompt for prompt in prompts)


def test_articles_of_all_objects():
    an = {name for name in COCO_OBJECTS if noun_phrase(name).startswith("an ")}
    assert an == {"airplane", "elephant", "umbrella", "apple", "orange", "oven"}
    odd = {name for name in COCO_OBJECTS if not noun_phrase(name).startswith(("a " + name.split("_")[0], "an "))}
    assert odd == {"person", "broccoli", "scissors", "skis"}


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


def test_pico_prompts_are_hicos():
    v, hico = pico_vocabulary(), hico_vocabulary()
    assert set(v.prompts()) <= set(hico.prompts())


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("[1, 2]", "not a vocabulary file"),
        ("nonsense", "not a vocabulary file"),
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

    from stages.data.hico_mat import list_action

    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det")
    mat = loadmat(root / "anno.mat", variable_names=["list_action"])
    assert list_action(mat["list_action"], "anno.mat") == hico_vocabulary()
    names = json.loads((root / "instances_test2015.json").read_text())
    assert tuple(names["verbs"]) == hico_vocabulary().verbs
    objects = [names["objects"][o] for _, o, _ in sorted(names["correspondence"])]
    assert objects == [hico_vocabulary().hoi_name(hoi)[1] for hoi in range(600)]
