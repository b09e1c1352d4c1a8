"""Noun phrases and verbs of one sentence, found by looking ahead from a word. Nothing here keeps a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hoi_distill.stages.derived.lexicon.lexicon import OTHER, Lexicon
from hoi_distill.stages.derived.lexicon.words import (
    ARTICLES,
    AUXILIARIES,
    CLAUSES,
    FAKES,
    HEDGES,
    JOINS,
    NEVER,
    PARTICLES,
    PARTITIVES,
    PREPOSITIONS,
    RELATIVES,
    noun_lemma,
    word,
)

REACH = 12
"""The most words of a noun phrase."""
COORDINATED = 16
"""The most objects, or verbs, that are joined."""
QUOTED = 30
"""The most words of a phrase that is kept."""
PRONOUNS = frozenset(["you", "i", "we", "they", "he", "she"])
NO_NOUN = PREPOSITIONS | JOINS | CLAUSES | AUXILIARIES | RELATIVES | {"without", "not", "instead_of", "to"}
"""Words that no noun phrase contains."""
NO_ADVERB = PREPOSITIONS | JOINS | NEVER | ARTICLES
OPENERS = ARTICLES | PREPOSITIONS
WordKind = Literal[
    "start", "join", "article", "to", "particle", "preposition", "auxiliary", "being", "relative", "person", "object",
    "verb", "word", "nouns",
]  # fmt: skip
"""What a word is to the word after it. ``nouns`` is a plural noun outside the vocabulary, ``being`` a form of "be"."""


@dataclass(frozen=True)
class Noun:
    """A noun phrase.

    Attributes:
        obj: An object's index, or a noun that names no object.
        stop: The word after the phrase.
        of: The partitive in front: "slice" of "a slice of pizza".
    """

    obj: int | str
    stop: int
    of: str = ""


@dataclass(frozen=True)
class Verb:
    """A word read as a verb.

    Attributes:
        lemmas: The verbs that the word may be a form of.
        tags: The forms that it may have, among VB VBZ VBG VBD VBN.
        known: Whether the vocabulary has the verb.
        particle: "up" of "picks up", "" if there is none.
        preposition: Of a verb before "and", its own preposition.
    """

    lemmas: tuple[str, ...]
    tags: frozenset[str]
    known: bool
    particle: str = ""
    preposition: str = ""


@dataclass(frozen=True)
class Phrases:
    """The words of a sentence, in which phrases of a vocabulary are looked for.

    Attributes:
        words: The sentence's tokens.
        lexicon: The vocabulary.
    """

    words: Sequence[str]
    lexicon: Lexicon

    def token(self, at: int) -> str:
        """The word at a position, "" after the end."""
        return self.words[at] if at < len(self.words) else ""

    def mention(self, at: int) -> tuple[int, int] | None:
        """``(object index or OTHER, end)`` of the longest object's name that begins at a position, or None."""
        return self.lexicon.object_at(self.words, at) if at < len(self.words) else None

    def noun(self, start: int, antecedent: int | None) -> Noun | None:
        """The noun phrase that begins at a word, None where another part of speech comes first.

        Args:
            start: The word's position.
            antecedent: The object that "it" means, None if there is none.
        """
        unknown, of = "", ""
        for at in range(start, start + REACH):
            token = self.token(at)
            if token == "of" and unknown in PARTITIVES:
                of, unknown = unknown, ""
                continue
            if (pronoun := self._pronoun(at, antecedent)) and (not unknown or token not in ("it", "them")):
                return pronoun if pronoun.stop > at else None
            if mention := self.mention(at):
                index, stop = self.head(mention, at)
                if stop > at:
                    fake = unknown in FAKES or (at > 0 and self.words[at - 1] in FAKES)
                    return Noun(self.words[stop - 1] if fake or index == OTHER else index, stop, of)
                continue
            if at >= len(self.words) or self._ends_noun(at, unknown):
                return Noun(unknown, at, of) if unknown else None
            entry = word(token)
            if token not in ARTICLES and entry.noun and not (entry.modifier and not unknown):
                unknown = noun_lemma(token)
        return Noun(unknown, at + 1, of) if unknown else None

    def _pronoun(self, at: int, antecedent: int | None) -> Noun | None:
        """A pronoun as a noun phrase; its ``stop`` is ``at`` where it is reflexive and names nobody new."""
        token = self.token(at)
        if token in ("it", "them"):
            return Noun(token if antecedent is None else antecedent, at + 1)
        if token in ("himself", "herself"):
            return Noun(self.lexicon.person, at)
        alone = token == "her" and (at + 1 == len(self.words) or self.words[at + 1] in PREPOSITIONS | JOINS)
        return Noun(self.lexicon.person, at + 1) if token == "him" or alone else None

    def _ends_noun(self, at: int, unknown: str) -> bool:
        """Whether a word, after an unknown noun or none, is no part of a noun phrase."""
        token = self.words[at]
        if token in NO_NOUN:
            return True
        article = at > 0 and self.words[at - 1] in ARTICLES
        if token.endswith("ing") and self.verb(at, "article" if article else "word"):
            return True
        if not unknown:
            return False
        verb = self.verb(at, "word")  # another phrase begins, or the main verb
        return token in ARTICLES or (verb is not None and "VBZ" in verb.tags)

    def head(self, mention: tuple[int, int], start: int) -> tuple[int, int]:
        """The object that a compound names, and its end.

        The last of adjacent names counts ("dog bowl", "bike rider"). It is OTHER where the last noun is not in the
        vocabulary ("bike mechanic"). Where the name is only a colour ("an orange shirt"), the end is ``start``.
        """
        index, stop = mention
        words = self.words
        while stop < len(words):
            further = self.mention(stop)
            entry = word(words[stop])
            if words[start:stop] == ["orange"] and (further or entry.only_noun):
                return index, start
            if words[stop] == "'s":  # the object owned comes next
                owned = range(stop + 1, min(stop + REACH, len(words)))
                first = next((i for i in owned if not self.describes(i)), len(words))
                named = self.mention(first)
                if named is None:
                    return OTHER, stop + 1
                index, stop = named
                continue
            if further and words[stop] not in PRONOUNS and not word(words[stop - 1]).plural:
                if self.verb(stop, "person" if index == self.lexicon.person else "object"):
                    break
                index, stop = further
            elif entry.only_noun and not entry.modifier and index != self.lexicon.person and not _ends(words[stop]):
                index, stop = OTHER, stop + 1
            else:
                break
        return index, stop

    def describes(self, at: int) -> bool:
        """Whether a word may stand between an owner and the object owned."""
        token = self.words[at]
        return not (self.mention(at) or token in PREPOSITIONS | JOINS | AUXILIARIES | ARTICLES)

    def posture(self, at: int) -> tuple[str, int]:
        """The verb that "... in his hands" or "... on her back" stands for, and where it ends."""
        words = self.words
        if at < len(words) and words[at] in ("in", "on"):
            for stop in range(at + 1, min(at + 5, len(words))):
                if words[stop] in ("hand", "hands", "arms") and words[at] == "in":
                    return "hold", stop + 1
                if words[stop] in ("back", "shoulders") and words[at] == "on" and words[stop - 1] in ARTICLES:
                    return "wear", stop + 1
                if words[stop] in PREPOSITIONS or self.mention(stop):
                    break
        return "", at

    def verb(self, at: int, previous: WordKind | None = None) -> Verb | None:
        """The verb at a word, or None where the word is no verb.

        Args:
            at: The word's position.
            previous: What kind of word stands before it; None looks at that word.
        """
        if at >= len(self.words):
            return None
        token, previous = self.words[at], previous or self.before(at)
        known = self.lexicon.verb_forms(token)
        forms = known or dict(word(token).verbs)
        if token in PREPOSITIONS or token in ARTICLES or token in AUXILIARIES - {"has", "have", "had", "having"}:
            return None
        if not forms:
            return None
        tags = frozenset().union(*forms.values())
        verb = Verb(tuple(forms), tags, bool(known))
        if "VBG" in tags:
            adjective = previous == "article" and not self.opens_noun(at + 1)
            return None if adjective else verb
        if previous in ("article", "preposition", "verb"):
            return None
        if self.mention(at) or not known:  # also a noun: only where a verb must stand
            return verb if previous in ("person", "to", "relative") and not self.ends_at(at) else None
        if previous == "word":
            return verb if tags & {"VBZ", "VBD"} and not word(token).only_noun else None
        if previous == "join" and (not tags & {"VBZ", "VB"} or (word(token).noun and "VBZ" in tags)):
            return verb if self.opens_noun(at + 1) else None
        return verb

    def infinitive(self, at: int) -> bool:
        """Whether a word is the "to" of an infinitive: "a remote to control the tv"."""
        verb = self.verb(at + 1, "to") if self.words[at] == "to" else None
        return verb is not None and verb.known and "VB" in verb.tags

    def ends_at(self, at: int) -> bool:
        """Whether a word is the last one before "and", a comma or the end."""
        return at + 1 >= len(self.words) or self.words[at + 1] in JOINS

    def opens_noun(self, at: int) -> bool:
        """Whether a word is an article or a preposition."""
        return self.token(at) in OPENERS

    def before(self, at: int) -> WordKind:
        """What kind of word stands before a position, judged by that word alone."""
        token = self.words[at - 1]
        if token in JOINS or token in CLAUSES or token in ("without", "instead_of"):
            return "join"
        if token in ARTICLES:
            return "article"
        if token == "to":
            return "to"
        if token in PREPOSITIONS:
            return "particle" if token in PARTICLES else "preposition"
        if token in AUXILIARIES or token in NEVER or token in HEDGES:
            return "auxiliary"
        if token in RELATIVES:
            return "relative"
        if found := self.lexicon.object_at(self.words, at - 1):
            return "person" if found[0] == self.lexicon.person else "object"
        if self.lexicon.verb_forms(token):
            return "verb"
        return "nouns" if word(token).plural else "word"

    def particle(self, verb: Verb, at: int) -> tuple[Verb, int]:
        """A verb with the particle that stands at a word, after adverbs or none, and the word after both."""
        while (token := self.token(at)) and word(token).modifier and token not in NO_ADVERB and not self.mention(at):
            at += 1
        particle = self.token(at)
        return (replace(verb, particle=particle), at + 1) if particle in PARTICLES else (verb, at)

    def phrase(self, start: int, stop: int) -> str:
        """The words from ``start`` up to ``stop`` as they are kept and shown."""
        return " ".join(self.words[start : min(stop, start + QUOTED)]).replace("_", " ")

    def begins_clause(self, noun: Noun) -> bool:
        """Whether a noun phrase is the subject of a new clause."""
        if self.token(noun.stop) in AUXILIARIES or self.token(noun.stop) in RELATIVES:
            return True
        verb = self.verb(noun.stop, "object")
        return verb is not None and ("VBG" not in verb.tags or noun.obj in self.lexicon.animate)

    def coordinated(self, first: Noun, antecedent: int | None) -> list[tuple[int | str, int]]:
        """The objects joined to a noun by "and", itself first, each with its end. A new clause's subject is not one."""
        found: list[tuple[int | str, int]] = [(first.obj, first.stop)]
        at, words = first.stop, self.words
        while at + 1 < len(words) and words[at] in JOINS and len(found) < COORDINATED:
            step = 2 if words[at] == "," and words[at + 1] in JOINS else 1
            other = None if self.verb(at + step) else self.noun(at + step, antecedent)
            if other is None or other.obj == self.lexicon.person or self.begins_clause(other):
                break
            found.append((other.obj, other.stop))
            at = other.stop
        return found


def _ends(token: str) -> bool:
    """Whether a noun-like word is rather one that follows a noun phrase."""
    return token in PREPOSITIONS | JOINS | CLAUSES | AUXILIARIES | RELATIVES | ARTICLES or token in PARTICLES
