"""Which interactions of the vocabulary a verb and its object mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hoi_distill.stages.derived.lexicon.complements import Complement
from hoi_distill.stages.derived.lexicon.findings import (
    NO_OBJECT,
    NOT_A_PERSON,
    UNKNOWN_OBJECT,
    UNKNOWN_PAIR,
    UNKNOWN_VERB,
    Drop,
    Finding,
    Triplet,
)
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon, phrase_key
from hoi_distill.stages.derived.lexicon.phrases import Verb
from hoi_distill.stages.derived.lexicon.words import PARTICLES

GRASPING = frozenset(["hold", "grab", "hang", "grip", "pull", "tug", "cling"])
"""After these, "on" adds nothing to their object ("holds on to a cup"). After it, "on" says where ("a cup on a chair")."""
ALIGNED_PREPOSITIONS = frozenset(["", "on", "with", "in", "from", "under", "at", "up", "into"])
"""An aligner may place these. Other prepositions only say where somebody is."""


def match_complement(
    lexicon: Lexicon, complement: Complement, *, doubt: str, person_acts: bool | None
) -> Sequence[Finding]:
    """What one complement of a verb says. Only the first complement of a verb is worth a drop.

    Args:
        lexicon: The vocabulary.
        complement: The verb with one object.
        doubt: Why nothing of the clause is taken, "" if there is no such reason.
        person_acts: Whether the subject is a person; None if no subject is named.
    """
    verb, obj, first = complement.verb, complement.obj, complement.first
    if person_acts is False:
        dropped = first and verb.known and (doubt or isinstance(obj, int))
        return [Drop(complement.phrase, doubt or NOT_A_PERSON)] if dropped else []
    if doubt:
        return [Drop(complement.phrase, doubt)] if first and (verb.known or isinstance(obj, int)) else []
    if isinstance(obj, int):
        return match_object(lexicon, complement, obj)
    return match_unknown_noun(lexicon, complement, obj)


def match_object(lexicon: Lexicon, complement: Complement, obj: int) -> Sequence[Finding]:
    """What a verb means with an object of the vocabulary."""
    verb, preposition = complement.verb, complement.preposition
    if not complement.first and preposition == "on" and GRASPING.intersection(verb.lemmas):
        return []
    for key in _phrase_tails(complement):
        verbs = [found for lemma in verb.lemmas for found in lexicon.meant(phrase_key((lemma, *key)), obj)]
        if verbs:
            return triplets(((verb, obj) for verb in verbs), complement.phrase)
    if not complement.first:
        return []
    aligned = preposition in ALIGNED_PREPOSITIONS and verb.lemmas[0] != "be"
    doing = (verb.lemmas[0], preposition or verb.particle) if aligned else None
    return [Drop(complement.phrase, UNKNOWN_PAIR if verb.known else UNKNOWN_VERB, doing, obj)]


def _phrase_tails(complement: Complement) -> Iterator[tuple[str, ...]]:
    """The words after the verb in phrases of the vocabulary, the most exact first."""
    verb, preposition = complement.verb, complement.preposition
    for tail in ([preposition] if preposition else []), []:
        if tail or not preposition or preposition in PARTICLES:
            if complement.noun:
                yield (*complement.noun.split(" "), *tail)
            if verb.particle:
                yield (verb.particle, *tail)
            yield tuple(tail)


def match_unknown_noun(lexicon: Lexicon, complement: Complement, noun: str) -> Sequence[Finding]:
    """What a verb means with a noun that names no object: "ride a wave" implies a surfboard."""
    verb, preposition = complement.verb, complement.preposition
    pairs = [pair for lemma in verb.lemmas for pair in lexicon.implied((lemma, noun))]
    if not pairs and (preposition or verb.particle):
        pairs = [pair for lemma in verb.lemmas for pair in lexicon.implied((lemma,))]
    if pairs:
        return triplets(pairs, complement.phrase)
    if not (complement.first and verb.known):
        return []
    aligned = preposition in ALIGNED_PREPOSITIONS and noun not in ("it", "them")
    doing = (verb.lemmas[0], preposition) if aligned else None
    return [Drop(complement.phrase, UNKNOWN_OBJECT, doing, noun)]


def match_verb_alone(
    lexicon: Lexicon, verbs: Sequence[Verb], phrase: str, *, doubt: str, person_acts: bool | None
) -> Sequence[Finding]:
    """What verbs mean without an object: "surfing". Arguments as in :func:`match_complement`."""
    for verb in verbs:
        for lemma in verb.lemmas:
            if pairs := lexicon.implied((lemma,)):
                reason = doubt or (NOT_A_PERSON if person_acts is False else "")
                return [Drop(phrase, reason)] * len(pairs) if reason else triplets(pairs, phrase)
    return [Drop(phrase, doubt or NO_OBJECT)]


def triplets(pairs: Iterable[tuple[int, int]], phrase: str) -> list[Finding]:
    """One triplet for each (verb, object)."""
    return [Triplet(verb, obj, phrase) for verb, obj in pairs]
