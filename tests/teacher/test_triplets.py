"""What a sentence says, and what it does not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stages.data.vocabulary import hico_vocabulary
from stages.stage import Batch, fingerprint_record
from stages.teacher.blip import BlipCaptions
from stages.teacher.triplets import Lexicon, Triplets

HICO = hico_vocabulary()
HOIS = [(int(verb), int(obj)) for verb, obj in HICO.hois]
LEXICON = Lexicon(HICO.verbs, HICO.objects, HOIS)

TABLE = {
    "a person riding a bicycle": "ride bicycle",
    "A man RIDES his big red bike.": "ride bicycle",
    "two women rode bicycles": "ride bicycle",
    "the person is sitting on a chair": "sit_on chair",
    "a man sitting on a chair reading a book": "sit_on chair, read book",
    "a man riding a bike and a woman holding a cup": "ride bicycle, hold cup",
    "riding and holding a bicycle": "ride bicycle, hold bicycle",
    "a boy holding a cup and a book": "hold cup, hold book",
    "a boy holding a cup and a girl reading a book": "hold cup, read book",
    "a man holding a cup and a dog is running": "hold cup",
    "a woman watching a man who is riding a horse": "ride horse",
    "a person talking on a cell phone": "talk_on cell_phone",
    "a guy talking on his phone": "talk_on cell_phone",
    "a girl holding a teddy bear": "hold teddy_bear",
    "a chef cutting a hot dog with a knife": "cut hot_dog",
    "a photo of a person hugging another person": "hug person",
    "the person is holding a cup; the person is drinking with a cup": "hold cup, drink_with cup",
    "a dog holding a frisbee": "",
    "a man petting a dog holding a frisbee": "pet dog",
    "a horse ridden by a man": "",
    "a person and a bicycle": "",
    "nobody is interacting": "",
    "": "",
}
DROPPED = {
    "a man riding a pizza": "the vocabulary has no ride pizza",
    "a dog holding a frisbee": "the subject is not a person",
    "a man riding along": "no object of the vocabulary follows",
    "a man juggling an apple": "the vocabulary has no such verb",
}


@pytest.mark.parametrize(("sentence", "triplets"), TABLE.items())
def test_sentences(sentence, triplets):
    found = [f"{HICO.verbs[verb]} {HICO.objects[obj]}" for verb, obj in LEXICON.read(sentence).triplets]
    assert ", ".join(found) == triplets


@pytest.mark.parametrize(("sentence", "reason"), DROPPED.items())
def test_what_is_dropped_says_why(sentence, reason):
    reading = LEXICON.read(sentence)
    assert not reading.triplets
    assert [why for _, why in reading.dropped] == [reason]


def test_every_interaction_is_read_back_from_its_own_prompt():
    for hoi, (verb, obj) in enumerate(HOIS):
        expected = [] if HICO.verbs[verb] == "no_interaction" else [(verb, obj)]
        assert list(LEXICON.read(HICO.prompt(hoi)).triplets) == expected, HICO.prompt(hoi)


@pytest.fixture
def stage():
    stage = Triplets(("a photo of", "list:", "is there anybody riding a bicycle?"), HICO.verbs, HICO.objects, HOIS)
    stage.open("cpu", {})
    return stage


def cells_of(stage, question, captions):
    batch = Batch(np.zeros(len(captions), "V16"), [""] * len(captions), len(captions))
    inputs = {"captions": {question: pa.array(captions, BlipCaptions.output.type)}}
    values = stage.compute(batch, [question], inputs)[question]
    assert values.type == stage.output.type
    return values.to_pylist()


def test_a_caption_column_gives_certain_triplets(stage):
    said = {"text": "a person riding a bicycle", "score": None}
    first, second, absent = cells_of(stage, "a photo of", [said, {"text": "a cup", "score": None}, None])
    assert [(HICO.verbs[first["verb"][0]], HICO.objects[first["object"][0]])] == [("ride", "bicycle")]
    assert first["weight"] == [1.0]
    assert first["phrase"] == ["riding a bicycle"]
    assert second == {"verb": [], "object": [], "weight": [], "phrase": [], "dropped": []}
    assert absent is None


def test_a_yes_no_column_weighs_the_asked_triplet_by_its_score(stage):
    (cell,) = cells_of(stage, "is there anybody riding a bicycle?", [{"text": "no", "score": 0.25}])
    assert HICO.verbs[cell["verb"][0]] == "ride"
    assert cell["weight"] == [0.25]


def test_it_reads_the_one_column_it_names_and_no_picture(stage):
    assert stage.decodes is False
    assert stage.needs("list:") == {"captions": ("list:",)}


def test_another_vocabulary_is_another_table(stage):
    smaller = Triplets(stage.columns, HICO.verbs, HICO.objects, HOIS[:-1])
    fewer = Triplets(stage.columns[:1], HICO.verbs, HICO.objects, HOIS)
    assert fingerprint_record(smaller) != fingerprint_record(stage)
    assert fingerprint_record(fewer) == fingerprint_record(stage)
