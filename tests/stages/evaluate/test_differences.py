"""Differences: paired by image, as wide as the seeds' spread asks, and honest about how often chance alone differs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.differences import difference
from hoi_distill.stages.evaluate.metrics.outcomes import RESAMPLES, Outcomes, draw_outcomes, read_outcomes
from hoi_distill.storage.errors import UserError

ALL = {"all": np.ones(1, bool)}
GRID = RECALL_GRIDS["exact"]


def ranking_of(score: np.ndarray, is_tp: np.ndarray) -> Ranking:
    """An image holds one pair and one detection."""
    order = np.argsort(-score, kind="stable")
    everyone, only = np.arange(len(score)), np.zeros(len(score), int)
    return Ranking(order, only, order, score[order], is_tp[order], only, everyone, 1, len(score))


def student(seed: int, noise: float, images: int = 200, better: float = 0.0) -> Outcomes:
    """A student of one set of images: how hard an image is belongs to the image, the noise to the student."""
    hard = np.random.default_rng(99).normal(size=images)
    own = np.random.default_rng(seed).normal(size=images) * noise
    score = np.random.default_rng(98).normal(size=images) + hard
    return draw_outcomes(ranking_of(score, hard + own + better > 0), ALL, GRID, "test")


def test_stored_outcomes_are_the_drawn_ones_to_an_eighth_of_their_spread():
    made = student(0, 0.5)
    text = json.dumps(made.as_json())
    again = read_outcomes(json.loads(text), "x.json")
    assert again.metrics["all"] == pytest.approx(made.metrics["all"], abs=1e-5)
    apart = np.abs(again.draws["all"] - made.draws["all"])
    assert apart.max() <= made.draws["all"].std() / 16 + 1e-6
    assert len(text) < 2000, "a record is kept in a repository"


def test_a_draw_without_pairs_stays_one():
    made = student(0, 0.5)
    drawn = made.draws["all"].copy()
    drawn[3] = np.nan
    again = read_outcomes(replace(made, draws={"all": drawn}).as_json(), "x.json")
    assert np.flatnonzero(np.isnan(again.draws["all"])).tolist() == [3]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("codes", "?" * 40, "damaged"), ("codes", 7, "damaged"), ("seed", 3, "other draws"), ("draws", 10, "other draws")],
)
def test_outcomes_that_cannot_be_paired_are_refused(key: str, value: object, said: str):
    with pytest.raises(UserError, match=rf"^x\.json: .*{said}.*remove the file"):
        read_outcomes({**student(0, 0.5).as_json(), key: value}, "x.json")


def test_a_student_does_not_differ_from_itself():
    found = difference([student(0, 0.5)], [student(0, 0.5)], "all")
    assert (found.value, found.low, found.high, found.differs) == (0, 0, 0, False)


def test_what_makes_an_image_hard_for_both_cancels():
    ours, theirs = student(0, 0.1), student(1, 0.1)
    paired = difference([ours], [theirs], "all")
    shuffled = replace(theirs, draws={"all": np.random.default_rng(0).permutation(theirs.draws["all"])})
    unpaired = difference([ours], [shuffled], "all")
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_a_better_student_differs_and_the_interval_holds_the_difference():
    ours, theirs = student(0, 0.2, better=0.5), student(0, 0.2)
    found = difference([ours], [theirs], "all")
    assert found.differs
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(ours.metrics["all"] - theirs.metrics["all"])
    assert str(found).endswith("differs")


def with_metric(made: Outcomes, shift: float) -> Outcomes:
    return replace(made, metrics={"all": made.metrics["all"] + shift}, draws={"all": made.draws["all"] + shift})


def test_trainings_that_disagree_make_the_interval_wide():
    base, better = student(0, 0.2), student(0, 0.2, better=0.5)
    alike = [with_metric(better, shift) for shift in (-0.1, 0.0, 0.1)]
    apart = [with_metric(better, shift) for shift in (-20.0, 0.0, 20.0)]
    steady = [with_metric(base, shift) for shift in (-0.1, 0.0, 0.1)]
    assert difference(alike, steady, "all").differs
    assert not difference(apart, steady, "all").differs
    assert difference(alike, steady, "all").trainings == (3, 3)


def test_two_seeds_say_less_than_their_spread_looks_like():
    base = with_metric(student(0, 0.2), 0.0)
    never = replace(base, draws={"all": np.full(RESAMPLES, base.metrics["all"])})
    sides = [[with_metric(never, shift + gap) for shift in (-0.5, 0.5)] for gap in (1.0, 0.0)]
    found = difference(*sides, "all")
    # Welch: se = sqrt(2 * 0.5 / 2), two degrees of freedom, so t = 4.303 and not 1.96.
    assert found.high - found.value == pytest.approx(4.3027 * np.sqrt(0.5), rel=1e-3)


def test_equal_arms_rarely_differ_by_chance():
    """Arms of three trainings each, whose seeds and images are all that tells them apart."""
    rng, differing = np.random.default_rng(5), 0
    for _ in range(400):
        drawn = rng.normal(size=RESAMPLES)
        image = rng.normal(size=2)  # what these test images happen to say of each arm
        sides = []
        for side in range(2):
            metrics = 80 + image[side] + rng.normal(size=3)
            own = rng.normal(size=RESAMPLES) if side else drawn
            sides.append([Outcomes("t", 1000, {"all": "c"}, {"all": m}, {"all": m + own}) for m in metrics])
        differing += difference(*sides, "all").differs
    assert 2 <= differing <= 36, "about one in twenty of 400"


def test_other_images_or_classes_are_not_compared():
    ours, theirs = student(0, 0.2), student(1, 0.2)
    assert difference([ours], [replace(theirs, test="other")], "all") is None
    assert difference([ours], [replace(theirs, classes={"all": "other"})], "all") is None
    assert difference([ours], [], "all") is None
    assert difference([ours], [theirs], "rare") is None
