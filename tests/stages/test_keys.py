"""The types of a table's keys find what a configuration names and refuse the rest; a program gives the things themselves."""

from __future__ import annotations

import pytest

from hoi_distill.pipeline.config.documents import validate
from hoi_distill.pipeline.graph.builder import construct
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Columns, Count, PairTeacherKey, StageConfig, StageContext, Views
from hoi_distill.stages.stage import Stage
from hoi_distill.storage.errors import UserError

WORDS = pico_vocabulary()
CONTEXT = StageContext(WORDS, {}, pair_teachers={"phase_1": "the network"})


class Keys(StageConfig):
    columns: Columns = ("a",)
    views: Views = ("original",)
    teacher: PairTeacherKey = None
    count: Count = 1


def read(**keys):
    return validate(Keys, keys, "here.yaml: tables.t.", CONTEXT)


def test_a_word_stands_for_sentences_of_the_vocabulary():
    assert read(columns="prompts").columns == WORDS.prompts()
    assert read(columns=["x", "verb_prompts", "x"]).columns == ("x", *WORDS.verb_prompts())
    assert Keys(columns=("prompts",)).columns == ("prompts",), "outside a configuration a column is what it says"


def test_a_pair_teacher_is_found_by_its_name():
    assert read(teacher="phase_1").teacher == "the network"
    assert Keys(teacher="another").teacher == "another"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"columns": "promts"}, "columns: expected a list, or prompts, .*did you mean prompts"),
        ({"columns": []}, "columns: expected at least one column, each once"),
        ({"columns": ["a", "a"]}, "columns: expected at least one column, each once"),
        ({"views": ["upside_down"]}, r"views\.0: expected original or flip; got 'upside_down'"),
        ({"teacher": "phase_2"}, "teacher: no pair teacher 'phase_2'; there are phase_1"),
        ({"count": 0}, "count: expected at least 1; got 0"),
        ({"cuont": 2}, "cuont: unknown key; did you mean count"),
    ],
)
def test_a_wrong_key_is_told_in_one_line(keys, said):
    with pytest.raises(UserError, match=said) as told:
        read(**keys)
    assert str(told.value).startswith("here.yaml: tables.t.")
    assert "\n" not in str(told.value)


def test_a_constructor_is_given_what_it_asks_for_by_type():
    class Words(Stage):
        class Config(Stage.Config):
            batch_size: int = 3

        def __init__(self, words: Vocabulary, keys: Config) -> None:
            self.words, self.batch_size = words, keys.batch_size

        def parameters(self):
            return {}

        def open(self, device, shared): ...

        def compute(self, batch, columns, inputs): ...

    made = construct(Words, Words.Config(), CONTEXT)
    assert (made.words, made.batch_size) == (WORDS, 3)
