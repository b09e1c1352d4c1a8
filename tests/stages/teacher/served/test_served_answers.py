"""A server's answers become the cells of local answers; what is no answer becomes a failure with its reason."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.stage import Batch, Turn, fingerprint_record
from hoi_distill.stages.teacher.blip.first_token import CELL
from hoi_distill.stages.teacher.served.answers import ServedAnswers
from hoi_distill.storage.errors import UserError
from tests.fixtures.chat_server import ChatServer, Reply, completion, error, first_tokens, image_of, question_of
from tests.fixtures.stages import made

OPEN, YES_NO = "what is the person holding", "is there anybody riding a bicycle?"
EVEN = {" yes": math.log(0.3), "Yes": math.log(0.1), "no": math.log(0.4), "the": math.log(0.2)}


def batch(rows: int = 3, padded: int = 4, **turn) -> Batch:
    """Images of different shades."""
    images = [Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in range(rows)]
    take = [min(row, rows - 1) for row in range(padded)]
    return Batch(
        np.zeros(padded, "V16"), [str(row) for row in take], rows, [images[row] for row in take], turn=Turn(**turn)
    )


def shade_of(body) -> int:
    data = base64.b64decode(image_of(body).partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))[0]


def told(body, _number=0) -> Reply:
    """The image's shade and the question; to a yes/no question 0.4 of yes, 0.4 of no and 0.2 of another word."""
    if body.get("logprobs"):
        return Reply(completion("yes", finish="length", logprobs=first_tokens(EVEN)))
    return Reply(completion(f"{shade_of(body)} {question_of(body)} "))


def opened(server: ChatServer | str, columns=(OPEN, YES_NO), **keys) -> ServedAnswers:
    url = server if isinstance(server, str) else server.url
    stage = made(ServedAnswers, base_url=url, model="tiny", columns=columns, batch_size=4, retries=2, **keys)
    stage.open("cpu", {})
    return stage


def asked(answer, columns=(OPEN, YES_NO), rows=3, turn=None, **keys):
    """Cells, the turn and the server, of one batch."""
    given = batch(rows, max(rows, 4), **(turn or {}))
    with ChatServer(answer) as server:
        cells = opened(server, columns, **keys).compute(given, columns, {})
    return {column: values.to_pylist()[:rows] for column, values in cells.items()}, given.turn, server


def test_each_cell_is_the_answer_to_its_own_image_and_question():
    cells, turn, server = asked(told)
    assert [cell["text"] for cell in cells[OPEN]] == [f"{shade} {OPEN}" for shade in range(3)]
    assert [cell["score"] for cell in cells[OPEN]] == [None] * 3
    assert [cell["score"] for cell in cells[YES_NO]] == pytest.approx([0.5] * 3)
    assert not turn.failures
    assert not turn.unasked
    assert len(server.bodies) == 6


def test_a_column_has_the_type_and_length_of_local_answers():
    with ChatServer(told) as server:
        cells = opened(server).compute(batch(), (OPEN, YES_NO), {})
    assert {values.type for values in cells.values()} == {CELL}
    assert {len(values) for values in cells.values()} == {4}


def test_only_wanted_cells_are_asked_for():
    wanted = np.array([[True, False], [False, False], [False, True]])
    cells, turn, server = asked(told, turn={"wanted": wanted})
    assert sorted((shade_of(body), question_of(body)) for body in server.bodies) == [(0, OPEN), (2, YES_NO)]
    assert not turn.unasked
    assert cells[OPEN][1] is None


def test_yes_no_questions_ask_for_one_token_and_its_alternatives():
    _, _, server = asked(told, instruction="Answer with yes or no.", temperature=0.7, top_logprobs=7, seed=3)
    bodies = {bool(body.get("logprobs")): body for body in server.bodies}
    assert question_of(bodies[True]) == f"{YES_NO} Answer with yes or no."
    assert (bodies[True]["max_tokens"], bodies[True]["top_logprobs"], bodies[True]["temperature"]) == (1, 7, 0)
    assert (bodies[False]["max_tokens"], bodies[False]["temperature"], bodies[False]["seed"]) == (128, 0.7, 3)


