"""One sentence read for who does what to which object: a small grammar of captions.

Words become phrases (:mod:`.phrases`), phrases become verbs with their objects (:mod:`.complements`), and a clause
(:mod:`.clause`) says who acts. A verb's subject must be a person, or be left out as in a list. What is negated, only
intended or doubtful is not taken, and neither is anything for which the vocabulary has no phrase. Each is dropped with
its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from hoi_distill.stages.derived.lexicon.clause import Clause, belongs, function_word
from hoi_distill.stages.derived.lexicon.complements import Complement, Predicate, predicate, verb_group
from hoi_distill.stages.derived.lexicon.findings import NO_AGENT, NO_VERB, NOT_A_PERSON, Drop, Finding
from hoi_distill.stages.derived.lexicon.lexicon import OTHER, Lexicon
from hoi_distill.stages.derived.lexicon.matching import match_complement, match_object, match_verb_alone, triplets
from hoi_distill.stages.derived.lexicon.phrases import Noun, Phrases, Verb, WordKind
from hoi_distill.stages.derived.lexicon.words import ARTICLES, DEPICTIONS, FAKES, PARTITIVES, PREPOSITIONS, word

MOUNTED = frozenset(["ride", "straddle", "mount", "sit", "drive"])
"""After these the rider stays the subject: "riding a horse holding a rope"."""
ACTIVE_PARTICIPLES = frozenset(["seat", "perch", "sprawl", "stretch", "curl", "dress", "clothe"])
"""Their participles say what somebody does: "seated on a bench"."""

Step = tuple[Clause, int, Sequence[Finding]]
"""The clause after a phrase, the position of the next word, and what the phrase says."""


def read_sentence(words: Sequence[str], lexicon: Lexicon, antecedent: int | None) -> tuple[list[Finding], int | None]:
    """What one sentence says.

    Args:
        words: The sentence's tokens.
        lexicon: The vocabulary.
        antecedent: The object that "it" means, an index of the vocabulary; None if there is none.

    Returns:
        The findings in order of mention, and the object that "it" means after the sentence.
    """
    phrases, clause, at = Phrases(words, lexicon), Clause(antecedent), 0
    findings: list[Finding] = []
    while at < len(words):
        if (step := function_word(phrases, clause, at)) is not None:
            clause, at = step
        else:
            clause, at, found = _content_word(phrases, clause, at)
            findings += found
    return findings, clause.antecedent


def _content_word(phrases: Phrases, clause: Clause, at: int) -> Step:
    token, mention, verb = phrases.words[at], phrases.mention(at), phrases.verb(at, clause.previous)
    if verb and not (mention and mention[1] > at + 1):
        return _act(phrases, clause, at, verb)
    if mention or token in ("it", "them"):
        return _mention(phrases, clause, at)
    if token in PREPOSITIONS:
        clause = clause._replace(preposition=token, previous="preposition", patients=())
        noun = phrases.noun(at + 1, clause.antecedent)
        named = noun is not None and isinstance(noun.obj, int)
        return _mention(phrases, clause, at + 1) if named else (clause, at + 1, [])
    if token in ARTICLES:
        return clause._replace(previous="article"), at + 1, []
    return _unknown_word(phrases, clause, at), at + 1, []


def _unknown_word(phrases: Phrases, clause: Clause, at: int) -> Clause:
    token, entry = phrases.words[at], word(phrases.words[at])
    if token in FAKES | DEPICTIONS and at + 1 < len(phrases.words):
        clause = clause._replace(depicted=token in FAKES or phrases.words[at + 1] == "of")
    if entry.modifier:
        return clause
    preposition = "" if token not in PARTITIVES and entry.noun else clause.preposition
    previous: WordKind = "nouns" if entry.plural else "word"
    return clause._replace(patients=(), holder=None, previous=previous, preposition=preposition)


def _mention(phrases: Phrases, clause: Clause, at: int) -> Step:
    """A noun phrase or a pronoun."""
    noun, lexicon = phrases.noun(at, clause.antecedent), phrases.lexicon
    if phrases.words[at] == "them" and clause.preposition == "of":  # one of them
        return clause.with_subject(person=True)._replace(previous="person", preposition=""), at + 1, []
    if noun is None:  # a pronoun of which nothing is known
        return clause._replace(person_acts=False, previous="object"), at + 1, []
    if not isinstance(noun.obj, int) or noun.obj == OTHER:
        clause = clause if clause.preposition else clause.with_subject(person=False)
        return clause._replace(patients=(), previous="word", holder=None, preposition=""), noun.stop, []
    listed = clause.joined and bool(clause.patients) and clause.previous in ("join", "article")
    person = noun.obj == lexicon.person and not clause.depicted
    if person:
        clause = clause.opened() if clause.joined and not listed else clause
        clause = clause.with_subject(person=True)._replace(holder=(at, noun.stop))
    else:
        if noun.obj != lexicon.person:
            clause = clause._replace(antecedent=noun.obj)
        if clause.holder is not None and clause.preposition not in ("", "of"):
            return _relation(phrases, clause, clause.holder[0], noun.obj, noun.stop)
        subject = clause.preposition in ("", "of") and not belongs(phrases, clause, noun, listed=listed)
        if clause.depicted or subject:
            clause = clause.with_subject(person=False)
        clause = clause._replace(holder=None)
    clause = clause._replace(
        patients=(*clause.patients, noun.obj) if listed else (noun.obj,),
        previous="person" if person else "object",
        preposition="",
        joined=False,
        depicted=False,
    )
    return clause, noun.stop, []


def _relation(phrases: Phrases, clause: Clause, start: int, obj: int, stop: int) -> Step:
    """ "a man with a cup": no verb says what he does, unless it is "in his hand" or the like."""
    posture, stop = phrases.posture(stop)
    verbs = phrases.lexicon.meant((posture,) if posture else ("be", clause.preposition), obj)
    phrase = phrases.phrase(start, stop)
    found: list[Finding]
    if verbs and not clause.negated:
        found = triplets(((verb, obj) for verb in verbs), phrase)
    else:
        aligned = clause.preposition in ("on", "with", "in", "under")
        found = [Drop(phrase, clause.doubt or NO_VERB, ("be", clause.preposition) if aligned else None, obj)]
    return clause._replace(preposition="", holder=None, patients=(obj,), previous="object"), stop, found


def _act(phrases: Phrases, clause: Clause, start: int, first: Verb) -> Step:
    """A verb, those joined to it, and their objects."""
    group, at = verb_group(phrases, start, first)
    agent = _agent(phrases, clause, first, at)
    if agent is not None or _is_passive(clause, first):
        return _passive(phrases, clause, group[0], agent, start=start, at=at)
    read = predicate(phrases, start, group, at, clause.antecedent)
    found = _said(phrases, clause, start, read)
    subject = clause.person_acts
    mounted = read.preposition not in PREPOSITIONS - {"on", "in"} and bool(MOUNTED.intersection(first.lemmas))
    if read.direct in phrases.lexicon.animate and not mounted:  # who is seen next is the subject of what follows
        subject = read.direct == phrases.lexicon.person
    after = clause._replace(
        antecedent=read.antecedent,
        coordinate_person=clause.person_acts,
        person_acts=subject,
        previous="verb" if read.direct is None else "object",
        preposition="",
        holder=None,
        patients=() if read.direct is None else (read.direct,),
        negated_once=False,
        intended=False,
        joined=False,
        acted=True,
    )
    return after, read.stop, found


def _said(phrases: Phrases, clause: Clause, start: int, read: Predicate) -> list[Finding]:
    doubt, person_acts = clause.doubt, clause.person_acts
    found: list[Finding] = []
    for complement in read.complements:
        found += match_complement(phrases.lexicon, complement, doubt=doubt, person_acts=person_acts)
    if not read.complements and any(verb.known for verb in read.verbs):
        phrase = phrases.phrase(start, read.stop)
        found += match_verb_alone(phrases.lexicon, read.verbs, phrase, doubt=doubt, person_acts=person_acts)
    return found


def _agent(phrases: Phrases, clause: Clause, verb: Verb, at: int) -> Noun | None:
    """Who does what is said in the passive: the person or animal after "by", which stands within three words."""
    if not _may_be_passive(clause, verb):
        return None
    by = next((i for i in range(at, min(at + 3, len(phrases.words))) if phrases.words[i] == "by"), None)
    agent = phrases.noun(by + 1, clause.antecedent) if by is not None else None
    return agent if agent is not None and agent.obj in phrases.lexicon.animate else None


def _may_be_passive(clause: Clause, verb: Verb) -> bool:
    return bool(clause.patients) and "VBN" in verb.tags and not ACTIVE_PARTICIPLES.intersection(verb.lemmas)


def _is_passive(clause: Clause, verb: Verb) -> bool:
    """Whether a verb without an agent is passive: "is thrown"; "has thrown" is active."""
    participle = "VBD" not in verb.tags and clause.previous != "auxiliary"
    return _may_be_passive(clause, verb) and (clause.previous == "being" or participle)


def _passive(phrases: Phrases, clause: Clause, verb: Verb, agent: Noun | None, *, start: int, at: int) -> Step:
    """A verb in the passive, from word ``start`` up to ``at``. Its objects stand before it."""
    lexicon, stop = phrases.lexicon, agent.stop if agent else at
    phrase, preposition = phrases.phrase(start, stop), phrases.token(at)
    if preposition not in PREPOSITIONS - {"by"}:
        preposition = ""
    person = agent is not None and agent.obj == lexicon.person
    reason = clause.doubt or (NO_AGENT if agent is None else "" if person else NOT_A_PERSON)
    found: list[Finding] = []
    for obj in clause.patients:
        if reason:
            found.append(Drop(phrase, reason))
        elif verb.known:
            found += match_object(lexicon, Complement(verb, preposition, "", obj, phrase, first=True), obj)
    if agent is not None:
        clause = clause.opened()._replace(person_acts=person, main_person=person)
    previous: WordKind = "verb" if agent is None else "person"
    return clause._replace(patients=(), previous=previous, negated_once=False, intended=False), stop, found
