"""One sentence read for who does what to which object: a small grammar of captions.

A verb's subject must be a person (or be left out, as in a list). What is negated, only intended or doubtful is not taken,
and neither is anything of which the vocabulary has no phrase; each is kept among the dropped, with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hoi_distill.stages.derived.lexicon.lexicon import OTHER, Lexicon, phrase_key
from hoi_distill.stages.derived.lexicon.phrases import COORDINATED, Noun, Phrases, Verb
from hoi_distill.stages.derived.lexicon.words import (
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

MOUNTED = frozenset(["ride", "straddle", "mount", "sit", "drive"])
"""Who follows these is still the rider: "riding a horse holding a rope"."""
ACTIVE_PARTICIPLES = frozenset(["seat", "perch", "sprawl", "stretch", "curl", "dress", "clothe"])
GRASPING = frozenset(["hold", "grab", "hang", "grip", "pull", "tug", "cling"])
"""Of these "on" adds nothing to the object ("holds on to a cup"), but says where if there is one ("a cup on a chair")."""
ALIGNED_PREPOSITIONS = frozenset(["", "on", "with", "in", "from", "under", "at", "up", "into"])
"""Others only say where somebody is."""


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


class Sentence(Phrases):
    """One pass over one sentence's words; what it finds goes into the reading."""

    def __init__(self, words: list[str], lexicon: Lexicon, reading: Reading, last: int | None) -> None:
        super().__init__(words, lexicon, last)
        self.reading = reading
        self.actor: bool | None = None  # does a person act? None: nobody is named
        self.main: bool | None = None  # the sentence's own subject
        self.coordinate: bool | None = None  # the subject of the verb before "and"
        self.patients: list[int] = []  # what stands right before a verb: the passive's objects
        self.preposition = ""
        self.beside = ""  # the preposition of the last verb's object
        self.negated = self.negated_once = self.doubtful = self.intended = False
        self.joined = self.depicted = self.acted = False
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
            if self.verb(at + 1):
                self.actor = self.coordinate if self.coordinate is not None else self.actor
            return at + 1
        if token in NEVER or token in NOBODY:
            self.negated = following not in ("only", "just")
            self.joined = False
            if token in NOBODY:
                self._subject(True)
                self.previous = "person"
            return at + 1 if self.negated else at + 2
        if token == "no" and not (following == "," or at + 1 == len(words)):
            if self.preposition == "with":
                found = self.noun(at + 1)
                return found.stop if found else at + 1
            self.negated, self.previous = True, "article"
            return at + 1
        if token in ("without", "instead_of"):
            if self.verb(at + 1):
                self.negated_once, self.previous = True, "join"
                return at + 1
            found = self.noun(at + 1)
            return found.stop if found else at + 1
        if token in HEDGES:
            self.doubtful, self.previous = True, "auxiliary"
            return at + 1
        if following == "to" and (token in INTENTIONS or _lemma_in(token, INTENTIONS)):
            self.intended, self.previous = True, "to"
            return at + 2
        if token in AUXILIARIES and not (token in ("having", "has", "have", "had") and self._possession(at)):
            if self.previous in ("thing", "verb") and self.acted:  # a new predicate: "who is not sitting is riding"
                self.negated = self.doubtful = self.acted = False
                self.actor = self.main if self.actor is None else self.actor
            self.previous = "being" if token in BE else "auxiliary"
            return at + 1
        if self.infinitive(at):
            self.previous = "to"
            return at + 1
        if token in RELATIVES:
            self.previous = "relative"
            return at + 1
        return None

    def _content_word(self, at: int) -> int:
        words, token = self.words, self.words[at]
        mention = self.lexicon.object_at(words, at)
        verb = self.verb(at)
        if verb and not (mention and mention[1] > at + 1):
            return self._act(at, verb)
        if mention or token in ("it", "them"):
            return self._mention(at)
        if token in PREPOSITIONS:
            self.preposition, self.previous, self.patients = token, "preposition", []
            named = self.noun(at + 1)
            return self._mention(at + 1) if named is not None and isinstance(named.thing, int) else at + 1
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
        at += 1
        while at < len(self.words) and word(self.words[at]).modifier:
            at += 1
        if at == len(self.words) or any("VBN" in forms for _, forms in word(self.words[at]).verbs):
            return False
        return self.words[at] in ARTICLES or self.noun(at) is not None

    def _mention(self, at: int) -> int:
        found = self.noun(at)
        if self.words[at] == "them" and self.preposition == "of":  # one of them
            self._subject(True)
            self.previous, self.preposition = "person", ""
            return at + 1
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

    def _belongs(self, found: Noun, joined: bool) -> bool:
        """Whether a thing after "and" is one more of what was named before, not the subject of a clause."""
        if joined and self.actor:
            return True
        auxiliary = found.stop < len(self.words) and self.words[found.stop] in AUXILIARIES
        return self.joined and not auxiliary and found.thing not in self.lexicon.animate

    def _relation(self, start: int, found: Noun) -> int:
        """ "a man with a cup": no verb says what he does, unless it is "in his hand" or the like."""
        thing = int(found.thing)
        head, stop = self.posture(found.stop)
        verbs = self.lexicon.meant((head,), thing) if head else self.lexicon.meant(("be", self.preposition), thing)
        phrase = self.phrase(start, stop)
        if verbs and not self.negated:
            self._take(verbs, thing, phrase)
        else:
            doing = ("be", self.preposition) if self.preposition in ("on", "with", "in", "under") else None
            self._drop(phrase, self._doubt() or NO_VERB, doing, thing)
        self.preposition, self.holder, self.patients, self.previous = "", None, [thing], "thing"
        return stop

    def _act(self, start: int, first: Verb) -> int:
        """A verb, those joined to it, and what they are done to."""
        words = self.words
        group, at = [first], start + 1
        while len(group) < COORDINATED:
            verb, at = self.particle(group[-1], at)
            group[-1] = verb
            after = at + 1 if at < len(words) and words[at] in PREPOSITIONS else at
            if after < len(words) and words[after] in JOINS and (further := self.verb(after + 1)) and further.known:
                if words[after] == "," and "VBG" not in further.tags:
                    break
                if after > at:
                    group[-1] = Verb(verb.lemmas, verb.tags, verb.known, verb.particle, words[at])
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
        mounted = self.beside not in PREPOSITIONS - {"on", "in"} and set(first.lemmas) & MOUNTED
        if thing is not None and thing in self.lexicon.animate and not mounted:
            self.actor = thing == self.lexicon.person
        else:
            self.actor = acts
        self.previous, self.preposition, self.holder = "thing" if thing is not None else "verb", "", None
        self.patients = [] if thing is None else [thing]
        self.negated_once = self.intended = self.joined = False
        self.acted = True
        return stop

    def _passive(self, verb: Verb, at: int) -> Noun | bool | None:
        """The agent after "by", False where it is passive without one, None where it is active."""
        if not self.patients or "VBN" not in verb.tags or set(verb.lemmas) & ACTIVE_PARTICIPLES:
            return None
        by = next((i for i in range(at, min(at + 3, len(self.words))) if self.words[i] == "by"), None)
        agent = self.noun(by + 1) if by is not None else None
        if agent is not None and agent.thing in self.lexicon.animate:
            return agent
        participle = "VBD" not in verb.tags and self.previous != "auxiliary"  # "has thrown" is active
        return False if self.previous == "being" or participle else None

    def _suffer(self, start: int, verb: Verb, at: int, agent: Noun | bool) -> int:
        stop = agent.stop if isinstance(agent, Noun) else at
        phrase = self.phrase(start, stop)
        reason = self._doubt() or (
            NO_AGENT if not isinstance(agent, Noun) else "" if agent.thing == self.lexicon.person else NOT_A_PERSON
        )
        preposition = self.words[at] if at < len(self.words) and self.words[at] in PREPOSITIONS - {"by"} else ""
        if isinstance(agent, Noun):
            self._clear()
            self.actor = self.main = agent.thing == self.lexicon.person
        for thing in self.patients:
            if reason:
                self._drop(phrase, reason)
            elif verb.known:
                self._align(verb, preposition, "", thing, phrase, True)
        self.patients, self.previous = [], "person" if isinstance(agent, Noun) else "verb"
        self.negated_once = self.intended = False
        return stop

    def _complements(self, start: int, group: list[Verb], at: int, acts: bool | None) -> tuple[int, int | None]:
        """Read the objects of a group of verbs; gives where they end and the direct object's index."""
        words, last = self.words, group[-1]
        preposition, noun, seen, direct = "", "", False, None
        stop = at
        while at < len(words):
            token = words[at]
            if token in PREPOSITIONS:
                if token == "by" and seen:
                    break
                if self.infinitive(at):
                    break
                preposition, at = token, at + 1
                if preposition == "of" and not noun:
                    found = self.noun(at)
                    at = found.stop if found else at
                continue
            if seen and not preposition:
                break
            found = self.noun(at) if token not in ("no", "nothing", "without") else None
            if found is None or (isinstance(found.thing, str) and self.verb(at)):
                break
            if seen and found.thing == self.lexicon.person:
                break
            head, end = self.posture(found.stop) if isinstance(found.thing, int) else ("", found.stop)
            if head and set(last.lemmas) & {"have", "get"}:
                last, found = Verb((head,), last.tags, True), Noun(found.thing, end)
                group = [last]
            phrase = self.phrase(start, found.stop)
            for thing, end in self.coordinated(found):
                for verb in group:
                    own = preposition if verb is last else self._own_preposition(verb, preposition, thing)
                    light = f"{found.of} of" if found.of else noun  # "take a bite of"
                    self._complement(verb, own, light, thing, self.phrase(start, end), not seen, acts)
                if isinstance(thing, int) and thing not in (self.lexicon.person, OTHER):
                    self.last = thing
                stop = end
            if isinstance(found.thing, str):
                noun = found.thing
            elif not seen:
                direct, noun, self.beside = found.thing, "", preposition
            seen, at, preposition = True, stop, ""
            if at < len(words) and words[at] in PARTICLES and not self.noun_follows(at + 1) and direct is not None:
                for verb in group:
                    for lemma in verb.lemmas:
                        if self.lexicon.meant((lemma, words[at]), direct):
                            apart = Verb((lemma,), verb.tags, True, words[at])  # "picks a ball up"
                            self._complement(apart, "", "", direct, phrase, False, acts)
                at = stop = at + 1
        if not seen and any(verb.known for verb in group):
            self._without_object(start, group, max(stop, start + 1), acts)
        return max(stop, start + 1), direct

    def _own_preposition(self, verb: Verb, shared: str, thing: int | str) -> str:
        """Of a verb before "and": "holding and drinking from a cup" holds it, "sitting and reading on a bench" shares."""
        direct = isinstance(thing, int) and any(self.lexicon.meant((lemma,), thing) for lemma in verb.lemmas)
        return verb.preposition or ("" if direct else shared)

    def _without_object(self, start: int, group: list[Verb], stop: int, acts: bool | None) -> None:
        phrase = self.phrase(start, stop)
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

    def _complement(
        self, verb: Verb, preposition: str, noun: str, thing: int | str, phrase: str, first: bool, acts: bool | None
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

    def _align(self, verb: Verb, preposition: str, noun: str, thing: int, phrase: str, first: bool) -> None:
        keys: list[tuple[str, ...]] = []
        for tail in ([preposition] if preposition else []), []:
            if tail or not preposition or preposition in PARTICLES:
                keys += [(*noun.split(" "), *tail)] if noun else []
                keys += [(verb.particle, *tail)] if verb.particle else []
                keys += [tuple(tail)]
        if not first and preposition == "on" and GRASPING.intersection(verb.lemmas):
            return
        for key in keys:
            verbs = [found for lemma in verb.lemmas for found in self.lexicon.meant(phrase_key((lemma, *key)), thing)]
            if verbs:
                self._take(verbs, thing, phrase)
                return
        if first:
            aligned = preposition in ALIGNED_PREPOSITIONS and verb.lemmas[0] != "be"
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

    def _drop(self, phrase: str, reason: str, doing: tuple[str, str] | None = None, thing: int | str = -1) -> None:
        self.reading.dropped.append(Drop(phrase, reason, doing, thing))


def _lemma_in(token: str, lemmas: frozenset[str]) -> bool:
    return any(lemma in lemmas for lemma, _ in word(token).verbs)
