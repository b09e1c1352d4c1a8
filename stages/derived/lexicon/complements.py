"""The verbs of a clause and what they are done to, found by looking ahead from the first verb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hoi_distill.stages.derived.lexicon.lexicon import OTHER
from hoi_distill.stages.derived.lexicon.phrases import COORDINATED, Noun, Phrases, Verb
from hoi_distill.stages.derived.lexicon.words import JOINS, PARTICLES, PREPOSITIONS


@dataclass(frozen=True)
class Complement:
    """A verb with one of its objects.

    Attributes:
        verb: The verb.
        preposition: Between verb and object, "" if there is none.
        noun: Of a light verb: "bite of" in "take a bite of a pizza".
        obj: An object's index, or a noun that names none.
        phrase: The words from the verb to the object.
        first: Whether this is the verb's first object.
    """

    verb: Verb
    preposition: str
    noun: str
    obj: int | str
    phrase: str
    first: bool


@dataclass
class Predicate:
    """Joined verbs with their objects.

    Attributes:
        verbs: The verbs.
        stop: The word after the last object.
        complements: In order of mention, each verb with each object.
        direct: Index of the first object, None if there is none or if it is not in the vocabulary.
        preposition: Before the direct object.
        antecedent: The object that "it" means after these words.
    """

    verbs: Sequence[Verb]
    stop: int
    complements: list[Complement]
    direct: int | None
    preposition: str
    antecedent: int | None


def verb_group(phrases: Phrases, start: int, first: Verb) -> tuple[list[Verb], int]:
    """The verbs joined to the verb at a word ("holding and reading"), and where they end."""
    words, group, at = phrases.words, [first], start + 1
    while len(group) < COORDINATED:
        group[-1], at = phrases.particle(group[-1], at)
        after = at + 1 if phrases.token(at) in PREPOSITIONS else at
        if phrases.token(after) not in JOINS:
            break
        further = phrases.verb(after + 1)
        if further is None or not further.known or (words[after] == "," and "VBG" not in further.tags):
            break
        if after > at:
            group[-1] = replace(group[-1], preposition=words[at])
        group.append(further)
        at = after + 2
    return group, at


def predicate(phrases: Phrases, start: int, verbs: Sequence[Verb], at: int, antecedent: int | None) -> Predicate:
    """Read the objects of a group of verbs.

    Args:
        phrases: The sentence.
        start: The word at which the verbs begin.
        verbs: The joined verbs.
        at: The word after the verbs.
        antecedent: The object that "it" means.
    """
    found = Predicate(verbs, at, [], None, "", antecedent)
    light, seen = "", False
    while (place := _next_object(phrases, at, light, seen, found.antecedent)) is not None:
        preposition, noun = place
        if isinstance(noun.obj, int):
            noun = _posture(phrases, noun, found)
        of_noun = f"{noun.of} of" if noun.of else light
        stop = noun.stop
        for obj, stop in phrases.coordinated(noun, found.antecedent):
            for verb in found.verbs:
                own = preposition if verb is found.verbs[-1] else _own_preposition(phrases, verb, preposition, obj)
                phrase = phrases.phrase(start, stop)
                found.complements.append(Complement(verb, own, of_noun, obj, phrase, first=not seen))
            if isinstance(obj, int) and obj not in (phrases.lexicon.person, OTHER):
                found.antecedent = obj
        if isinstance(noun.obj, str):
            light = noun.obj
        elif not seen:
            found.direct, light, found.preposition = noun.obj, "", preposition
        seen, at, found.stop = True, stop, stop
        if _particle_apart(phrases, at, found):
            found.complements += _apart(phrases, at, found, phrases.phrase(start, noun.stop))
            at = found.stop = at + 1
    return found


def _next_object(phrases: Phrases, at: int, light: str, seen: bool, antecedent: int | None) -> tuple[str, Noun] | None:
    """The next object with the preposition before it, or None if the verbs have no further one."""
    preposition = ""
    while (token := phrases.token(at)) in PREPOSITIONS:
        if (token == "by" and seen) or phrases.infinitive(at):
            return None
        preposition, at = token, at + 1
        if preposition == "of" and not light:
            of = phrases.noun(at, antecedent)
            at = of.stop if of else at
    if at >= len(phrases.words) or (seen and not preposition) or token in ("no", "nothing", "without"):
        return None
    noun = phrases.noun(at, antecedent)
    if noun is None or (isinstance(noun.obj, str) and phrases.verb(at)):
        return None
    return None if seen and noun.obj == phrases.lexicon.person else (preposition, noun)


def _posture(phrases: Phrases, noun: Noun, found: Predicate) -> Noun:
    """The noun with "in his hands" behind it. Of "has a cup in his hands" the verb becomes "hold"."""
    head, end = phrases.posture(noun.stop)
    if not head or not {"have", "get"}.intersection(found.verbs[-1].lemmas):
        return noun
    found.verbs = [Verb((head,), found.verbs[-1].tags, known=True)]
    return Noun(noun.obj, end)


def _own_preposition(phrases: Phrases, verb: Verb, shared: str, obj: int | str) -> str:
    """Of a verb before "and": "holding and drinking from a cup" holds it, "sitting and reading on a bench" shares."""
    direct = isinstance(obj, int) and any(phrases.lexicon.meant((lemma,), obj) for lemma in verb.lemmas)
    return verb.preposition or ("" if direct else shared)


def _particle_apart(phrases: Phrases, at: int, found: Predicate) -> bool:
    """Whether a verb's particle stands after its object: "picks a ball up"."""
    particle = phrases.token(at) in PARTICLES
    return particle and found.direct is not None and phrases.noun(at + 1, found.antecedent) is None


def _apart(phrases: Phrases, at: int, found: Predicate, phrase: str) -> Iterator[Complement]:
    """The direct object of verbs whose particle stands after it."""
    particle = phrases.words[at]
    for verb in found.verbs:
        for lemma in verb.lemmas:
            if found.direct is not None and phrases.lexicon.meant((lemma, particle), found.direct):
                apart = Verb((lemma,), verb.tags, known=True, particle=particle)
                yield Complement(apart, "", "", found.direct, phrase, first=False)
