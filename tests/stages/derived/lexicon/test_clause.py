"""What a clause remembers from word to word, and what a verb is done to."""

from __future__ import annotations

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.derived.lexicon.clause import Clause, function_word
from hoi_distill.stages.derived.lexicon.complements import predicate, verb_group
from hoi_distill.stages.derived.lexicon.findings import DOUBTFUL, NEGATED, NO_OBJECT, Drop, Reading, Triplet
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon
from hoi_distill.stages.derived.lexicon.phrases import Phrases

HICO = hico_vocabulary()
LEXICON = Lexicon(HICO.verbs, HICO.objects, [(int(verb), int(obj)) for verb, obj in HICO.hois])


def phrases(text: str) -> Phrases:
    return Phrases(text.split(), LEXICON)


def test_a_steering_word_gives_a_new_clause_and_leaves_the_old_one():
    clause = Clause()
    after, at = function_word(phrases("may be riding"), clause, 0)
    assert at == 1
    assert (after.doubt, clause.doubt) == (DOUBTFUL, "")
    assert function_word(phrases("bicycle"), clause, 0) is None


def test_negation_is_told_before_doubt_and_ends_with_the_clause():
    clause = Clause(negated=True, doubtful=True, preposition="on")
    assert clause.doubt == NEGATED
    assert clause.opened() == Clause()


def test_a_noun_after_a_preposition_is_not_the_sentences_subject():
    clause = Clause(main_person=True, coordinate_person=True, preposition="on").with_subject(person=False)
    assert (clause.person_acts, clause.main_person, clause.coordinate_person) == (False, True, None)


def test_joined_verbs_share_their_objects():
    words = phrases("holding and riding a bicycle while")
    group, at = verb_group(words, 0, words.verb(0, "start"))
    assert [verb.lemmas for verb in group] == [("hold",), ("ride",)]
    read = predicate(words, 0, group, at, antecedent=None)
    bicycle = HICO.objects.index("bicycle")
    assert [(found.verb.lemmas[0], found.obj, found.first) for found in read.complements] == [
        ("hold", bicycle, True),
        ("ride", bicycle, True),
    ]
    assert (read.direct, read.antecedent, read.stop) == (bicycle, bicycle, 5)


def test_a_reading_keeps_the_first_phrase_of_a_triplet_and_every_drop():
    reading, drop = Reading(), Drop("riding", NO_OBJECT)
    reading.add([Triplet(1, 2, "first"), drop, Triplet(1, 2, "second"), drop])
    assert reading == Reading({(1, 2): "first"}, [drop, drop])
