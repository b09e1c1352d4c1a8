"""Classes by their training pairs: each class is in one group, and a mean says of how many it is."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUPS, by_pairs_line, means_by_pairs, pair_groups


def rows(pairs: list[int | None], ap: list[float | None]) -> list[dict]:
    return [{"training_pairs": n, "ap": value} for n, value in zip(pairs, ap, strict=True)]


def test_every_class_is_in_one_group():
    groups = pair_groups(np.arange(60))
    assert (np.sum(list(groups.values()), axis=0) == 1).all()
    assert {name: np.flatnonzero(chosen)[[0, -1]].tolist() for name, chosen in groups.items()} == {
        "pairs_0": [0, 0],
        "pairs_1_5": [1, 5],
        "pairs_6_20": [6, 20],
        "pairs_21": [21, 59],
    }


def test_a_mean_is_of_the_groups_classes_that_have_test_pairs():
    means = means_by_pairs(rows([0, 0, 3, 5, 20, 21, 400], [10.0, 20.0, 30.0, None, 50.0, 60.0, 80.0]))
    assert means == {
        "pairs_0": {"classes": 2, "map": 15.0},
        "pairs_1_5": {"classes": 1, "map": 30.0},
        "pairs_6_20": {"classes": 1, "map": 50.0},
        "pairs_21": {"classes": 2, "map": 70.0},
    }
    assert by_pairs_line(means).startswith("0 pairs 15.00 (2 classes)  1–5 30.00 (1)")
    assert means_by_pairs(rows([0, 30], [None, 4.0]))["pairs_0"] == {"classes": 0, "map": None}


def test_classes_that_a_convention_leaves_out_enter_no_mean():
    means = means_by_pairs(rows([0, 0], [10.0, 20.0]) + rows([9], [1.0]), np.array([True, False, True]))
    assert means["pairs_0"] == {"classes": 1, "map": 10.0}


@pytest.mark.parametrize("pairs", [[None, None], [0, 0]], ids=["unknown", "none seen"])
def test_where_training_saw_no_annotation_there_are_no_groups(pairs: list[int | None]):
    assert means_by_pairs(rows(pairs, [1.0, 2.0])) == {}
    assert len(PAIR_GROUPS) == 4
