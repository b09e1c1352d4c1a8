"""What a chat completion says: its text, the probability of yes, or why it is no answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hoi_distill.stages.teacher.blip.first_token import NO, YES
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice


class NoAnswer(Exception):
    """The server has answered, and it is no answer: cut, refused, of another form. It becomes a failure cell with this
    reason."""


class Broken(Exception):
    """Half a reply, or none of a chat completion's form. It is asked for again."""


def choice_of(completion: ChatCompletion | Any) -> Choice:
    """The one choice of a whole completion.

    Raises:
        Broken: it has none.
        NoAnswer: the model, or a filter of the server, refuses to answer.
    """
    choices = getattr(completion, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise Broken("a reply that is no chat completion")
    choice: Choice = choices[0]
    if refusal := getattr(choice.message, "refusal", None):
        raise NoAnswer(f"refused: {refusal}")
    if choice.finish_reason == "content_filter":
        raise NoAnswer("refused by the server's content filter")
    return choice


def text_of(completion: ChatCompletion | Any, keep_cut: bool = False) -> str:
    """The text of an answer.

    Args:
        completion: of the server.
        keep_cut: whether an answer that was cut at the limit of tokens is one.

    Raises:
        Broken: there is no text.
        NoAnswer: the answer is cut or refused.
    """
    choice = choice_of(completion)
    if choice.finish_reason == "length" and not keep_cut:
        raise NoAnswer("cut at max_new_tokens")
    if choice.message.content is None:
        raise Broken("a reply without text")
    return choice.message.content


def first_token(completion: ChatCompletion | Any) -> tuple[str, float]:
    """The first token of an answer, and the probability of yes against no in its place.

    The probability is that of :func:`hoi_distill.stages.teacher.blip.first_token.yes_score` if the server lists every
    variant of yes and no. A variant that is not listed counts as 0: its probability is at most that of the last one listed.

    Raises:
        Broken: there is no token.
        NoAnswer: refused, or neither yes nor no is listed.
        UserError: the server gives no log-probabilities.
    """
    token, listed = _first_tokens(completion, "write scores: graded")
    yes, no = _yes_and_no(listed)
    return token, yes / (yes + no)


def first_token_logs(completion: ChatCompletion | Any) -> tuple[float, float]:
    """The logarithms of the probabilities that an answer begins with yes, and with no.

    A variant that is not listed counts as 0, and a word without any listed variant as the last token that is: it has at most
    that probability.

    Raises:
        Broken, NoAnswer, UserError: see :func:`first_token`.
    """
    _, listed = _first_tokens(completion, "ask another server")
    yes, no = _yes_and_no(listed)
    least = min(logprob for _, logprob in listed)
    return (math.log(yes) if yes else least), (math.log(no) if no else least)


def _first_tokens(completion: ChatCompletion | Any, remedy: str) -> tuple[str, list[tuple[str, float]]]:
    """An answer's first token, and the likeliest ones in its place with their log-probabilities."""
    choice = choice_of(completion)
    tokens = choice.logprobs.content if choice.logprobs is not None else None
    if not tokens or not tokens[0].top_logprobs:
        if choice.logprobs is None and choice.message.content:
            raise UserError(f"the server gives no log-probabilities of tokens; {remedy}")
        raise Broken("a reply without a first token")
    return tokens[0].token, [(each.token, each.logprob) for each in tokens[0].top_logprobs]


def _yes_and_no(listed: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """The probabilities of both words; NoAnswer where neither is listed."""
    yes, no = _mass(listed, YES), _mass(listed, NO)
    if yes + no == 0:
        raise NoAnswer(
            f"neither yes nor no among the {len(listed)} likeliest first tokens; the first is {listed[0][0]!r}"
        )
    return yes, no


def _mass(listed: Iterable[tuple[str, float]], words: tuple[str, ...]) -> float:
    """The summed probability of tokens that are one of the words, at a text's beginning or after a space.

    Servers write a space as it is, or as their tokenizer's mark for one.
    """
    forms = {mark + word for word in words for mark in ("", " ", "Ġ", "▁")}
    return math.fsum(math.exp(logprob) for token, logprob in listed if token in forms)


GRADING = "How sure are you that the answer is yes? Answer with a number from 0 to 100 and nothing else."
"""What follows a yes/no question where the server gives no log-probabilities."""
_NUMBER = re.compile(r"(?<![\d.,-])\d+(?:\.\d+)?")
_OF_HUNDRED = re.compile(r"(/|out of)\s*100\b")


def grade_of(text: str) -> float:
    """The share of 100 in a graded answer, in [0, 1].

    Raises:
        NoAnswer: it has no number from 0 to 100, or several.
    """
    found = {float(number) for number in _NUMBER.findall(_OF_HUNDRED.sub("", text))}
    if len(found) != 1 or max(found) > 100:
        raise NoAnswer(f"not one number from 0 to 100: {text[:80]!r}")
    return found.pop() / 100