def test_graded_scores_read_the_number_and_are_another_table():
    cells, turn, _ = asked(lambda *_: Reply(completion("About 85.")), (YES_NO,), scores="graded")
    assert [cell["score"] for cell in cells[YES_NO]] == pytest.approx([0.85] * 3)
    assert cells[YES_NO][0]["text"] == "About 85."
    _, turn, _ = asked(lambda *_: Reply(completion("Quite sure, or 300")), (YES_NO,), scores="graded")
    assert set(turn.failures.values()) == {"not one number from 0 to 100: 'Quite sure, or 300'"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(completion("a person who is", finish="length")), "cut at max_new_tokens"),
        (Reply(completion(None, refusal="I cannot help")), "refused: I cannot help"),
        (Reply(completion("", finish="content_filter")), "refused by the server's content filter"),
        (error(400, "flagged", "content_policy_violation"), "refused: "),
        (error(413, "image too large"), "the server refuses the request: "),
    ],
)
def test_what_is_no_answer_is_a_failure_of_that_cell_alone(reply, reason):
    cells, turn, server = asked(lambda body, number: reply if shade_of(body) == 1 else told(body), (OPEN,))
    assert list(turn.failures) == [(1, OPEN)]
    assert turn.failures[1, OPEN].startswith(reason)
    assert [cell and cell["text"] for cell in cells[OPEN]] == [f"0 {OPEN}", None, f"2 {OPEN}"]
    assert len(server.bodies) == 3
    assert not turn.end


def test_neither_yes_nor_no_is_a_failure():
    reply = Reply(completion("the", logprobs=first_tokens({"the": -0.1, "a": -3.0})))
    _, turn, _ = asked(lambda *_: reply, (YES_NO,))
    assert set(turn.failures.values()) == {"neither yes nor no among the 2 likeliest first tokens; the first is 'the'"}


def test_a_server_without_log_probabilities_ends_the_run_and_names_the_key():
    _, turn, _ = asked(lambda *_: Reply(completion("yes")), (YES_NO,))
    assert "the server gives no log-probabilities of tokens; write scores: graded" in turn.end
    assert len(turn.unasked) == 3


def test_cut_answers_are_kept_if_the_configuration_says_so():
    cells, turn, _ = asked(lambda *_: Reply(completion("a person who", finish="length")), (OPEN,), keep_cut=True)
    assert not turn.failures
    assert cells[OPEN][0]["text"] == "a person who"


@pytest.mark.parametrize("called", ["tiny", "tiny@main", "tiny-2026-11-30", "tiny:7b-q4"])
def test_a_name_with_a_revision_is_the_model_and_is_recorded(called):
    _, turn, _ = asked(lambda *_: Reply(completion("x", called)), (OPEN,))
    assert not turn.end
    assert turn.recorded == {"server_model": called, "system_fingerprints": ["fp_1"]}


@pytest.mark.parametrize("called", ["other", "tiny-turbo", "tinyer"])
def test_another_models_answers_end_the_run_and_none_is_kept(called):
    cells, turn, _ = asked(lambda *_: Reply(completion("x", called)), (OPEN,))
    assert f"answers as {called!r}; correct model, or write answers_as: {called}" in turn.end
    assert cells[OPEN] == [None] * 3
    cells, turn, _ = asked(lambda *_: Reply(completion("x", called)), (OPEN,), answers_as=called)
    assert not turn.end
    assert cells[OPEN][0]["text"] == "x"


def test_a_model_that_changes_on_the_way_ends_the_run():
    names = ["tiny-2026-01-01", "tiny-2026-02-02"]
    _, turn, _ = asked(lambda _, number: Reply(completion("x", names[number > 0])), (OPEN,), in_flight=1)
    assert "answered as 'tiny-2026-01-01' before, and as 'tiny-2026-02-02' now" in turn.end


def test_tokens_and_price_are_counted():
    _, turn, _ = asked(told, (OPEN,), prompt_price=2.0, completion_price=30.0)
    assert turn.counts == pytest.approx(
        {"requests": 3, "prompt tokens": 300, "completion tokens": 30, "price": (300 * 2 + 30 * 30) / 1e6}
    )


def test_a_run_stops_before_a_request_that_the_budget_does_not_hold():
    """An answer costs 0.001 and the budget is 0.0035: three answers, one after another."""
    cells, turn, server = asked(
        lambda *_: Reply(completion("x")), (OPEN,), rows=9, in_flight=1, prompt_price=10.0, budget=0.0035
    )
    assert len(server.bodies) == 3
    assert sum(cell is not None for cell in cells[OPEN]) == 3
    assert len(turn.unasked) == 6
    assert "the budget is spent" in turn.end


def test_workers_share_a_budget():
    _, _, server = asked(
        lambda *_: Reply(completion("x")), (OPEN,), 9, {"share": 0.5}, in_flight=1, prompt_price=10.0, budget=0.0045
    )
    assert len(server.bodies) == 2


def test_a_budget_without_counted_tokens_ends_the_run():
    _, turn, _ = asked(
        lambda *_: Reply(completion("x", usage=None)), (OPEN,), in_flight=1, prompt_price=1.0, budget=9.0
    )
    assert "does not say how many tokens" in turn.end


