"""Sentences read for who does what to which object: a small grammar of captions and of answers to "list the interactions".

A verb's subject must be a person (or be left out, as in a list). What is negated, only intended or doubtful is not taken,
and neither is anything of which the vocabulary has no phrase; each is kept among the dropped, with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stages.teacher.lexicon.lexicon import OTHER, Lexicon, phrase_key
from stages.teacher.lexicon.words import (
    ARTICLES,
    AUXILIARIES,
    BE,
    CLAUSES,
    DEPICTIONS,
    FAKES,
    HEDGES,
    INTENTIONS,
    JOINS,
    NEVER,
    NOBODY,
    PARTICLES,
    PARTITIVES,
    PREPOSITIONS,
    RELATIVES,
    clauses,
    noun_lemma,
    plain,
    word,
)

UNKNOWN_VERB = "no such verb"
UNKNOWN_OBJECT = "no such object"
UNKNOWN_PAIR = "no such interaction"
NO_OBJECT = "no object"
NO_VERB = "no verb"
NOT_A_PERSON = "the subject is not a person"
NO_AGENT = "nobody is named who does it"
NEGATED = "negated"
INTENDED = "only intended"
DOUBTFUL = "doubtful"
QUESTION = "a question"

MOUNTED = frozenset("ride straddle mount sit drive".split())
"""Who follows these is still the rider: "riding a horse holding a rope"."""
ACTIVE_PARTICIPLES = frozenset("seat perch sprawl stretch curl dress clothe".split())
ALIGNED_PREPOSITIONS = frozenset(["", "on", "with", "in", "from", "under", "at", "up", "into"])
"""Others only say where somebody is."""
REACH, COORDINATED, QUOTED = 12, 16, 30
"""At most so many words in a noun phrase, objects or verbs joined, words of a phrase kept."""
_FIELDS = re.compile(r"\s*(?:,|\||;|->|=>|:|\s-+\s)\s*")
_DASHES = re.compile(r"\s*(?:\||->|=>|\s-+\s)\s*")
_GROUP = re.compile(r"([<(\[{])([^<>()\[\]{}\n]*)[>)\]}]")
_KEYS = re.compile(r"\b(?:subject|verb|action|object|predicate|relation|relationship|interaction|target) ?: ")
_BULLET = re.compile(r"^[\s>]*(?:[-+•·‣◦]+\s+|\(?\d{1,3}[.):]\s*|\(?[a-z][.)]\s+)+")


@dataclass(frozen=True)
class Drop:
    """What was not taken.

    Attributes:
        phrase: the words. reason: one of this module's constants.
        doing: (lemma, preposition) that an aligner may still place, else None.
        thing: the object's index, or the noun that names none.
    """

    phrase: str
    reason: str
    doing: tuple[str, str] | None = None
    thing: int | str = -1


@dataclass
class Reading:
    """What a text says: ``triplets`` maps (verb, object) to the first phrase that says so."""

    triplets: dict[tuple[int, int], str] = field(default_factory=dict)
    dropped: list[Drop] = field(default_factory=list)


@dataclass(frozen=True)
class _Noun:
    """A noun phrase that ends before word ``stop``: an object's index or an unknown noun; ``named``: not a pronoun."""

    thing: int | str
    stop: int
    of: str = ""


@dataclass(frozen=True)
class _Verb:
    lemmas: tuple[str, ...]
    tags: frozenset[str]
    known: bool
    particle: str = ""
    preposition: str = ""


def read(text: str, lexicon: Lexicon) -> Reading:
    """All triplets of a text, each once, in order of mention. The same text always gives the same reading."""
    reading = Reading()
    last: int | None = None
    for line in plain(text).split("\n"):
        for statement in _statements(_BULLET.sub("", line), lexicon):
            for words, question in clauses(statement):
                if question:
                    reading.dropped.append(Drop(" ".join(words), QUESTION))
                    continue
                sentence = _Sentence(words, lexicon, reading, last)
                sentence.read()
                last = sentence.last
    return reading


