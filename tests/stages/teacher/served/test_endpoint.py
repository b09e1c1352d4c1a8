"""Every request is answered once, whatever the server does meanwhile; when it cannot go on, what is answered stays."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from hoi_distill.stages.stage import Turn
from hoi_distill.stages.teacher.served import endpoint as module
from hoi_distill.stages.teacher.served.account import Account, Pace
from hoi_distill.stages.teacher.served.endpoint import Endpoint, Request, Server, retry_after
from hoi_distill.stages.teacher.served.replies import NoAnswer, grade_of, text_of
from tests.fixtures.chat_server import ChatServer, Reply, completion, error, question_of


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.005)


def request(text: str) -> Request[str]:
    return Request(lambda: {"model": "tiny", "messages": [{"role": "user", "content": text}]}, text_of)


def ask(answer, count=6, turn=None, server=None, **keys):
    """Answers to "0", "1", ..., the turn, and the server."""
    turn = turn or Turn()
    with server or ChatServer(answer) as server:
        line = Endpoint(Server(server.url, "tiny", **{"retries": 3, **keys}), "", Account())
        answers = line.ask([request(str(number)) for number in range(count)], turn)
    return answers, turn, server


def echo(body, _number=0) -> Reply:
    return Reply(completion(f"re {question_of(body)}"))


ALL = [f"re {number}" for number in range(6)]

FAULTS = {
    "a 429": error(429, retry_after_ms="5"),
    "a 500": error(500),
    "a 503": error(503, retry_after_ms="5"),
    "a dropped connection": Reply({"x": 1}, sent=0),
    "half a reply": Reply(completion("a long enough text"), sent=0.5),
    "half of the JSON": Reply(b'{"id": "x", "choices": [{"ind'),
    "no JSON": Reply(b"<html>bad gateway</html>", headers={"content-type": "text/html"}),
    "no completion": Reply({"hello": 1}),
    "no text": Reply(completion(None)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_is_asked_again_and_answered_in_its_place(fault):
    met = set()

    def answer(body, _):
        question = question_of(body)
        if question in ("1", "4") and question not in met:
            met.add(question)
            return FAULTS[fault]
        return echo(body)

    answers, turn, server = ask(answer)
    assert answers == ALL
    assert not turn.end
    assert turn.counts["requests"] == 6
    assert turn.counts["retries"] == 2
    assert len(server.bodies) == 8


@pytest.mark.parametrize("fault", ["a 500", "half of the JSON", "no completion", "no text"])
def test_a_request_at_which_a_living_server_always_fails_is_a_failure(fault):
    answers, turn, _ = ask(lambda body, _: FAULTS[fault] if question_of(body) == "1" else echo(body), in_flight=2)
    assert answers[:1] + answers[2:] == ALL[:1] + ALL[2:]
    assert isinstance(answers[1], NoAnswer)
    assert "4 times, while others were answered" in str(answers[1])
    assert not turn.end


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_answers_nobody_ends_the_run_and_no_cell_fails(fault):
    answers, turn, _ = ask(lambda *_: FAULTS[fault])
    assert answers == [None] * 6
    assert "see whether the server runs; what is answered is kept: run again" in turn.end


def test_a_server_that_is_not_there_ends_the_run():
    line = Endpoint(Server("http://127.0.0.1:9/v1", "tiny", retries=1), "", Account())
    turn = Turn()
    assert line.ask([request("x")], turn) == [None]
    assert "tiny at http://127.0.0.1:9/v1: the connection failed" in turn.end


def test_a_reply_that_does_not_come_is_asked_for_again():
    answers, _, server = ask(
        lambda body, number: Reply(completion("x"), after=60 * (number == 0)), 1, timeout=1, retries=8
    )
    assert answers == ["x"]
    assert len(server.bodies) >= 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401), "see base_url, model and the key's variable"),
        (error(404, "no such model"), "no such model"),
        (error(429, "pay first", "insufficient_quota"), "pay first"),
    ],
)
def test_what_no_patience_mends_ends_the_run_at_once(reply, said):
    answers, turn, server = ask(lambda *_: reply, in_flight=1)
    assert answers == [None] * 6
    assert said in turn.end
    assert len(server.bodies) == 1


def test_being_told_to_wait_is_no_failed_try_while_others_are_answered():
    """Every second request is turned away, far more often than ``retries`` times in all."""
    answers, turn, _ = ask(
        lambda body, number: error(429, retry_after_ms="1") if number % 2 else echo(body), 120, in_flight=8, retries=10
    )
    assert answers == [f"re {number}" for number in range(120)]
    assert turn.counts["retries"] > 10


def test_as_many_requests_are_under_way_as_the_configuration_says_and_no_more():
    """The first ones are answered when all that may be under way have come."""
    server = ChatServer(
        lambda _, number: Reply(completion("x"), until=lambda: number >= 24 or len(server.bodies) >= 24)
    )
    answers, _, server = ask(None, 100, server=server, in_flight=24)
    assert answers == ["x"] * 100
    assert server.most == 24


def test_answers_that_are_none_again_and_again_end_the_run_and_are_no_failures():
    cut = Reply(completion("a person", finish="length"))
    answers, turn, server = ask(lambda body, number: echo(body) if number < 3 else cut, 60, in_flight=1)
    assert answers == [f"re {number}" for number in range(3)] + [None] * 57
    assert len(server.bodies) == 3 + module.IN_A_ROW
    assert "20 answers in a row were none, the last: cut at max_new_tokens" in turn.end


def test_a_streak_goes_on_from_batch_to_batch():
    with ChatServer(lambda *_: Reply(completion("a person", finish="length"))) as server:
        line = Endpoint(Server(server.url, "tiny"), "", Account())
        turns = [Turn() for _ in range(3)]
        answers = [line.ask([request("x")] * 8, turn) for turn in turns]
    assert [bool(turn.end) for turn in turns] == [False, False, True]
    assert all(isinstance(answer, NoAnswer) for answer in answers[0] + answers[1])


def test_a_few_answers_that_are_none_are_failures_and_the_run_goes_on():
    cut = Reply(completion("a person", finish="length"))
    answers, turn, _ = ask(lambda body, number: cut if number % 2 else echo(body), 60, in_flight=1)
    assert sum(isinstance(answer, NoAnswer) for answer in answers) == 30
    assert not turn.end


def test_what_is_counted_is_that_of_the_batch():
    with ChatServer(echo) as server:
        line = Endpoint(Server(server.url, "tiny"), "", Account())
        turns = [Turn(), Turn()]
        for turn in turns:
            line.ask([request("a"), request("b")], turn)
    assert [turn.counts["requests"] for turn in turns] == [2, 2]
    assert [turn.counts["prompt tokens"] for turn in turns] == [200, 200]


def test_it_is_told_how_far_a_batch_is():
    heard = []
    ask(
        lambda body, number: Reply(completion("x"), after=0.3 * (number == 3)), 6, Turn(heard=heard.append), in_flight=1
    )
    assert heard[-1] == 6
    assert heard == sorted(heard)
    assert len(heard) > 1


def test_replies_are_read_while_the_body_of_another_request_is_made():
    read, waited = threading.Event(), []

    def first(completion):
        read.set()
        return text_of(completion)

    def second():
        waited.append(read.wait(20))
        return request("b").body()

    with ChatServer(echo) as server:
        line = Endpoint(Server(server.url, "tiny", in_flight=2), "", Account())
        answers = line.ask([Request(request("a").body, first), Request(second, text_of)], Turn())
    assert waited == [True]
    assert answers == ["re a", "re b"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


def paced(begin) -> list[float]:
    """Seconds of a clock without load at which requests begin."""

    class Clock(asyncio.SelectorEventLoop):
        now = 0.0

        def time(self):
            return self.now

        def _run_once(self):
            if not self._ready and self._scheduled:
                self.now = max(self.now, self._scheduled[0]._when)
            super()._run_once()

    loop = Clock()
    try:
        return loop.run_until_complete(begin(loop))
    finally:
        loop.close()


def test_requests_begin_at_the_rate_and_not_before():
    async def begin(loop):
        pace, halt, times = Pace(), asyncio.Event(), []
        pace.interval = 2.0

        async def one():
            await pace.turn(halt)
            times.append(loop.time())

        await asyncio.gather(*(one() for _ in range(5)))
        return times

    assert paced(begin) == pytest.approx([0, 2, 4, 6, 8], abs=0.01)


def test_a_pause_holds_for_all_and_they_do_not_begin_in_one_instant():
    async def begin(loop):
        pace, halt, times = Pace(), asyncio.Event(), []
        pace.pause(30)

        async def one():
            await pace.turn(halt)
            times.append(loop.time())

        await asyncio.gather(*(one() for _ in range(9)))
        return times

    times = paced(begin)
    assert min(times) >= 30
    assert max(times) <= 33.1
    assert len(set(times)) == 9


def test_a_stop_ends_a_pause():
    began = time.monotonic()
    with ChatServer(lambda *_: error(429, retry_after="600")) as server:
        line = Endpoint(Server(server.url, "tiny"), "", Account())
        turn = Turn(stopped=lambda: bool(server.bodies))
        assert line.ask([request("x")] * 3, turn) == [None] * 3
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(
    ("text", "score"),
    [("85", 0.85), ("85.", 0.85), ("85%", 0.85), ("85/100", 0.85), ("0", 0), ("7.5 out of 100", 0.075)],
)
def test_a_grade_is_read(text, score):
    assert grade_of(text) == pytest.approx(score)


@pytest.mark.parametrize("text", ["yes", "", "between 20 and 40", "250"])
def test_what_is_no_grade_is_none(text):
    with pytest.raises(NoAnswer):
        grade_of(text)
