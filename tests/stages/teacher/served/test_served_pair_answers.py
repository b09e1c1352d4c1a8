"""A server is asked about pairs in the words of the local models, and its answers become the cells of theirs."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.instances import INSTANCES
from hoi_distill.stages.stage import Batch, Turn, fingerprint_record
from hoi_distill.stages.teacher.pair_answers import PairAnswers
from hoi_distill.stages.teacher.pair_views import blurred_around
from hoi_distill.stages.teacher.served.pair_answers import ServedPairAnswers
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.chat_server import ChatServer, Reply, completion, error, first_tokens, image_of, question_of
from tests.fixtures.stages import made

WORDS = Vocabulary.from_actions(
    [("bicycle", "hold", "holding"), ("bicycle", "ride", "riding"), ("cup", "hold", "holding")], "the test"
)
COLUMNS = HOLD, RIDE = tuple(WORDS.pair_questions())
BICYCLE, CUP = (WORDS.objects.index(name) for name in ("bicycle", "cup"))
SCENE = {
    "boxes": [[0, 0, 20, 40], [30, 10, 60, 50], [40, 5, 48, 15]],
    "labels": [0, BICYCLE, CUP],
    "humans": 1,
    "width": 80,
    "height": 60,
}
NOBODY = {**SCENE, "boxes": SCENE["boxes"][1:], "labels": [BICYCLE, CUP], "humans": 0}
EVEN = {" yes": math.log(0.3), "Yes": math.log(0.1), "no": math.log(0.2), "the": math.log(0.1)}


def opened(url, **keys):
    keys = {"columns": COLUMNS, "batch_size": 4, "retries": 1, **keys}
    stage = made(ServedPairAnswers, vocabulary=WORDS, base_url=url, model="tiny", **keys)
    stage.open("cpu", {})
    return stage


def asked(answer, scenes=(SCENE, SCENE, NOBODY), turn=None, **keys):
    """Cells by column, the turn and the server, of one batch of images of different shades."""
    images = [Image.new("RGB", (80, 60), (shade, 0, 0)) for shade in range(len(scenes))]
    batch = Batch(np.zeros(len(scenes), "V16"), ["x"] * len(scenes), len(scenes), images, turn=Turn(**(turn or {})))
    with ChatServer(answer) as server:
        found = opened(server.url, **keys).compute(
            batch, COLUMNS, {"instances": {"value": pa.array(scenes, INSTANCES)}}
        )
    assert all(values.type == PairAnswers.output.type for values in found.values())
    return {column: values.to_pylist() for column, values in found.items()}, batch.turn, server


def seen_by(body):
    return Image.open(io.BytesIO(base64.b64decode(image_of(body).partition(",")[2]))).convert("RGB")


def even(*_):
    return Reply(completion("yes", finish="length", logprobs=first_tokens(EVEN)))


def test_each_question_is_one_request_in_the_words_of_the_local_models():
    cells, turn, server = asked(even)
    said = [(seen_by(body).getpixel((0, 0))[0], question_of(body)) for body in server.bodies]
    bicycle = "A person is at [0, 0, 20, 40] and a bicycle is at [30, 10, 60, 50]. Is this person"
    cup = "A person is at [0, 0, 20, 40] and a cup is at [40, 5, 48, 15]. Is this person"
    ask = "Answer with yes or no."
    questions = [
        f"{bicycle} holding this bicycle? {ask}",
        f"{bicycle} riding this bicycle? {ask}",
        f"{cup} holding this cup? {ask}",
    ]
    assert sorted(said) == sorted((shade, question) for shade in (0, 1) for question in questions)
    assert {(body["max_tokens"], body["logprobs"], body["temperature"]) for body in server.bodies} == {(1, True, 0)}
    assert [cell["pair"] for cell in cells[HOLD]] == [[0, 1], [0, 1], []]
    assert [cell["pair"] for cell in cells[RIDE]] == [[0], [0], []]
    np.testing.assert_allclose(np.exp(cells[HOLD][1]["yes"]), [0.4, 0.4], rtol=1e-5)
    np.testing.assert_allclose(np.exp(cells[HOLD][1]["no"]), [0.2, 0.2], rtol=1e-5)
    assert not turn.failures
    assert not turn.unasked


def test_a_word_that_is_not_listed_has_the_last_ones_probability():
    listed = {"Yes": math.log(0.9), "the": math.log(0.02)}
    cells, _, _ = asked(lambda *_: Reply(completion("Yes", logprobs=first_tokens(listed))), (SCENE,))
    np.testing.assert_allclose(np.exp([cells[RIDE][0]["yes"], cells[RIDE][0]["no"]]), [[0.9], [0.02]], rtol=1e-5)


def test_the_turn_hears_of_cells_though_each_is_several_requests():
    heard = []
    _, _, server = asked(even, (SCENE,), {"heard": heard.append})
    assert len(server.bodies) == 3
    assert heard[-1] == 2


def test_only_wanted_cells_are_asked_for():
    wanted = np.array([[False, True], [False, False]])
    cells, turn, server = asked(even, (SCENE, SCENE), {"wanted": wanted})
    assert ["riding" in question_of(body) for body in server.bodies] == [True]
    assert cells[RIDE][0]["pair"] == [0]
    assert cells[HOLD] == [None, None]
    assert not turn.unasked


def test_one_question_without_an_answer_is_a_failure_of_its_cell_alone():
    cells, turn, _ = asked(
        lambda body, _: error(400, "flagged", "content_policy_violation") if "cup" in question_of(body) else even(),
        (SCENE,),
    )
    assert {cell: reason[:8] for cell, reason in turn.failures.items()} == {(0, HOLD): "refused:"}
    assert cells[HOLD] == [None]
    assert cells[RIDE][0]["pair"] == [0]


def test_what_was_not_asked_stays_empty_though_another_question_of_the_cell_was_answered():
    cells, turn, server = asked(even, (SCENE,), in_flight=1, budget=1.5e-4, prompt_price=1.0)
    assert 0 < len(server.bodies) < 3
    assert "budget" in turn.end
    assert turn.unasked
    assert not turn.failures
    assert all(cells[column][row] is None for row, column in turn.unasked)


def test_without_log_probabilities_the_run_ends_and_says_so():
    _, turn, _ = asked(lambda *_: Reply(completion("yes")), (SCENE,))
    assert "no log-probabilities of tokens" in turn.end
    assert len(turn.unasked) == 2


def test_boxes_are_written_in_pixels_of_the_image_as_it_is_sent():
    _, _, server = asked(even, (SCENE,), longest_side=40)
    assert seen_by(server.bodies[0]).size == (40, 30)
    assert all("A person is at [0, 0, 10, 20]" in question_of(body) for body in server.bodies)
    _, _, server = asked(even, (SCENE,), coordinates="fractions")
    assert all("A person is at [0.00, 0.00, 0.25, 0.67]" in question_of(body) for body in server.bodies)


def test_a_view_of_a_pair_is_what_is_sent_with_its_questions_and_is_made_once(monkeypatch):
    texture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [texture])
    made_of, view_of = [], ServedPairAnswers.view_of
    monkeypatch.setattr(
        ServedPairAnswers, "view_of", lambda *given: made_of.append(tuple(given[-1])) or view_of(*given)
    )
    with ChatServer(even) as server:
        stage = opened(server.url, view="blur")
        stage.compute(batch, COLUMNS, {"instances": {"value": pa.array([SCENE], INSTANCES)}})
    boxes = np.array(SCENE["boxes"])
    assert len(server.bodies) == 3
    assert made_of == [(0, 1), (0, 2)]
    for body in server.bodies:
        shown = blurred_around(texture, boxes[0], boxes[2 if "cup" in question_of(body) else 1])
        np.testing.assert_array_equal(np.asarray(seen_by(body)), np.asarray(shown))


def test_the_fingerprint_follows_what_answers_depend_on():
    def record(**keys):
        keys = {"base_url": "http://h/v1", "model": "m", "columns": COLUMNS, **keys}
        return str(fingerprint_record(made(ServedPairAnswers, vocabulary=WORDS, **keys)))

    assert record() == record(
        base_url="http://other/v1", in_flight=3, columns=COLUMNS[:1], budget=1.0, prompt_price=1.0
    )
    keys = [
        {"model": "n"}, {"revision": "2"}, {"coordinates": "fractions"}, {"marks": "{object}: {person_box} {object_box}"},
        {"question": "{action}?"}, {"view": "blur"}, {"view": "crop"}, {"top_logprobs": 5}, {"longest_side": 9},
    ]  # fmt: skip
    assert len({record(), *(record(**key) for key in keys)}) == len(keys) + 1


def test_wrong_keys_are_told():
    def wrong(**keys):
        with pytest.raises(UserError) as told:
            made(
                ServedPairAnswers,
                vocabulary=WORDS,
                **{"base_url": "http://h/v1", "model": "m", "columns": COLUMNS, **keys},
            )
        return str(told.value)

    assert "is no question about pairs" in wrong(columns=("is there anybody?",))
    assert "must hold {object_box} once" in wrong(marks="{person_box} {object}")
    assert "without a price nothing is spent" in wrong(budget=1.0)


class LocalAnswers:
    """Answers as a local model does to the whole prompt."""

    def __init__(self, stage) -> None:
        self.stage = stage

    def __call__(self, body, _number):
        stage = self.stage
        given = stage.prepare(seen_by(body))
        ids = stage.widened(stage.speaker.prompt_ids(question_of(body)), given)
        with torch.inference_mode():
            logits = stage.model(**stage.given(ids), **stage.pixels(given)).logits[0, -1].log_softmax(-1)
        decode = stage.speaker.tokenizer.decode
        listed = {decode([token]): float(logits[token]) for token in logits.argsort(descending=True).tolist()}
        return Reply(json.loads(json.dumps(completion("x", finish="length", logprobs=first_tokens(listed)))))


def test_served_weights_write_the_cells_of_local_ones(families):
    local = made(PairAnswers, vocabulary=WORDS, checkpoint=Checkpoint.find(families("llava")), columns=COLUMNS)
    local.open("cpu", {})
    seen = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [seen])
    given = {"instances": {"value": pa.array([SCENE], INSTANCES)}}
    ours = local.compute(batch, COLUMNS, given)
    with ChatServer(LocalAnswers(local)) as server:
        stage = opened(server.url, coordinates="fractions", top_logprobs=10_000)
        theirs = stage.compute(Batch(np.zeros(1, "V16"), ["x"], 1, [seen]), COLUMNS, given)
    for column in COLUMNS:
        (one,), (other,) = ours[column].to_pylist(), theirs[column].to_pylist()
        assert one["pair"] == other["pair"]
        for word in ("yes", "no"):
            np.testing.assert_allclose(other[word], one[word], atol=1e-4)