def _statements(line: str, lexicon: Lexicon) -> list[str]:
    """A line as sentences: "<person, ride, horse>", "person | riding | horse" and JSON records are put into words."""
    found: list[str] = []

    def group(match: re.Match[str]) -> str:
        fields = [part for part in _FIELDS.split(match[2]) if re.search("[a-z]", part)]
        told = _told(fields, lexicon)
        if told is None and match[1] in "[{":
            found.extend(fields)
        if told is not None:
            found.append(told)
        return {"(": f", {match[2]} ,", "<": f" {match[2]} "}.get(match[1], " . ") if told is None else " . "

    rest = _KEYS.sub(" ", _GROUP.sub(group, line)) if line.count(":") > 1 else _GROUP.sub(group, line)
    for sentence in re.split(r"(?<=[.;])\s", rest):
        for split in (_DASHES, _FIELDS):
            told = _told([part for part in split.split(sentence.strip(" .")) if part], lexicon)
            if told is not None:
                found.append(told)
                break
        else:
            found.append(_DASHES.sub(" , ", sentence))
    return found


def _told(fields: list[str], lexicon: Lexicon) -> str | None:
    """Two or three fields that are a verb and an object (after a person, in either order) as a sentence, else None."""
    if len(fields) not in (2, 3) or any(len(part) > 60 for part in fields):
        return None
    *subject, first, second = (clean for part in fields if (clean := re.sub(r"[^a-z' ]+", " ", part).strip()))
    if len(subject) != len(fields) - 2:
        return None
    head, _, rest = first.partition(" ")
    if not subject and rest and (known := lexicon.object_at([head], 0)) and known[0] == lexicon.person:
        subject, first = [head], rest

    def thing(text: str) -> int | None:
        words = [word for word in text.split() if word not in ARTICLES]
        at = next((i for i in range(len(words)) if lexicon.object_at(words, i)), None)
        found = None if at is None else lexicon.object_at(words, at)
        return found[0] if found and found[1] == len(words) and found[0] != OTHER else None

    def verb(text: str) -> bool:
        words = [word for word in text.split() if word not in BE]
        at = 1 if words[:1] == ["not"] else 0
        return at < len(words) <= at + 3 and bool(lexicon.verb_forms(words[at])) and thing(text) is None

    if thing(second) is None and verb(second):
        first, second = second, first
    if not verb(first) or thing(second) is None:
        return None
    if not subject:
        return f"{first} the {second}"
    who = thing(subject[0])
    return f"a {subject[0]} is {first} the {second}" if who is not None else None


