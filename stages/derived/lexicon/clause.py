"""What a reader knows of the clause it is in, and how words that steer the grammar change that."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hoi_distill.stages.derived.lexicon.findings import DOUBTFUL, INTENDED, NEGATED
from hoi_distill.stages.derived.lexicon.phrases import Noun, Phrases, WordKind
from hoi_distill.stages.derived.lexicon.words import (
    ARTICLES,
    AUXILIARIES,
    BE,
    CLAUSES,
    HEDGES,
    INTENTIONS,
    JOINS,
    NEVER,
    NOBODY,
    RELATIVES,
    word,
)


class Clause(NamedTuple):
    """What is known of a clause before its next word.

    Attributes:
        antecedent: The object that "it" means, an index of the vocabulary; None if there is none.
        previous: What kind of word was read last.
        person_acts: Whether the verb's subject is a person; None if no subject is named.
        main_person: The same of the sentence's own subject, to which "but" or a comma returns.
        coordinate_person: The same of the verb before "and".
        patients: Objects that stand right before a verb. They are the objects of a passive.
        preposition: The preposition before the next noun, "" if there is none.
        holder: Position and end of a person who was just named; None if there is none.
        negated: Whether the clause is negated.
        negated_once: Whether the next verb alone is negated, by "without".
        doubtful: Whether the clause is a guess.
        intended: Whether the next verb is only a wish.
        joined: Whether the next noun is joined to the one before it.
        depicted: Whether the next noun is only an image or a toy of what it names.
        acted: Whether a verb was read.
    """

    antecedent: int | None = None
    previous: WordKind = "start"
    person_acts: bool | None = None
    main_person: bool | None = None
    coordinate_person: bool | None = None
    patients: tuple[int, ...] = ()
    preposition: str = ""
    holder: tuple[int, int] | None = None
    negated: bool = False
    negated_once: bool = False
    doubtful: bool = False
    intended: bool = False
    joined: bool = False
    depicted: bool = False
    acted: bool = False

    @property
    def doubt(self) -> str:
        """Why nothing of the clause is taken, "" if there is no such reason."""
        if self.negated or self.negated_once:
            return NEGATED
        return INTENDED if self.intended else DOUBTFUL if self.doubtful else ""

    def opened(self) -> Clause:
        """The clause that begins here: nothing of it is negated, doubtful or joined yet."""
        certain = self._replace(negated=False, negated_once=False, doubtful=False, intended=False)
        return certain._replace(joined=False, preposition="", holder=None)

    def with_subject(self, *, person: bool) -> Clause:
        """The clause with a new subject, which becomes the sentence's own unless it follows a preposition."""
        main = person if person or self.preposition in ("", "of") else self.main_person
        return self._replace(person_acts=person, main_person=main, coordinate_person=None)


STEERING = CLAUSES | JOINS | NEVER | NOBODY | HEDGES | AUXILIARIES | RELATIVES | {"no", "without", "instead_of", "to"}
"""The words that a rule may know. Any word that stands before "to" may be an intention, too."""
Step = tuple[Clause, int]
"""The clause after a word, and the position of the next word."""
Rule = Callable[[Phrases, Clause, int], Step | None]
"""Reads the word at a position; None where the rule says nothing of it."""


def function_word(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    """Read a word that steers the grammar; None where the word is none."""
    if phrases.words[at] in STEERING or phrases.token(at + 1) == "to":
        for rule in RULES:
            if (step := rule(phrases, clause, at)) is not None:
                return step
    return None


def _clause_opener(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    token = phrases.words[at]
    if (token != "," and token not in CLAUSES) or (token == "as" and clause.previous == "verb"):
        return None
    opened = clause.opened()._replace(person_acts=clause.main_person, previous="join", patients=(), joined=token == ",")
    return opened, at + 1


def _join(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    if phrases.words[at] not in JOINS:
        return None
    person_acts = clause.person_acts
    if phrases.verb(at + 1) and clause.coordinate_person is not None:
        person_acts = clause.coordinate_person
    return clause._replace(joined=True, previous="join", person_acts=person_acts), at + 1


def _negation(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    token = phrases.words[at]
    if token not in NEVER and token not in NOBODY:
        return None
    negated = phrases.token(at + 1) not in ("only", "just")
    clause = clause._replace(negated=negated, joined=False)
    if token in NOBODY:
        clause = clause.with_subject(person=True)._replace(previous="person")
    return clause, at + (1 if negated else 2)


def _no(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    if phrases.words[at] != "no" or at + 1 == len(phrases.words) or phrases.words[at + 1] == ",":
        return None
    if clause.preposition == "with":
        return clause, _after_noun(phrases, clause, at + 1)
    return clause._replace(negated=True, previous="article"), at + 1


def _without(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    if phrases.words[at] not in ("without", "instead_of"):
        return None
    if phrases.verb(at + 1):
        return clause._replace(negated_once=True, previous="join"), at + 1
    return clause, _after_noun(phrases, clause, at + 1)


def _after_noun(phrases: Phrases, clause: Clause, at: int) -> int:
    noun = phrases.noun(at, clause.antecedent)
    return noun.stop if noun else at


def _hedge(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    hedged = phrases.words[at] in HEDGES
    return (clause._replace(doubtful=True, previous="auxiliary"), at + 1) if hedged else None


def _intention(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    if phrases.token(at + 1) != "to":
        return None
    token = phrases.words[at]
    intends = token in INTENTIONS or any(lemma in INTENTIONS for lemma, _ in word(token).verbs)
    return (clause._replace(intended=True, previous="to"), at + 2) if intends else None


def _auxiliary(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    token = phrases.words[at]
    has = token in ("having", "has", "have", "had")
    if token not in AUXILIARIES or (has and _possession(phrases, clause, at + 1)):
        return None
    if clause.previous in ("object", "verb") and clause.acted:  # a new predicate: "who is not sitting is riding"
        person_acts = clause.main_person if clause.person_acts is None else clause.person_acts
        clause = clause._replace(negated=False, doubtful=False, acted=False, person_acts=person_acts)
    return clause._replace(previous="being" if token in BE else "auxiliary"), at + 1


def _possession(phrases: Phrases, clause: Clause, at: int) -> bool:
    """Whether "has" is followed by an object, not by a participle."""
    while at < len(phrases.words) and word(phrases.words[at]).modifier:
        at += 1
    if at == len(phrases.words) or any("VBN" in forms for _, forms in word(phrases.words[at]).verbs):
        return False
    return phrases.words[at] in ARTICLES or phrases.noun(at, clause.antecedent) is not None


def _infinitive(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    return (clause._replace(previous="to"), at + 1) if phrases.infinitive(at) else None


def _relative(phrases: Phrases, clause: Clause, at: int) -> Step | None:
    return (clause._replace(previous="relative"), at + 1) if phrases.words[at] in RELATIVES else None


RULES: tuple[Rule, ...] = (
    _clause_opener, _join, _negation, _no, _without, _hedge, _intention, _auxiliary, _infinitive, _relative,
)  # fmt: skip
"""Tried in this order; the first that knows the word counts."""


def belongs(phrases: Phrases, clause: Clause, noun: Noun, *, listed: bool) -> bool:
    """Whether a noun after "and" is one more of the objects before it, not the subject of a clause.

    Args:
        phrases: The sentence.
        clause: The clause before the noun.
        noun: The noun phrase.
        listed: Whether objects stand right before the "and".
    """
    if listed and clause.person_acts:
        return True
    return clause.joined and phrases.token(noun.stop) not in AUXILIARIES and noun.obj not in phrases.lexicon.animate
