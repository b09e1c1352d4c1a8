"""Noun phrases and verbs of one sentence, found by looking ahead from a word."""

from __future__ import annotations

from dataclasses import dataclass

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

REACH, COORDINATED, QUOTED = 12, 16, 30
"""At most so many words in a noun phrase, objects or verbs joined, words of a phrase kept."""
PRONOUNS = frozenset(["you", "i", "we", "they", "he", "she"])


@dataclass(frozen=True)
class Noun:
    """A noun phrase that ends before word ``stop``: an object's index or an unknown noun; ``named``: not a pronoun."""

    thing: int | str
    stop: int
    of: str = ""


@dataclass(frozen=True)
class Verb:
    lemmas: tuple[str, ...]
    tags: frozenset[str]
    known: bool
    particle: str = ""
    preposition: str = ""


class Phrases:
    """The words of a sentence and where in it the reader stands.

    Attributes:
        last: the object that "it" means, an index of the vocabulary.
        at: the reader's position; previous: what kind of word it just passed.
    """

    def __init__(self, words: list[str], lexicon: Lexicon, last: int | None) -> None:
        self.words, self.lexicon, self.last = words, lexicon, last
        self.at, self.previous = 0, "start"

    def noun(self, at: int) -> Noun | None:
        """The noun phrase that begins at a word, None where another part of speech comes first."""
        words, unknown, of = self.words, "", ""
        for _ in range(REACH):
            if at >= len(words):
                break
            token = words[at]
            if token in ("it", "them") and not unknown:
                return Noun(token if self.last is None else self.last, at + 1)
            if token in ("him", "himself", "herself"):
                return Noun(self.lexicon.person, at + 1) if token == "him" else None
            if token == "her" and (at + 1 == len(words) or words[at + 1] in (PREPOSITIONS | JOINS)):
                return Noun(self.lexicon.person, at + 1)
            if token == "of" and unknown in PARTITIVES:
                of, unknown, at = unknown, "", at + 1
                continue
            if mention := self.lexicon.object_at(words, at):
                index, stop = self.head(mention, at)
                if stop > at:
                    fake = unknown in FAKES or (words[at - 1] in FAKES if at else False)
                    return Noun(words[stop - 1] if fake or index == OTHER else index, stop, of)
                at += 1
                continue
            if token in PREPOSITIONS or token in JOINS or token in CLAUSES or token in AUXILIARIES | RELATIVES:
                break
            if token in ("without", "not", "instead_of", "to"):
                break
            if token.endswith("ing") and self.verb(at, "article" if at and words[at - 1] in ARTICLES else "word"):
                break
            verb = self.verb(at, "word") if unknown else None
            if unknown and (token in ARTICLES or (verb and "VBZ" in verb.tags)):  # another phrase, or the main verb
                break
            if token not in ARTICLES:
                entry = word(token)
                unknown = noun_lemma(token) if entry.noun and not (entry.modifier and not unknown) else unknown
            at += 1
        return Noun(unknown, at, of) if unknown else None

    def head(self, mention: tuple[int, int], start: int) -> tuple[int, int]:
        """The last of adjacent names ("dog bowl", "bike rider"), an unknown head's stead ("bike mechanic's"), or, where
        the name is only a colour (an orange shirt), an end at ``start``."""
        index, stop = mention
        words = self.words
        while stop < len(words):
            further = self.lexicon.object_at(words, stop)
            entry = word(words[stop])
            if words[start:stop] == ["orange"] and (further or entry.only_noun):
                return index, start
            if words[stop] == "'s":  # whose: the thing comes next
                owned = range(stop + 1, min(stop + REACH, len(words)))
                first = next((i for i in owned if not self.describes(i)), len(words))
                named = self.lexicon.object_at(words, first) if first < len(words) else None
                if named is None:
                    return OTHER, stop + 1
                index, stop = named
                continue
            if further and words[stop] not in PRONOUNS and not word(words[stop - 1]).plural:
                if self.verb(stop, "person" if index == self.lexicon.person else "thing"):
                    break
                index, stop = further
            elif entry.only_noun and not entry.modifier and index != self.lexicon.person and not _ends(words[stop]):
                index, stop = OTHER, stop + 1
            else:
                break
        return index, stop

    def describes(self, at: int) -> bool:
        """Whether a word may stand between an owner and the thing owned."""
        token = self.words[at]
        return not (self.lexicon.object_at(self.words, at) or token in PREPOSITIONS | JOINS | AUXILIARIES | ARTICLES)

    def posture(self, at: int) -> tuple[str, int]:
        """The verb that "... in his hands" or "... on her back" stands for, and where it ends."""
        words = self.words
        if at < len(words) and words[at] in ("in", "on"):
            for stop in range(at + 1, min(at + 5, len(words))):
                if words[stop] in ("hand", "hands", "arms") and words[at] == "in":
                    return "hold", stop + 1
                if words[stop] in ("back", "shoulders") and words[at] == "on" and words[stop - 1] in ARTICLES:
                    return "wear", stop + 1
                if words[stop] in PREPOSITIONS or self.lexicon.object_at(words, stop):
                    break
        return "", at

    def verb(self, at: int, previous: str = "") -> Verb | None:
        """The verb at a word, if the word is one where it stands."""
        if at >= len(self.words):
            return None
        token, previous = self.words[at], previous or (self.previous if at == self.at else self.before(at))
        known = self.lexicon.verb_forms(token)
        forms = known or dict(word(token).verbs)
        if token in PREPOSITIONS or token in ARTICLES or token in AUXILIARIES - {"has", "have", "had", "having"}:
            return None
        if not forms:
            return None
        tags = frozenset().union(*forms.values())
        verb = Verb(tuple(forms), tags, bool(known))
        if "VBG" in tags:
            following = self.words[at + 1] if at + 1 < len(self.words) else ""
            adjective = previous == "article" and following not in ARTICLES | PREPOSITIONS
            return None if adjective else verb
        if previous in ("article", "preposition", "verb"):
            return None
        if self.lexicon.object_at(self.words, at) or not known:  # also a noun: only where a verb must stand
            return verb if previous in ("person", "to", "relative") and not self.ends_at(at) else None
        if previous == "word":
            return verb if tags & {"VBZ", "VBD"} and not word(token).only_noun else None
        if previous == "join" and not tags & {"VBZ", "VB"}:
            return verb if self.opens_noun(at + 1) else None
        if previous == "join" and word(token).noun and "VBZ" in tags:
            return verb if self.opens_noun(at + 1) else None
        return verb

    def infinitive(self, at: int) -> bool:
        """Whether a word is the "to" of an infinitive: "a remote to control the tv"."""
        verb = self.verb(at + 1, "to") if self.words[at] == "to" else None
        return verb is not None and verb.known and "VB" in verb.tags

    def ends_at(self, at: int) -> bool:
        return at + 1 >= len(self.words) or self.words[at + 1] in JOINS

    def opens_noun(self, at: int) -> bool:
        return at < len(self.words) and (self.words[at] in ARTICLES or self.words[at] in PREPOSITIONS)

    def before(self, at: int) -> str:
        """What kind of word stands before, where the main loop is not there yet."""
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
            return "person" if found[0] == self.lexicon.person else "thing"
        if self.lexicon.verb_forms(token):
            return "verb"
        return "nouns" if word(token).plural else "word"

    def particle(self, verb: Verb, at: int) -> tuple[Verb, int]:
        words = self.words
        while at < len(words) and word(words[at]).modifier and words[at] not in PREPOSITIONS:
            if self.lexicon.object_at(words, at) or words[at] in JOINS or words[at] in NEVER or words[at] in ARTICLES:
                break
            at += 1
        if at < len(words) and words[at] in PARTICLES:
            return Verb(verb.lemmas, verb.tags, verb.known, words[at]), at + 1
        return verb, at

    def noun_follows(self, at: int) -> bool:
        return at < len(self.words) and self.noun(at) is not None

    def phrase(self, start: int, stop: int) -> str:
        return " ".join(self.words[start : min(stop, start + QUOTED)]).replace("_", " ")

    def begins_clause(self, noun: Noun) -> bool:
        at = noun.stop
        if at >= len(self.words):
            return False
        if self.words[at] in AUXILIARIES | RELATIVES:
            return True
        verb = self.verb(at, "thing")
        if verb is None:
            return False
        return "VBG" not in verb.tags or noun.thing in self.lexicon.animate

    def coordinated(self, first: Noun) -> list[tuple[int | str, int]]:
        """The objects joined by "and", each with its end; not what begins a clause of its own."""
        found: list[tuple[int | str, int]] = [(first.thing, first.stop)]
        at, words = first.stop, self.words
        while at + 1 < len(words) and words[at] in JOINS and len(found) < COORDINATED:
            step = 2 if words[at] == "," and words[at + 1] in JOINS else 1
            other = self.noun(at + step) if at + step < len(words) and not self.verb(at + step) else None
            if other is None or other.thing == self.lexicon.person or self.begins_clause(other):
                break
            found.append((other.thing, other.stop))
            at = other.stop
        return found


def _ends(token: str) -> bool:
    """Whether a noun-like word is rather one that follows a noun phrase."""
    return token in PREPOSITIONS | JOINS | CLAUSES | AUXILIARIES | RELATIVES | ARTICLES or token in PARTICLES
