"""The grammar between facts and sentences: what the pico teacher is trained on, asked, and answers.

A *fact* is ``(verb, object)`` in HICO's spelling (``("talk_on", "cell_phone")``). Sentences are the only supervision
that the teacher ever sees, so every label of its training is recovered from them by :class:`Grammar`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hoi_distill.stages.data.prompts import NO_INTERACTION

Fact = tuple[str, str]

CAPTION_PREFIX = "a photo of"
"""Start of every caption; also what the captioner writes when it is given no text at all."""
LIST_PREFIX = "list the interactions:"
"""Asks the captioner for all interactions, co-labels included (holding the cup that one drinks from)."""
NOTHING = "nobody is interacting"
"""The answer to :data:`LIST_PREFIX` where no one interacts with anything."""
YES, NO = "yes", "no"
"""First (and only) word of the answer to :func:`question`."""

_DOUBLED = frozenset({"sit", "run", "hit", "cut", "hug", "pet", "grip", "hop", "swim", "stop", "spin", "flip", "set"})


def gerund(verb: str) -> str:
    """``talk_on`` -> ``talking on``; ``ride`` -> ``riding``; ``sit_on`` -> ``sitting on``."""
    head, *rest = verb.split("_")
    if head in _DOUBLED:
        head += head[-1]
    elif head.endswith("ie"):
        head = head[:-2] + "y"
    elif head.endswith("e") and not head.endswith(("ee", "oe", "ye")):
        head = head[:-1]
    return " ".join([head + "ing", *rest])


def phrase(verb: str, obj: str) -> str:
    """What follows "a person": ``riding a bicycle``, ``holding an umbrella``; ``and a bicycle`` for no_interaction."""
    article = "an" if obj[0] in "aeiou" else "a"
    return f"{'and' if verb == NO_INTERACTION else gerund(verb)} {article} {obj.replace('_', ' ')}"


def prompt(verb: str, obj: str) -> str:
    """The ITM prompt of one fact; equal to the vocabulary's own prompt."""
    return f"{CAPTION_PREFIX} a person {phrase(verb, obj)}"


def caption(facts: Iterable[Fact]) -> str:
    """``a photo of a person riding a bicycle and a person and a cup``, in the order given."""
    return f"{CAPTION_PREFIX} " + " and ".join(f"a person {phrase(*fact)}" for fact in facts)


def listing(facts: Iterable[Fact]) -> str:
    """The answer to :data:`LIST_PREFIX`: ``the person is riding a bicycle; the person is holding a cup``.

    no_interaction is not an interaction and is left out; :data:`NOTHING` where nothing remains.
    """
    parts = [f"the person is {phrase(*fact)}" for fact in facts if fact[0] != NO_INTERACTION]
    return "; ".join(parts) or NOTHING


def question(verb: str, obj: str) -> str:
    """The yes/no question about one interaction.

    Raises:
        ValueError: For no_interaction, which follows from the others.
    """
    if verb == NO_INTERACTION:
        raise ValueError("no yes/no question is asked about no_interaction: it is the product of its object's noes")
    return f"is there anybody {phrase(verb, obj)}?"


class Grammar:
    """Reads facts back from sentences.

    Args:
        facts: every fact of the vocabulary, in its order; parsed sentences name facts by their position in it.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.facts = tuple(facts)
        self._by_phrase = {phrase(*fact): i for i, fact in enumerate(self.facts)}

    def parse_caption(self, text: str) -> list[int]:
        """Facts named in a caption, each once, in order. Phrases outside the vocabulary are dropped."""
        text = _tidy(text).removeprefix(CAPTION_PREFIX).strip()
        return self._known(re.split(r"(?:^| and )a person ", text)[1:])

    def parse_listing(self, text: str) -> list[int]:
        """Facts named in an answer to :data:`LIST_PREFIX` (with or without the prefix itself)."""
        text = _tidy(text).removeprefix(LIST_PREFIX)
        return self._known(part.strip().removeprefix("the person is ") for part in text.split(";"))

    def _known(self, phrases: Iterable[str]) -> list[int]:
        found = (self._by_phrase.get(p.strip()) for p in phrases)
        return list(dict.fromkeys(i for i in found if i is not None))


def _tidy(text: str) -> str:
    """Lower case, single spaces, none before punctuation (as a WordPiece tokenizer's decode leaves them)."""
    return re.sub(r"\s+([:;?])", r"\1", " ".join(text.lower().split()))
