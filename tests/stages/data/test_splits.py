"""Training counts, the rare set and the zero-shot splits: the published facts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.sampling.splits import ZERO_SHOT_SPLITS, hico_rare, hico_training_pairs, means, zero_shot
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.storage.errors import UserError

SIZES = {"RF-UC": 120, "NF-UC": 120, "UO": 100, "UV": 84} | {f"UC{fold}": 120 for fold in range(5)}
RARE = {"RF-UC": 120, "NF-UC": 0, "UO": 20, "UV": 18, "UC0": 25, "UC1": 36, "UC2": 28, "UC3": 28, "UC4": 37}
HOIS = hico_vocabulary().hois


def test_training_pairs_add_up_to_the_published_number():
    assert hico_training_pairs().shape == (600,)
    assert hico_training_pairs().sum() == 117_871
    assert hico_training_pairs().min() == 1
    assert hico_training_pairs()[[0, 599]].tolist() == [176, 2]


def test_138_interactions_are_rare():
    assert hico_rare().sum() == 138
    assert np.flatnonzero(hico_rare())[:8].tolist() == [8, 22, 27, 44, 50, 55, 62, 63]


@pytest.mark.parametrize("name", ZERO_SHOT_SPLITS)
def test_splits_have_their_sizes_and_rare_classes(name):
    unseen = zero_shot(name).unseen
    assert (unseen.shape, unseen.dtype) == ((600,), bool)
    assert unseen.sum() == SIZES[name]
    assert (unseen & hico_rare()).sum() == RARE[name]


@pytest.mark.parametrize(("name", "column", "entirely"), [("UO", 1, 12), ("UV", 0, 20)])
def test_unseen_objects_and_verbs_are_unseen_in_every_interaction(name, column, entirely):
    unseen = zero_shot(name).unseen
    classes = HOIS[unseen, column]
    assert len(set(classes.tolist())) == entirely
    assert np.array_equal(np.isin(HOIS[:, column], classes), unseen)


@pytest.mark.parametrize(
    ("name", "verbs"), [("RF-UC", 0), ("NF-UC", 0), ("UO", 5), ("UC0", 9), ("UC1", 10), ("UC3", 9)]
)
def test_as_many_verbs_as_published_are_seen_in_no_interaction(name, verbs):
    unseen = zero_shot(name).unseen
    assert len(set(HOIS[:, 0].tolist()) - set(HOIS[~unseen, 0].tolist())) == verbs
    objects = len(set(HOIS[:, 1].tolist()) - set(HOIS[~unseen, 1].tolist()))
    assert objects == (12 if name == "UO" else 0)


def test_the_random_folds_overlap_and_cover_381():
    folds = np.stack([zero_shot(f"UC{fold}").unseen for fold in range(5)])
    assert folds.any(axis=0).sum() == 381


def test_a_name_may_be_in_any_case_and_an_unknown_one_is_told_the_others():
    assert zero_shot("rf-uc").name == "RF-UC"
    with pytest.raises(UserError, match=r"'RF'; there are RF-UC, NF-UC, UO, UV, UC0, UC1, UC2, UC3, UC4"):
        zero_shot("RF")


@pytest.mark.parametrize("name", ZERO_SHOT_SPLITS)
def test_seen_and_unseen_weighted_by_size_are_full(name):
    split = zero_shot(name)
    ap = np.random.default_rng(0).random(600)
    result = means(ap, split)
    share = split.unseen.mean()
    assert result["full"] == pytest.approx(share * result["unseen"] + (1 - share) * result["seen"], abs=1e-12)
    assert result["unseen"] == pytest.approx(ap[split.unseen].mean(), abs=1e-12)


def test_classes_without_pairs_count_in_no_mean():
    split = zero_shot("UV")
    ap = np.where(split.unseen, 0.25, 0.5)
    ap[[np.flatnonzero(split.unseen)[0], np.flatnonzero(~split.unseen)[0]]] = np.nan
    assert means(ap, split) == pytest.approx({"unseen": 0.25, "seen": 0.5, "full": (83 * 0.25 + 515 * 0.5) / 598})
    none = means(np.full(600, np.nan), split)
    assert all(np.isnan(value) for value in none.values())


def test_values_of_other_classes_are_refused():
    with pytest.raises(UserError, match="600 interactions; here are values of shape"):
        means(np.zeros(58), zero_shot("UO"))


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_shipped_facts_are_the_published_lists():
    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data")
    published = json.loads((root / "zero_shot_splits.json").read_text())
    assert set(published["splits"]) == set(ZERO_SHOT_SPLITS)
    for name, split in published["splits"].items():
        assert np.flatnonzero(zero_shot(name).unseen).tolist() == sorted(split["unseen_hoi"])
    assert np.flatnonzero(hico_rare()).tolist() == published["rare_hoi_lt10_train"]
    idle = np.flatnonzero(HOIS[:, 0] == hico_vocabulary().verbs.index("no_interaction"))
    assert idle.tolist() == published["no_interaction_hoi"]
    counts = json.loads((root / "hico_det/hoi_id_to_num.json").read_text())
    assert [counts[f"{hoi:03d}"]["num"] for hoi in range(1, 601)] == hico_training_pairs().tolist()
    assert [counts[f"{hoi:03d}"]["rare"] for hoi in range(1, 601)] == hico_rare().tolist()
