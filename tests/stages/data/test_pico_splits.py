"""Zero-shot splits of the pico world, and finding a vocabulary's split by name."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.splits import PICO_SPLITS, class_frequency, pico_zero_shot
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.sampling.splits import ZERO_SHOT_SPLITS, zero_shot
from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency, swig_vocabulary
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.data.zero_shot import split_of, splits_of
from hoi_distill.storage.errors import UserError


def names(split: str, part: int) -> tuple[set[str], set[str]]:
    """Verbs (0) or objects (1) of the unseen classes, and of the seen ones that are interactions."""
    unseen = pico_zero_shot(split).unseen
    seen = [hoi for hoi, hidden in zip(HOIS, unseen, strict=True) if not hidden and hoi[0] != NO_INTERACTION]
    return {HOIS[hoi][part] for hoi in np.flatnonzero(unseen)}, {hoi[part] for hoi in seen}


@pytest.mark.parametrize("split", ["RF-UC", "NF-UC"])
def test_unseen_compositions_are_of_seen_verbs_and_seen_objects(split):
    unseen = pico_zero_shot(split).unseen
    assert unseen.sum() == 12  # a fifth of 58, as 120 of HICO-DET's 600
    for part in (0, 1):
        hidden, seen = names(split, part)
        assert hidden <= seen
    assert NO_INTERACTION not in names(split, 0)[0]


def test_the_one_hides_rare_compositions_and_the_other_frequent_ones():
    frequency, rare, frequent = class_frequency(), pico_zero_shot("RF-UC").unseen, pico_zero_shot("NF-UC").unseen
    assert np.median(frequency[rare]) < np.median(frequency[frequency > 0]) < np.median(frequency[frequent])
    assert not (rare & frequent).any()
    assert all((value > 0) == (verb != NO_INTERACTION) for value, (verb, _) in zip(frequency, HOIS, strict=True))


@pytest.mark.parametrize(
    ("split", "part", "hidden"), [("UO", 1, {"dog", "skateboard"}), ("UV", 0, {"dribble", "feed", "ride"})]
)
def test_whole_objects_and_whole_verbs_are_those_of_hico_dets_lists(split, part, hidden):
    assert names(split, part)[0] == hidden
    assert np.array_equal(pico_zero_shot(split).unseen, [hoi[part] in hidden for hoi in HOIS])


def test_a_split_is_found_by_vocabulary_and_name():
    assert split_of(hico_vocabulary(), "rf-uc") is zero_shot("RF-UC")
    assert split_of(pico_vocabulary(), "rf-uc") is pico_zero_shot("RF-UC")
    assert tuple(splits_of(hico_vocabulary())) == ZERO_SHOT_SPLITS
    assert tuple(splits_of(pico_vocabulary())) == PICO_SPLITS
    for make in splits_of(pico_vocabulary()).values():
        with pytest.raises(ValueError, match="read-only"):
            make().unseen[0] = True


def test_swig_hois_unseen_classes_are_the_evaluated_ones_without_training_annotations():
    unseen = split_of(swig_vocabulary(), "swig").unseen
    assert (unseen.shape, unseen.sum()) == ((14_130,), 1_391)
    assert swig_evaluated()[unseen].all()
    assert not swig_frequency()[unseen].any()


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        (pico_vocabulary, "no zero-shot split 'UC0'; there are RF-UC, NF-UC, UO, UV"),
        (v_coco_vocabulary, "no zero-shot split 'UC0'; this vocabulary has none"),
    ],
)
def test_an_unknown_split_is_named_with_those_that_exist(vocabulary, said):
    with pytest.raises(UserError) as refusal:
        split_of(vocabulary(), "UC0")
    assert str(refusal.value) == said
