"""What requests cost, and when the next one may begin."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

REQUESTS, RETRIES = "requests", "retries"
PROMPT_TOKENS, COMPLETION_TOKENS = "prompt tokens", "completion tokens"
PRICE = "price"


@dataclass
class Account:
    """Counts what one worker asked for.

    Attributes:
        prompt_price: of a million tokens.
        completion_price: of a million tokens.
        counts: what was counted so far, by the names of this module.
        answered: requests with a whole answer.
        without_usage: answers whose server did not say how many tokens they took.
    """

    prompt_price: float = 0.0
    completion_price: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    answered: int = 0
    without_usage: int = 0

    def add(self, name: str, number: float = 1) -> None:
        """Count something."""
        self.counts[name] = self.counts.get(name, 0) + number

    def pay(self, usage: Any) -> None:
        """Count an answer by the ``usage`` of its completion; None where the server says nothing."""
        self.answered += 1
        if usage is None:
            self.without_usage += 1
            return
        self.spend(usage)

    def spend(self, usage: Any) -> None:
        """Count tokens and their price, be the reply an answer or not."""
        prompt, written = usage.prompt_tokens or 0, usage.completion_tokens or 0
        self.add(PROMPT_TOKENS, prompt)
        self.add(COMPLETION_TOKENS, written)
        price = prompt * self.prompt_price + written * self.completion_price
        if self.prompt_price or self.completion_price:
            self.add(PRICE, price / 1e6)

    def may_spend(self, budget: float, under_way: int) -> bool:
        """Whether one request more fits into the budget. Those under way are expected to cost what others did."""
        spent = self.counts.get(PRICE, 0.0)
        return spent + (under_way + 1) * spent / max(self.answered, 1) <= budget


class Pace:
    """When the next request may begin: a rate, and the pauses that a server asks for, which hold for all requests.

    Attributes:
        interval: seconds between two requests; 0: none.
    """

    def __init__(self) -> None:
        self.interval = 0.0
        self._next = self._paused_until = 0.0

    async def turn(self, halt: asyncio.Event) -> None:
        """Wait for one's turn, or until ``halt`` is set."""
        loop = asyncio.get_running_loop()
        begin = max(loop.time(), self._next)
        self._next = begin + self.interval
        await rest(begin - loop.time(), halt)
        while (left := self._paused_until - loop.time()) > 0 and not halt.is_set():
            await rest(left * random.uniform(1, 1.1), halt)  # not all in the same instant

    def pause(self, seconds: float) -> None:
        """Begin no request for so long."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)


async def rest(seconds: float, halt: asyncio.Event) -> None:
    """Sleep, but not longer than until ``halt`` is set."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(halt.wait(), seconds)