class _Sentence:
    """One pass over one sentence's words; what it finds goes into the reading."""

    def __init__(self, words: list[str], lexicon: Lexicon, reading: Reading, last: int | None) -> None:
        self.words, self.lexicon, self.reading = words, lexicon, reading
        self.last = last  # the thing that "it" means
        self.actor: bool | None = None  # does a person act? None: nobody is named
        self.main: bool | None = None  # the sentence's own subject
        self.coordinate: bool | None = None  # the subject of the verb before "and"
        self.at, self.previous = 0, "start"
        self.patients: list[int] = []  # what stands right before a verb: the passive's objects
        self.preposition = ""
        self.negated = self.negated_once = self.doubtful = self.intended = False
        self.joined = self.depicted = self.with_none = False
        self.holder: tuple[int, int] | None = None  # a person just named, and where

    def read(self) -> None:
        while self.at < len(self.words):
            self.at = self._function_word(self.at) or self._content_word(self.at)

    def _function_word(self, at: int) -> int | None:
        """Past a word that steers the grammar, or None where the word is none."""
        words, token = self.words, self.words[at]
        following = words[at + 1] if at + 1 < len(words) else ""
        if token in (",", *CLAUSES) and not (token == "like" or (token == "as" and self.previous == "verb")):
            self._clear()
            self.actor, self.previous, self.patients = self.main, "join", []
            self.joined = token == ","
            return at + 1
        if token in JOINS:
            self.joined, self.previous = True, "join"
            if self._verb(at + 1):
                self.actor = self.coordinate if self.coordinate is not None else self.actor
            return at + 1
        if token in NEVER or token in NOBODY:
            self.negated = following not in ("only", "just")
            if token in NOBODY:
                self._subject(True)
                self.previous = "person"
            return at + 1 if self.negated else at + 2
        if token == "no" and not (following == "," or at + 1 == len(words)):
            if self.preposition == "with":
                found = self._noun(at + 1)
                return found.stop if found else at + 1
            self.negated, self.previous = True, "article"
            return at + 1
        if token in ("without", "instead_of"):
            if self._verb(at + 1):
                self.negated_once, self.previous = True, "join"
                return at + 1
            found = self._noun(at + 1)
            return found.stop if found else at + 1
        if token in HEDGES:
            self.doubtful, self.previous = True, "auxiliary"
            return at + 1
        if following == "to" and (token in INTENTIONS or _lemma_in(token, INTENTIONS)):
            self.intended, self.previous = True, "to"
            return at + 2
        if token in AUXILIARIES and not (token in ("having", "has", "have", "had") and self._possession(at)):
            self.previous = "being" if token in BE else "auxiliary"
            return at + 1
        if token in RELATIVES:
            self.previous = "relative"
            return at + 1
        return None

    def _content_word(self, at: int) -> int:
        words, token = self.words, self.words[at]
        mention = self.lexicon.object_at(words, at)
        verb = self._verb(at)
        if verb and not (mention and mention[1] > at + 1):
            return self._act(at, verb)
        if mention or token in ("it", "them"):
            return self._mention(at)
        if token in PREPOSITIONS:
            self.preposition, self.previous, self.patients = token, "preposition", []
            return at + 1
        if token in ARTICLES:
            self.previous = "article"
            return at + 1
        if (token in FAKES or token in DEPICTIONS) and at + 1 < len(words):
            self.depicted = token in FAKES or words[at + 1] == "of"
        if not word(token).modifier:
            self.patients, self.holder = [], None
            self.previous = "nouns" if word(token).plural else "word"
            if token not in PARTITIVES and word(token).noun:
                self.preposition = ""
        return at + 1

    def _phrase(self, start: int, stop: int) -> str:
        return " ".join(self.words[start : min(stop, start + QUOTED)])

    def _clear(self) -> None:
        self.negated = self.negated_once = self.doubtful = self.intended = self.joined = False
        self.preposition, self.holder = "", None

    def _subject(self, person: bool) -> None:
        self.actor = person
        if self.preposition in ("", "of") or person:
            self.main = person
        self.coordinate = None

    def _possession(self, at: int) -> bool:
        """Whether "has" is followed by what is had, not by a verb."""
        return at + 1 < len(self.words) and (self.words[at + 1] in ARTICLES or self._noun(at + 1) is not None)

    # Nouns

    def _mention(self, at: int) -> int:
        found = self._noun(at)
        if found is None:  # a pronoun of which nothing is known
            self.actor, self.previous = False, "thing"
            return at + 1
        joined = self.joined and bool(self.patients) and self.previous in ("join", "article")
        relation = self.holder is not None and self.preposition not in ("", "of")
        if not isinstance(found.thing, int) or found.thing == OTHER:
            self.patients, self.previous, self.holder = [], "word", None
            if not self.preposition:
                self._subject(False)
            self.preposition = ""
            return found.stop
        person = found.thing == self.lexicon.person and not self.depicted
        if person:
            if self.joined and not joined:
                self._clear()
            self._subject(True)
            self.holder = (at, found.stop)
        else:
            if found.thing != self.lexicon.person:
                self.last = found.thing
            if relation and self.holder:
                return self._relation(self.holder[0], found)
            if self.depicted or (self.preposition in ("", "of") and not self._belongs(found, joined)):
                self._subject(False)
            self.holder = None
        self.patients = [*self.patients, found.thing] if joined else [found.thing]
        self.previous = "person" if person else "thing"
        self.preposition, self.joined, self.depicted = "", False, False
        return found.stop

    def _belongs(self, found: _Noun, joined: bool) -> bool:
        """Whether a thing after "and" is one more of what was named before, not the subject of a clause."""
        if joined and self.actor:
            return True
        auxiliary = found.stop < len(self.words) and self.words[found.stop] in AUXILIARIES
        return self.joined and not auxiliary and found.thing not in self.lexicon.animate

    def _relation(self, start: int, found: _Noun) -> int:
        """ "a man with a cup": no verb says what he does, unless it is "in his hand" or the like."""
        thing = int(found.thing)
        head, stop = self._posture(found.stop)
        verbs = self.lexicon.meant((head,), thing) if head else self.lexicon.meant(("be", self.preposition), thing)
        phrase = self._phrase(start, stop)
        if verbs and not self.negated:
            self._take(verbs, thing, phrase)
        else:
            doing = ("be", self.preposition) if self.preposition in ("on", "with", "in", "under") else None
            self._drop(phrase, self._doubt() or NO_VERB, doing, thing)
        self.preposition, self.holder, self.patients, self.previous = "", None, [thing], "thing"
        return stop

    def _posture(self, at: int) -> tuple[str, int]:
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

    def _noun(self, at: int) -> _Noun | None:
        """The noun phrase that begins at a word, None where another part of speech comes first."""
        words, unknown, of = self.words, "", ""
        for _ in range(REACH):
            if at >= len(words):
                break
            token = words[at]
            if token in ("it", "them") and not unknown:
                return _Noun(token if self.last is None else self.last, at + 1)
            if token in ("him", "himself", "herself"):
                return _Noun(self.lexicon.person, at + 1) if token == "him" else None
            if token == "her" and (at + 1 == len(words) or words[at + 1] in (PREPOSITIONS | JOINS)):
                return _Noun(self.lexicon.person, at + 1)
            if token == "of" and unknown in PARTITIVES:
                of, unknown, at = unknown, "", at + 1
                continue
            if mention := self.lexicon.object_at(words, at):
                index, stop = self._head(mention, at)
                if stop > at:
                    fake = unknown in FAKES or (words[at - 1] in FAKES if at else False)
                    return _Noun(words[stop - 1] if fake or index == OTHER else index, stop, of)
                at += 1
                continue
            if token in PREPOSITIONS or token in JOINS or token in CLAUSES or token in AUXILIARIES | RELATIVES:
                break
            if token in ("without", "not", "instead_of", "to"):
                break
            if token.endswith("ing") and self._verb(at, "article" if at and words[at - 1] in ARTICLES else "word"):
                break
            if token not in ARTICLES:
                entry = word(token)
                unknown = noun_lemma(token) if entry.noun and not (entry.modifier and not unknown) else unknown
            at += 1
        return _Noun(unknown, at, of) if unknown else None

    def _head(self, mention: tuple[int, int], start: int) -> tuple[int, int]:
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
                first = next((i for i in owned if not self._describes(i)), len(words))
                named = self.lexicon.object_at(words, first) if first < len(words) else None
                if named is None:
                    return OTHER, stop + 1
                index, stop = named
                continue
            if further and words[stop] not in ("you", "i", "we", "they", "he", "she") and not word(words[stop - 1]).plural:
                if self._verb(stop, "person" if index == self.lexicon.person else "thing"):
                    break
                index, stop = further
            elif entry.only_noun and not entry.modifier and index != self.lexicon.person and not _ends(words[stop]):
                index, stop = OTHER, stop + 1
            else:
                break
        return index, stop

    def _describes(self, at: int) -> bool:
        """Whether a word may stand between an owner and the thing owned."""
        token = self.words[at]
        return not (self.lexicon.object_at(self.words, at) or token in PREPOSITIONS | JOINS | AUXILIARIES | ARTICLES)

    # Verbs

    def _verb(self, at: int, previous: str = "") -> _Verb | None:
        """The verb at a word, if the word is one where it stands."""
        if at >= len(self.words):
            return None
        token, previous = self.words[at], previous or (self.previous if at == self.at else self._before(at))
        known = self.lexicon.verb_forms(token)
        forms = known or dict(word(token).verbs)
        if token in PREPOSITIONS or token in ARTICLES or token in AUXILIARIES - {"has", "have", "had", "having"}:
            return None
        if not forms:
            return None
        tags = frozenset().union(*forms.values())
        verb = _Verb(tuple(forms), tags, bool(known))
        if "VBG" in tags:
            following = self.words[at + 1] if at + 1 < len(self.words) else ""
            adjective = previous == "article" and following not in ARTICLES | PREPOSITIONS
            return None if adjective else verb
        if previous in ("article", "preposition", "verb"):
            return None
        if self.lexicon.object_at(self.words, at) or not known:  # also a noun: only where a verb must stand
            return verb if previous in ("person", "to", "relative") and not self._ends_at(at) else None
        if previous == "word":
            return verb if tags & {"VBZ", "VBD"} and not word(token).only_noun else None
        if previous == "join" and not tags & {"VBZ", "VB"}:
            return verb if self._opens_noun(at + 1) else None
        if previous == "join" and word(token).noun and "VBZ" in tags:
            return verb if self._opens_noun(at + 1) else None
        return verb

    def _ends_at(self, at: int) -> bool:
        return at + 1 >= len(self.words) or self.words[at + 1] in JOINS

    def _opens_noun(self, at: int) -> bool:
        return at < len(self.words) and (self.words[at] in ARTICLES or self.words[at] in PREPOSITIONS)

    def _before(self, at: int) -> str:
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

    def _act(self, start: int, first: _Verb) -> int:
        """A verb, those joined to it, and what they are done to."""
        words = self.words
        group, at = [first], start + 1
        while len(group) < COORDINATED:
            verb, at = self._particle(group[-1], at)
            group[-1] = verb
            after = at + 1 if at < len(words) and words[at] in PREPOSITIONS else at
            if after < len(words) and words[after] in JOINS and (further := self._verb(after + 1)) and further.known:
                if words[after] == "," and "VBG" not in further.tags:
                    break
                if after > at:
                    group[-1] = _Verb(verb.lemmas, verb.tags, verb.known, verb.particle, words[at])
                group.append(further)
                at = after + 2
                continue
            break
        passive = self._passive(first, at)
        if passive is not None:
            return self._suffer(start, group[0], at, passive)
        acts = self.actor
        taken = len(self.reading.triplets) + len(self.reading.dropped)
        stop, thing = self._complements(start, group, at, acts)
        if not any(verb.known for verb in group) and taken == len(self.reading.triplets) + len(self.reading.dropped):
            stop = max(stop, start + 1)
        self.coordinate = acts
        if thing is not None and thing in self.lexicon.animate and not set(first.lemmas) & MOUNTED:
            self.actor = thing == self.lexicon.person
        else:
            self.actor = acts
        self.previous, self.preposition, self.holder = "thing" if thing is not None else "verb", "", None
        self.patients = [] if thing is None else [thing]
        self.negated_once = self.intended = self.joined = False
        return stop

    def _particle(self, verb: _Verb, at: int) -> tuple[_Verb, int]:
        words = self.words
        while at < len(words) and word(words[at]).modifier and words[at] not in PREPOSITIONS:
            if self.lexicon.object_at(words, at) or words[at] in JOINS or words[at] in NEVER or words[at] in ARTICLES:
                break
            at += 1
        if at < len(words) and words[at] in PARTICLES:
            return _Verb(verb.lemmas, verb.tags, verb.known, words[at]), at + 1
        return verb, at

    def _passive(self, verb: _Verb, at: int) -> _Noun | bool | None:
        """The agent after "by", False where it is passive without one, None where it is active."""
        if not self.patients or "VBN" not in verb.tags or set(verb.lemmas) & ACTIVE_PARTICIPLES:
            return None
        by = next((i for i in range(at, min(at + 3, len(self.words))) if self.words[i] == "by"), None)
        agent = self._noun(by + 1) if by is not None else None
        if agent is not None and agent.thing in self.lexicon.animate:
            return agent
        return False if self.previous == "being" or "VBD" not in verb.tags else None

    def _suffer(self, start: int, verb: _Verb, at: int, agent: _Noun | bool) -> int:
        stop = agent.stop if isinstance(agent, _Noun) else at
        phrase = self._phrase(start, stop)
        reason = self._doubt() or (
            NO_AGENT if not isinstance(agent, _Noun) else "" if agent.thing == self.lexicon.person else NOT_A_PERSON
        )
        preposition = self.words[at] if at < len(self.words) and self.words[at] in PREPOSITIONS - {"by"} else ""
        if isinstance(agent, _Noun):
            self._clear()
            self.actor = self.main = agent.thing == self.lexicon.person
        for thing in self.patients:
            if reason:
                self._drop(phrase, reason)
            elif verb.known:
                self._align(verb, preposition, "", thing, phrase, True)
        self.patients, self.previous = [], "person" if isinstance(agent, _Noun) else "verb"
        self.negated_once = self.intended = False
        return stop

    def _complements(self, start: int, group: list[_Verb], at: int, acts: bool | None) -> tuple[int, int | None]:
        """Read the objects of a group of verbs; gives where they end and the direct object's index."""
        words, last = self.words, group[-1]
        preposition, noun, seen, direct = "", "", False, None
        stop = at
        while at < len(words):
            token = words[at]
            if token in PREPOSITIONS and not (token == "no"):
                if token == "by" and seen:
                    break
                preposition, at = token, at + 1
                if preposition == "of" and not noun:
                    found = self._noun(at)
                    at = found.stop if found else at
                continue
            if seen and not preposition:
                break
            found = self._noun(at) if token not in ("no", "nothing", "without") else None
            if found is None or (isinstance(found.thing, str) and self._verb(at)):
                break
            if seen and found.thing == self.lexicon.person:
                break
            head, end = self._posture(found.stop) if isinstance(found.thing, int) else ("", found.stop)
            if head and set(last.lemmas) & {"have", "get"}:
                last, group, found = _Verb((head,), last.tags, True), [_Verb((head,), last.tags, True)], _Noun(found.thing, end)
            phrase = self._phrase(start, found.stop)
            for thing, end in self._coordinated(found):
                for verb in group:
                    own = preposition if verb is last else self._own_preposition(verb, preposition, thing)
                    self._complement(verb, own, f"{found.of} of" if found.of else noun, thing, self._phrase(start, end), not seen, acts)
                if isinstance(thing, int) and thing not in (self.lexicon.person, OTHER):
                    self.last = thing
                stop = end
            if isinstance(found.thing, str):
                noun = found.thing
            elif not seen:
                direct, noun = found.thing, ""
            seen, at, preposition = True, stop, ""
            if at < len(words) and words[at] in PARTICLES and not self._noun_follows(at + 1) and direct is not None:
                for verb in group:
                    for lemma in verb.lemmas:
                        if self.lexicon.meant((lemma, words[at]), direct):
                            self._complement(_Verb((lemma,), verb.tags, True, words[at]), "", "", direct, phrase, False, acts)
                at = stop = at + 1
        if not seen and any(verb.known for verb in group):
            self._without_object(start, group, max(stop, start + 1), acts)
        return max(stop, start + 1), direct

    def _own_preposition(self, verb: _Verb, shared: str, thing: int | str) -> str:
        """Of a verb before "and": "holding and drinking from a cup" holds it, "sitting and reading on a bench" shares."""
        direct = isinstance(thing, int) and any(self.lexicon.meant((lemma,), thing) for lemma in verb.lemmas)
        return verb.preposition or ("" if direct else shared)

    def _noun_follows(self, at: int) -> bool:
        return at < len(self.words) and self._noun(at) is not None

    def _without_object(self, start: int, group: list[_Verb], stop: int, acts: bool | None) -> None:
        phrase = self._phrase(start, stop)
        for verb in group:
            for lemma in verb.lemmas:
                if pairs := self.lexicon.implied((lemma,)):
                    self._implied(pairs, phrase, acts)
                    return
        self._drop(phrase, self._doubt() or NO_OBJECT)

    def _implied(self, pairs: list[tuple[int, int]], phrase: str, acts: bool | None) -> None:
        reason = self._doubt() or ("" if acts in (None, True) else NOT_A_PERSON)
        for verb, thing in pairs:
            if reason:
                self._drop(phrase, reason)
            else:
                self._take([verb], thing, phrase)

    def _coordinated(self, first: _Noun) -> list[tuple[int | str, int]]:
        """The objects joined by "and", each with its end; not what begins a clause of its own."""
        found: list[tuple[int | str, int]] = [(first.thing, first.stop)]
        at, words = first.stop, self.words
        while at + 1 < len(words) and words[at] in JOINS and len(found) < COORDINATED:
            step = 2 if words[at] == "," and words[at + 1] in JOINS else 1
            other = self._noun(at + step) if at + step < len(words) and not self._verb(at + step) else None
            if other is None or other.thing == self.lexicon.person or self._begins_clause(other):
                break
            found.append((other.thing, other.stop))
            at = other.stop
        return found

    def _begins_clause(self, noun: _Noun) -> bool:
        at = noun.stop
        if at >= len(self.words):
            return False
        if self.words[at] in AUXILIARIES | RELATIVES:
            return True
        verb = self._verb(at, "thing")
        if verb is None:
            return False
        return "VBG" not in verb.tags or noun.thing in self.lexicon.animate

    def _complement(
        self, verb: _Verb, preposition: str, noun: str, thing: int | str, phrase: str, first: bool, acts: bool | None
    ) -> None:
        """Take, drop or ignore one (verb, preposition, thing). Only a verb's first complement is worth a drop."""
        doubt = self._doubt()
        if acts is False:
            if first and verb.known and (doubt or isinstance(thing, int)):
                self._drop(phrase, doubt or NOT_A_PERSON)
        elif doubt:
            if first and (verb.known or isinstance(thing, int)):
                self._drop(phrase, doubt)
        elif isinstance(thing, str):
            pairs = [pair for lemma in verb.lemmas for pair in self.lexicon.implied((lemma, thing))]
            pairs = pairs or [
                pair for lemma in verb.lemmas for pair in self.lexicon.implied((lemma,)) if preposition or verb.particle
            ]
            if pairs:
                self._implied(pairs, phrase, acts)
            elif first and verb.known:
                aligned = preposition in ALIGNED_PREPOSITIONS and thing not in ("it", "them")
                doing = (verb.lemmas[0], preposition) if aligned else None
                self._drop(phrase, UNKNOWN_OBJECT, doing, thing)
        else:
            self._align(verb, preposition, noun, thing, phrase, first)

    def _align(self, verb: _Verb, preposition: str, noun: str, thing: int, phrase: str, first: bool) -> None:
        keys: list[tuple[str, ...]] = []
        for tail in ([preposition] if preposition else []), []:
            if tail or not preposition or preposition in PARTICLES:
                keys += [(*noun.split(" "), *tail)] if noun else []
                keys += [(verb.particle, *tail)] if verb.particle else []
                keys += [tuple(tail)]
        for key in keys:
            verbs = [found for lemma in verb.lemmas for found in self.lexicon.meant(phrase_key((lemma, *key)), thing)]
            if verbs:
                self._take(verbs, thing, phrase)
                return
        if first:
            aligned = preposition in ALIGNED_PREPOSITIONS and not verb.lemmas[0] == "be"
            doing = (verb.lemmas[0], preposition or verb.particle) if aligned else None
            reason = UNKNOWN_PAIR if verb.known else UNKNOWN_VERB
            self._drop(phrase, reason, doing, thing)

    def _doubt(self) -> str:
        if self.negated or self.negated_once:
            return NEGATED
        return INTENDED if self.intended else DOUBTFUL if self.doubtful else ""

    def _take(self, verbs: list[int], thing: int, phrase: str) -> None:
        for verb in verbs:
            self.reading.triplets.setdefault((verb, thing), phrase)

    def _drop(
        self, phrase: str, reason: str, doing: tuple[str, str] | None = None, thing: int | str = -1
    ) -> None:
        self.reading.dropped.append(Drop(phrase, reason, doing, thing))


def _lemma_in(token: str, lemmas: frozenset[str]) -> bool:
    return any(lemma in lemmas for lemma, _ in word(token).verbs)


def _ends(token: str) -> bool:
    """Whether a noun-like word is rather one that follows a noun phrase."""
    return token in PREPOSITIONS | JOINS | CLAUSES | AUXILIARIES | RELATIVES | ARTICLES or token in PARTICLES