def test_a_stop_ends_the_batch_and_keeps_what_is_answered():
    stop = threading.Event()

    def answer(body, number):
        if number == 3:
            stop.set()
        return Reply(completion("x"), after=0.3 * (number >= 3))

    cells, turn, server = asked(answer, (OPEN,), 40, {"stopped": stop.is_set}, in_flight=1)
    assert len(server.bodies) < 40
    assert sum(cell is not None for cell in cells[OPEN]) == len(server.bodies)
    assert len(turn.unasked) == 40 - len(server.bodies)
    assert not turn.failures


def test_the_key_comes_from_the_environment_and_goes_into_the_header_alone(monkeypatch, caplog):
    key = "sk-very-secret-1"
    monkeypatch.setenv("SOME_KEY", key)
    caplog.set_level("DEBUG")
    with ChatServer(lambda *_: error(401, f"wrong key {key}")) as server:
        stage = opened(server, (OPEN,), key_variable="SOME_KEY")
        given = batch()
        stage.compute(given, (OPEN,), {})
    assert server.headers[0]["authorization"] == f"Bearer {key}"
    assert "wrong key ***" in given.turn.end
    written = [str(given.turn), json.dumps(stage.parameters()), json.dumps(stage.provenance()), caplog.text]
    assert not any(key in text for text in [*written, str(server.bodies)])
    assert key.encode() not in pickle.dumps(stage)


def test_a_key_that_is_meant_for_another_server_is_not_sent(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "sk-of-another-server")
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "X-Secret: sk-of-another-server\nAuthorization: Bearer sk-of-another-server"
    )
    _, turn, server = asked(told)
    assert not turn.end
    assert "sk-of-another-server" not in str(server.headers)


def test_a_missing_key_is_told_before_work_starts(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    stage = made(ServedAnswers, base_url="http://127.0.0.1:1/v1", model="m", columns=(OPEN,), key_variable="SOME_KEY")
    with pytest.raises(UserError, match="key_variable: the environment variable SOME_KEY is not set"):
        stage.rehearse()


@pytest.mark.parametrize("address", ["http://me:secret@host/v1", "https://host/v1?key=secret", "host:8000"])
def test_an_address_holds_no_key_and_says_what_it_is(address):
    with pytest.raises(UserError, match="address"):
        made(ServedAnswers, base_url=address, model="m", columns=(OPEN,))


@pytest.mark.parametrize(
    ("keys", "named"), [({"budget": 1.0}, "prompt_price"), ({"extra": {"model": "x"}}, "extra.model")]
)
def test_keys_that_do_not_go_together_are_refused(keys, named):
    with pytest.raises(UserError, match=named):
        made(ServedAnswers, base_url="http://h/v1", model="m", columns=(OPEN,), **keys)


def test_the_fingerprint_follows_what_answers_depend_on():
    def record(url="http://h/v1", model="m", **keys):
        return str(fingerprint_record(made(ServedAnswers, base_url=url, model=model, **{"columns": (OPEN,), **keys})))

    same = [{"columns": ("yes or no",)}, {"in_flight": 3}, {"budget": 1.0, "prompt_price": 1.0}, {"retries": 1},
            {"key_variable": "K"}, {"answers_as": "n"}, {"requests_per_minute": 9}, {"limit_as": "max_completion_tokens"},
            {"url": "https://elsewhere:9/v1"}, {"batch_size": 3}, {"timeout": 3}]  # fmt: skip
    assert {record(**keys) for keys in same} == {record()}
    others = [{"model": "n"}, {"revision": "awq"}, {"temperature": 0.1}, {"top_p": 0.5}, {"seed": 1}, {"system": "s"},
              {"max_new_tokens": 9}, {"extra": {"a": 1}}, {"image_format": "jpeg"}, {"longest_side": 9},
              {"instruction": "i"}, {"scores": "graded"}, {"top_logprobs": 5}, {"keep_cut": True}]  # fmt: skip
    assert len({record(), *(record(**keys) for keys in others)}) == len(others) + 1


def test_images_are_sent_as_they_are_or_smaller():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))

    def sent(**keys):
        stage = made(ServedAnswers, base_url="http://h/v1", model="m", columns=(OPEN,), **keys)
        return Image.open(io.BytesIO(base64.b64decode(stage.prepare(image).partition(",")[2])))

    assert np.array_equal(np.asarray(sent()), np.asarray(image))
    assert sent(longest_side=30).size == (30, 20)
    assert sent(longest_side=90).size == (60, 40)
    assert sent(image_format="jpeg").format == "JPEG"
