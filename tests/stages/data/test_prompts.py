"""Prompts: English for all 600 interactions, 117 verbs and 80 objects."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.prompts import noun_phrase, object_prompt, verb_prompt
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary

HICO = hico_vocabulary()
PROMPTS = HICO.prompts()
SENTENCES = {
    "ride bicycle": "riding a bicycle",
    "no_interaction bicycle": "and a bicycle",
    "no_interaction umbrella": "and an umbrella",
    "no_interaction person": "and another person",
    "board airplane": "boarding an airplane",
    "text_on cell_phone": "texting on a cell phone",
    "type_on keyboard": "typing on a keyboard",
    "brush_with toothbrush": "brushing with a toothbrush",
    "drink_with bottle": "drinking with a bottle",
    "pick_up pizza": "picking up a pizza",
    "lie_on bench": "lying on a bench",
    "sit_at dining_table": "sitting at a dining table",
    "stand_under stop_sign": "standing under a stop sign",
    "tie tie": "tying a tie",
    "control tv": "controlling a tv",
    "spin sports_ball": "spinning a sports ball",
    "hold scissors": "holding a pair of scissors",
    "cut_with scissors": "cutting with a pair of scissors",
    "adjust skis": "adjusting a pair of skis",
    "eat broccoli": "eating broccoli",
    "hug person": "hugging another person",
    "hold hair_drier": "holding a hair drier",
    "lasso cow": "lassoing a cow",
    # where participle and object alone would say something else
    "blow cake": "blowing out candles on a cake",
    "light cake": "lighting candles on a cake",
    "grind skateboard": "grinding on a skateboard",
    "pour bottle": "pouring from a bottle",
    "read laptop": "reading on a laptop",
    "ride airplane": "riding in an airplane",
    "ride bus": "riding a bus",
    "set umbrella": "setting up an umbrella",
    "set clock": "setting a clock",
    "sip cup": "sipping from a cup",
    "stick fork": "sticking a fork into something",
    "stir bowl": "stirring food in a bowl",
    "tie boat": "tying up a boat",
    "toast wine_glass": "toasting with a wine glass",
    "wave bus": "waving at a bus",
}


@pytest.mark.parametrize(("interaction", "said"), SENTENCES.items())
def test_exceptions_are_english(interaction, said):
    verb, name = interaction.split()
    hoi = HICO.hoi_id()[HICO.verbs.index(verb), HICO.objects.index(name)]
    assert PROMPTS[hoi] == f"a photo of a person {said}"


def test_every_interaction_is_a_participle_and_an_object_with_its_article():
    participles = {ing.split("_")[0] for ing in HICO.verb_ing} | {"and"}
    for hoi, prompt in enumerate(PROMPTS):
        _, name = HICO.hoi_name(hoi)
        doing, *rest = prompt.removeprefix("a photo of a person ").split()
        assert doing in participles, prompt
        assert f" {noun_phrase(name)}" in prompt, prompt
        assert re.fullmatch(r"[a-z ]+", prompt), prompt
        assert len(rest) <= 6, prompt


def test_every_prompt_differs():
    assert len(set(PROMPTS)) == 600


def test_an_article_fits_the_sound_that_follows():
    for prompt in (*PROMPTS, *HICO.object_prompts()):
        for article, word in re.findall(r"\b(an?) (\w)", prompt):
            assert (article == "an") == (word in "aeiou"), prompt  # COCO has no name like "uniform" or "hour"


def participle(verb: str) -> str:
    """By the rules of English spelling."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e"):
        return verb[:-1] + "ing"
    short = len(re.findall("[aeiou]+", verb)) == 1 and re.search("[^aeiou][aeiou][^aeiouwxy]$", verb)
    return verb + (verb[-1] if short or verb == "control" else "") + "ing"


def test_participles_are_spelled_by_the_rules_of_english():
    for verb, ing in zip(HICO.verbs, HICO.verb_ing, strict=True):
        head, *rest = verb.split("_")
        if verb != "no_interaction":
            assert ing == "_".join([participle(head), *rest])


def test_articles_of_all_objects():
    phrases = dict(zip(COCO_OBJECTS, map(noun_phrase, COCO_OBJECTS), strict=True))
    an = {name for name, phrase in phrases.items() if phrase.startswith("an ")}
    assert an == {"airplane", "elephant", "umbrella", "apple", "orange", "oven"}
    odd = {name for name, phrase in phrases.items() if not re.fullmatch(f"an? {name.replace('_', ' ')}", phrase)}
    assert odd == {"person", "broccoli", "scissors", "skis"}


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("uniform", "a uniform"),
        ("American flag", "an American flag"),
        ("urn", "an urn"),
        ("undertaking", "an undertaking"),
        ("pruning shears", "a pair of pruning shears"),
    ],
)
def test_names_of_other_vocabularies_get_their_article_too(name, phrase):
    assert noun_phrase(name) == phrase


def test_pico_prompts_are_hicos():
    assert set(pico_vocabulary().prompts()) <= set(PROMPTS)


def test_verbs_and_objects_alone():
    by_verb = dict(zip(HICO.verbs, HICO.verb_prompts(), strict=True))
    assert by_verb["ride"] == "a photo of a person riding something"
    assert by_verb["sit_at"] == "a photo of a person sitting at something"
    assert by_verb["no_interaction"] == "a photo of a person and something"
    by_object = dict(zip(HICO.objects, HICO.object_prompts(), strict=True))
    assert by_object["bicycle"] == "a photo of a bicycle"
    assert by_object["person"] == "a photo of a person"
    assert by_object["scissors"] == object_prompt("scissors") == "a photo of a pair of scissors"
    assert len(set(by_verb.values())) == 117
    assert len(set(by_object.values())) == 80


def test_a_verb_without_objects_stands_alone():
    verbs = {"stand": "standing", "hit_with": "hitting_with"}
    v = Vocabulary(COCO_OBJECTS, tuple(verbs), np.array([(1, 38)], np.int16), tuple(verbs.values()))
    assert v.verb_prompts() == ("a photo of a person standing", "a photo of a person hitting with something")
    assert v.prompts() == ("a photo of a person hitting with a tennis racket",)
    assert verb_prompt("stand", "standing", takes_object=False) == "a photo of a person standing"
