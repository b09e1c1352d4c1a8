"""One OpenAI-compatible server, asked by hundreds of requests at once through the ``openai`` client.

The client sends and parses; when to ask again is decided here, because a pause that a server asks for holds for all requests,
and because it matters whether others are answered meanwhile: then a request that always fails is at fault itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from hoi_distill.stages.stage import Turn
from hoi_distill.stages.teacher.served.account import PRICE, REQUESTS, RETRIES, Account, Pace, rest
from hoi_distill.stages.teacher.served.replies import Broken, NoAnswer
from hoi_distill.storage.errors import UserError, WorkStopped

if TYPE_CHECKING:
    import openai

Answer = TypeVar("Answer")

NO_KEY = "none"
"""What is sent to a server that asks for no key."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 8.0
"""How long requests that are under way may still take after a stop."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds before a request is asked again, if the server does not say; twice as many each time."""
IN_A_ROW = 20
"""So many answers in a row that are none end the run: the model or the keys are at fault, not an image."""
REFUSED_REQUEST = (400, 413, 422)
"""Statuses that say something of one request."""
BUSY = (408, 409, 425, 429, 503)
"""Statuses that ask for patience. Others from 500 on say that the server failed."""
DATED = re.compile(r"(@[\w.-]+|-\d{4}-?\d{2}-?\d{2}|:[\w.-]+)?")
"""What may follow a model's name in the server's own name for it: a revision, a date, a tag."""


@dataclass(frozen=True)
class Server:
    """How a server is asked.

    Attributes:
        base_url: ends with ``/v1``, mostly.
        model: the name that is asked for.
        answers_as: the server's own name for it. None: ``model``, with or without a revision or a date.
        in_flight: requests under way at once.
        requests_per_minute: the most that a run begins; None: no limit.
        retries: how often a request is asked again.
        timeout: seconds after which a reply no longer counts.
        budget: the price at which a run stops; None: none.
    """

    base_url: str
    model: str
    answers_as: str | None = None
    in_flight: int = 64
    requests_per_minute: float | None = None
    retries: int = 8
    timeout: float = 300.0
    budget: float | None = None


@dataclass(frozen=True)
class Request(Generic[Answer]):
    """One question.

    Attributes:
        body: makes the arguments of ``chat.completions.create``, when the request begins: an image is large. One body
            at a time is made, in the order of the requests, while others are answered.
        read: makes the answer of a completion. It may raise :class:`NoAnswer`, :class:`Broken`, or a UserError that ends
            the run.
    """

    body: Callable[[], dict[str, Any]]
    read: Callable[[Any], Answer]


