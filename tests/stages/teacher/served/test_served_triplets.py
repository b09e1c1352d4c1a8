"""JSON of a server becomes the triplets table's cells; what is no JSON of the form is a failure."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.derived.triplets import Triplets
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.served.replies import NoAnswer
from hoi_distill.stages.teacher.served.triplets import QUESTION, ServedTriplets
from tests.fixtures.chat_server import ChatServer, Reply, completion, error
from tests.fixtures.stages import made


def stage(url="http://127.0.0.1:9/v1", **keys) -> ServedTriplets:
    return made(ServedTriplets, base_url=url, model="tiny", batch_size=1, retries=0, **keys)


def answer(*pairs: tuple[str, str]) -> str:
    return json.dumps({"interactions": [{"verb": verb, "object": obj} for verb, obj in pairs]})


def pairs_of(cell, vocabulary=None) -> list[tuple[str, str]]:
    vocabulary = vocabulary or pico_vocabulary()
    return [(vocabulary.verbs[v], vocabulary.objects[o]) for v, o in zip(cell["verb"], cell["object"], strict=True)]


def one(reply, **keys):
    """The cell of one image, the turn, and the body of the request."""
    batch = Batch(np.zeros(1, "V16"), ["a"], 1, [Image.new("RGB", (4, 4))])
    with ChatServer(lambda *_: reply) as server:
        asking = stage(server.url, **keys)
        asking.open("cpu", {})
        cell = asking.compute(batch, asking.columns, {})[asking.columns[0]]
    assert cell.type == Triplets.output.type
    return cell.to_pylist()[0], batch.turn, server.bodies[0]


def known() -> list[tuple[str, str]]:
    vocabulary = pico_vocabulary()
    return [(vocabulary.verbs[verb], vocabulary.objects[obj]) for verb, obj in vocabulary.hois[:3]]


def test_an_answer_becomes_a_cell_of_the_triplets_table():
    cell, turn, body = one(Reply(completion(answer(*known()))))
    assert pairs_of(cell) == known()
    assert cell["weight"] == [1.0] * 3
    assert cell["dropped"] == []
    assert not turn.failures
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["messages"][0]["content"][1]["text"] == QUESTION


def test_an_empty_list_is_an_answer():
    cell, turn, _ = one(Reply(completion(answer())))
    assert cell["verb"] == []
    assert not turn.failures


def test_a_fence_and_another_spelling_of_names_change_nothing():
    verb, obj = known()[0]
    said = answer((verb.upper().replace("_", " "), obj.replace("_", "  ")), (verb, obj))
    assert pairs_of(stage().read(f"```json\n{said}\n```")) == [(verb, obj)]


def test_what_is_no_interaction_of_the_vocabulary_is_dropped_with_its_reason():
    vocabulary = hico_vocabulary()
    asking = made(ServedTriplets, vocabulary=vocabulary, base_url="http://h/v1", model="m")
    said = [
        ("ride", "bicycle"),
        ("fly", "unicorn"),
        ("levitate", "cup"),
        ("ride", "unicorn"),
        ("ride", "cup"),
        ("no_interaction", "bicycle"),
    ]
    cell = asking.read(answer(*said))
    assert pairs_of(cell, vocabulary) == [("ride", "bicycle")]
    assert [(each["phrase"], each["reason"]) for each in cell["dropped"]] == [
        ("fly unicorn", "no such object"),
        ("levitate cup", "no such verb"),
        ("ride unicorn", "no such object"),
        ("ride cup", "no such interaction"),
        ("no_interaction bicycle", "no such verb"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A person rides a bicycle.", "no JSON"),
        ('{"interactions": [{"verb": "ride", "obj', "no JSON"),
        ('["ride"]', "JSON without a list of interactions"),
        ('{"interactions": "none"}', "JSON without a list of interactions"),
        ('{"interactions": ["ride a bicycle"]}', "an interaction without a verb and an object"),
        ('{"interactions": [{"verb": "ride"}]}', "an interaction without a verb and an object"),
    ],
)
def test_what_is_not_of_the_form_is_a_failure(text, reason):
    with pytest.raises(NoAnswer, match=reason):
        stage().read(text)
    cell, turn, _ = one(Reply(completion(text)))
    assert cell is None
    assert next(iter(turn.failures.values())).startswith(reason)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(completion(answer()[:9], finish="length")), "cut at max_new_tokens"),
        (Reply(completion(None, refusal="no")), "refused: no"),
        (error(400, "response_format is not supported"), "the server refuses the request"),
    ],
)
def test_what_is_cut_or_refused_is_a_failure(reply, reason):
    _, turn, _ = one(reply)
    assert next(iter(turn.failures.values())).startswith(reason)


def test_the_schema_allows_the_vocabularys_names_and_no_others():
    asking = made(ServedTriplets, vocabulary=hico_vocabulary(), base_url="http://h/v1", model="m")
    jsonschema.validate(json.loads(answer(("sit on", "dining table"))), asking.schema())
    wrong = (
        answer(("levitate", "bicycle")),
        answer(("no interaction", "bicycle")),
        '{"interactions": [{"verb": "ride"}]}',
        "{}",
    )
    for text in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(text), asking.schema())


@pytest.mark.parametrize("form", ["json_object", "text"])
def test_the_form_is_told_as_the_configuration_says_and_is_another_table(form):
    _, _, body = one(Reply(completion(answer())), form=form)
    assert body.get("response_format") == ({"type": "json_object"} if form == "json_object" else None)
    assert fingerprint_record(stage()) != fingerprint_record(stage(form=form))


def test_another_vocabulary_is_another_table():
    ours = made(ServedTriplets, vocabulary=hico_vocabulary(), base_url="http://h/v1", model="tiny")
    assert fingerprint_record(ours) != fingerprint_record(stage())