class Endpoint:
    """A server with its connections, which stay open from batch to batch. One thread asks at a time.

    Args:
        server: how it is asked.
        key: goes into the header of requests and nowhere else.
        account: counts.
    """

    def __init__(self, server: Server, key: str, account: Account) -> None:
        self.server, self.account, self.pace = server, account, Pace()
        self.called: str | None = None
        self.fingerprints: set[str] = set()
        self._key = key
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._connect())
        self._asking = threading.Lock()
        self._maker = ThreadPoolExecutor(1, "bodies")
        self._in_a_row = 0

    async def _connect(self) -> openai.AsyncOpenAI:
        import openai

        most = self.server.in_flight
        limits = {"max_connections": most, "max_keepalive_connections": most}
        http = openai.DefaultAsyncHttpx2Client(limits=_limits(**limits), timeout=self.server.timeout)
        # What is left out here, the client looks for in the environment, where it may be meant for another server.
        client = openai.AsyncOpenAI(
            base_url=self.server.base_url,
            api_key=self._key or NO_KEY,
            organization="",
            project="",
            max_retries=0,
            timeout=self.server.timeout,
            http_client=http,
        )
        client._custom_headers = {}  # those of OPENAI_CUSTOM_HEADERS, which no argument can leave out
        return client

    def ask(
        self, requests: Sequence[Request[Answer]], turn: Turn, cells: int | None = None
    ) -> list[Answer | NoAnswer | None]:
        """Ask everything, and wait for all answers.

        Args:
            requests: N questions.
            turn: hears how far this is, and is told of the end.
            cells: what the requests make together; None: one each.

        Returns:
            N answers, or why there is none. None: not asked, because the run is to stop or the budget is spent, or not
            answered for a reason that ends the run (``turn.end``).
        """
        server, before, began = self.server, dict(self.account.counts), time.perf_counter()
        self.pace.interval = 60 / (server.requests_per_minute * turn.share) if server.requests_per_minute else 0.0
        with self._asking:
            batch = _Asked[Answer](len(requests))
            self._runner.run(self._ask(requests, batch, turn, len(requests) if cells is None else cells))
        turn.waited += time.perf_counter() - began
        turn.counts |= {name: number - before.get(name, 0) for name, number in self.account.counts.items()}
        turn.recorded |= {"server_model": self.called, "system_fingerprints": sorted(self.fingerprints)}
        turn.end = batch.end
        return batch.answers

    async def _ask(self, requests: Sequence[Request[Answer]], batch: _Asked[Answer], turn: Turn, cells: int) -> None:
        waiting = enumerate(requests)
        lanes = [
            asyncio.create_task(self._lane(waiting, batch, turn))
            for _ in range(min(self.server.in_flight, len(requests)))
        ]
        pending, halted = set(lanes), 0.0
        try:
            while pending:
                _, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
                turn.heard(batch.done * cells // len(requests))
                if batch.end or turn.stopped():
                    batch.halt.set()
                    halted = halted or time.monotonic()
                    if time.monotonic() - halted > GRACE_SECONDS:
                        break
        finally:
            for lane in lanes:
                lane.cancel()
            ended = await asyncio.gather(*lanes, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _lane(self, waiting: Iterator[tuple[int, Request[Answer]]], batch: _Asked[Answer], turn: Turn) -> None:
        """Ask one after another, with others who take from the same ``waiting``."""
        for index, request in waiting:
            batch.end = batch.end or self._why_end(batch, turn)
            if batch.end or turn.stopped():
                return
            batch.under_way += 1
            try:
                answer: Answer = await self._answer(request, batch.halt)
                batch.answers[index] = answer
                self._in_a_row, batch.streak = 0, []
            except NoAnswer as reason:
                batch.answers[index] = reason
                self._in_a_row += 1
                batch.streak.append(index)
                if self._in_a_row >= IN_A_ROW:
                    for each in batch.streak:  # no image's fault, so they are no failures
                        batch.answers[each] = None
                    batch.end = batch.end or (
                        f"{self._named()}: {self._in_a_row} answers in a row were none, the last: {reason}; "
                        "change the table's keys, or ask another model; what is answered is kept"
                    )
            except (UserError, WorkStopped) as error:
                batch.end = batch.end or f"{self._named()}: {error}"
            except Halted:
                return
            finally:
                batch.under_way -= 1
                batch.done += batch.answers[index] is not None

    def _why_end(self, batch: _Asked[Any], turn: Turn) -> str:
        budget, account = self.server.budget, self.account
        if budget is None:
            return ""
        if account.without_usage:
            return f"{self._named()}: the server does not say how many tokens an answer takes, so that no budget can be kept"
        if account.may_spend(budget * turn.share, batch.under_way):
            return ""
        return (
            f"{self._named()}: the budget is spent: {account.counts.get(PRICE, 0):.4g} of {budget * turn.share:.4g}; "
            "what is answered is kept: run again to go on, with another budget"
        )

    async def _answer(self, request: Request[Answer], halt: asyncio.Event) -> Answer:
        """Ask until there is an answer.

        Raises:
            NoAnswer: what comes is none.
            UserError: the server refuses whatever it is asked.
            WorkStopped: the server cannot be reached, or answers nobody.
            Halted: the run is to stop.
        """
        body = await asyncio.get_running_loop().run_in_executor(self._maker, request.body)
        tried, others = 0, self.account.answered
        number = -1
        while True:
            number += 1
            await self.pace.turn(halt)
            if halt.is_set():
                raise Halted
            self.account.add(REQUESTS if number == 0 else RETRIES)
            heard = self.account.answered
            try:
                return await self._once(body, request.read)
            except Unserved as failure:
                # Who is told to wait while others are answered has only come too early.
                tried += not (failure.busy and self.account.answered > heard)
                if tried > self.server.retries:
                    self._give_up(failure, tried, alive=self.account.answered > others)
                wait = failure.wait
                if wait is None:
                    wait = min(FIRST_BACKOFF * 2 ** min(number, 10), LONGEST_BACKOFF) * random.uniform(0.75, 1)
                if failure.busy:
                    self.pace.pause(wait)
                else:
                    await rest(wait, halt)

    def _give_up(self, failure: Unserved, tried: int, *, alive: bool) -> NoReturn:
        if alive and failure.may_be_the_request:
            raise NoAnswer(f"{failure}, {tried} times, while others were answered") from None
        raise WorkStopped(
            f"{failure}, {tried} times; see whether the server runs; what is answered is kept: run again"
        ) from None

    async def _once(self, body: dict[str, Any], read: Callable[[Any], Answer]) -> Answer:
        """One request.

        Raises:
            Unserved: it may be asked again.
            NoAnswer: the server refuses this request, or answers with none.
            UserError: the server refuses whatever it is asked, or another model answers.
        """
        import openai

        try:
            completion = await self._client.chat.completions.create(**body)
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.APITimeoutError:
            raise Unserved(f"no reply in {self.server.timeout:g} s", may_be_the_request=True) from None
        except openai.APIConnectionError as error:
            raise Unserved(self.clean(f"the connection failed ({error.__cause__ or error})")) from None
        except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError):
            raise Unserved("half a reply", may_be_the_request=True) from None
        self._recognise(getattr(completion, "model", None))
        try:
            answer = read(completion)
        except Broken as error:
            if usage := getattr(completion, "usage", None):
                self.account.spend(usage)
            raise Unserved(str(error), may_be_the_request=True) from None
        except NoAnswer as reason:
            self.account.pay(completion.usage)
            raise NoAnswer(self.clean(str(reason))) from None
        self.account.pay(completion.usage)
        self.fingerprints |= {completion.system_fingerprint} - {None}
        return answer

    def _status(self, error: openai.APIStatusError) -> Exception:
        """What an error status means."""
        status, code = error.status_code, str(getattr(error, "code", None) or "")
        said = self.clean(str(error))
        if "content" in code and ("filter" in code or "policy" in code):
            return NoAnswer(f"refused: {said}")
        if status in REFUSED_REQUEST:
            return NoAnswer(f"the server refuses the request: {said}")
        if code == "insufficient_quota" or (status not in BUSY and status < 500):
            return UserError(f"{said}; see base_url, model and the key's variable")
        return Unserved(
            f"the server answers {status}", status in BUSY, retry_after(error.response.headers), status not in BUSY
        )

    def _recognise(self, name: str | None) -> None:
        """Compare the model that answers with the one that was asked for.

        Raises:
            UserError: it is another one.
        """
        if name is None:
            return
        wanted, model = self.server.answers_as, self.server.model
        dated = name.startswith(model) and DATED.fullmatch(name.removeprefix(model))
        if not (dated if wanted is None else name == wanted):
            raise UserError(
                f"the server answers as {self.clean(name)!r}; correct model, or write answers_as: {self.clean(name)}"
            )
        if self.called not in (None, name):
            raise UserError(f"the server answered as {self.called!r} before, and as {self.clean(name)!r} now")
        self.called = name

    def clean(self, text: str) -> str:
        """What a server says, as one line that may be shown: without the key."""
        line = " ".join(text.split())
        return (line.replace(self._key, "***") if self._key else line)[:300]

    def _named(self) -> str:
        return f"{self.server.model} at {self.server.base_url}"


@dataclass
class _Asked(Generic[Answer]):
    """A batch of requests under way.

    Attributes:
        count: N.
        answers: N of them, as :meth:`Endpoint.ask` returns them.
        done: answers so far.
        under_way: requests that are sent or wait for their turn.
        streak: the last answers, if they were none.
        end: why no further request may begin.
        halt: wakes who waits, once no further request may begin.
    """

    count: int
    answers: list[Answer | NoAnswer | None] = field(init=False)
    done: int = 0
    under_way: int = 0
    streak: list[int] = field(default_factory=list)
    end: str = ""
    halt: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answers = [None] * self.count


class Halted(Exception):
    """The run is to stop before the request was sent."""


class Unserved(Exception):
    """A try that failed and may be made again.

    Args:
        why: in words.
        busy: whether the server asks for patience.
        wait: seconds that it asks for; None: it does not say.
        may_be_the_request: whether the request itself may be why.
    """

    def __init__(
        self, why: str, busy: bool = False, wait: float | None = None, may_be_the_request: bool = False
    ) -> None:
        super().__init__(why)
        self.busy, self.wait, self.may_be_the_request = busy, wait, may_be_the_request


def retry_after(headers: Any) -> float | None:
    """Seconds that a reply's headers ask to wait, None if they do not: ``retry-after-ms``, or ``retry-after`` in seconds or
    as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        if "retry-after" not in headers:
            return None
        given = headers["retry-after"]
        if re.fullmatch(r"\s*[\d.]+\s*", given):
            return float(given)
        return max(parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _limits(**limits: int) -> Any:
    import httpx2

    return httpx2.Limits(**limits)
