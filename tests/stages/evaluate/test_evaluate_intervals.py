"""Curves and bootstrap intervals: weights mean what they say, and the interval what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS, interpolated_precision, ranking
from hoi_distill.stages.evaluate.metrics.bootstrap import Weighted, bootstrap_intervals
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL
from hoi_distill.stages.evaluate.metrics.curves import Ranking, precision_recall
from hoi_distill.stages.evaluate.metrics.hico_det import hico_det
from tests.fixtures.small_hico import CLASSES, HOI_OBJECT, PICTURES, small_world

ALL = {"all": np.ones(CLASSES, bool)}


def small_ranking(seed: int) -> Ranking:
    found, truths = small_world(seed, ties=False)
    matched = hico_det(found, truths, HOI_OBJECT, OFFICIAL).matched
    order = ranking(found.hoi, found.score, found.image)
    return Ranking(
        order, found.hoi[order].astype(np.int64), found.image[order].astype(np.int64), found.score[order], matched[order] >= 0,
        np.asarray(truths.hoi), np.asarray(truths.image), CLASSES,
    )  # fmt: skip


def slowly(ranked: Ranking, weight: np.ndarray, grid: np.ndarray | None) -> list[float]:
    """The weighted definition, one detection at a time."""
    values = []
    for klass in range(ranked.classes):
        positives = sum(weight[image] for image in ranked.pair_image[ranked.pair_class == klass])
        points, right, seen = [], 0, 0
        for row in np.flatnonzero(ranked.klass == klass):
            seen += weight[ranked.image[row]]
            if ranked.right[row]:
                gained = weight[ranked.image[row]]
                right += gained
                points.append((right / positives if positives else 0, right / max(seen, 1), gained))
        if not positives:
            values.append(float("nan"))
        elif grid is None:
            values.append(
                sum(gained * max(p for _, p, _ in points[i:]) for i, (_, _, gained) in enumerate(points)) / positives
            )
        else:
            values.append(sum(max([p for r, p, _ in points if r >= level], default=0) for level in grid) / len(grid))
    return values


@pytest.mark.parametrize("grid", RECALL_GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_weighted_precision_is_the_definition(grid: str, seed: int):
    ranked, levels = small_ranking(seed), RECALL_GRIDS[grid]
    weighted = Weighted(ranked, PICTURES, levels)
    plain = interpolated_precision(ranked.klass, ranked.right, ranked.positives, levels)
    np.testing.assert_allclose(weighted.average_precision(np.ones(PICTURES, np.int64)), plain, rtol=1e-12)
    for weight in np.random.default_rng(seed).integers(0, 4, (20, PICTURES)):
        np.testing.assert_allclose(weighted.average_precision(weight), slowly(ranked, weight, levels), atol=1e-12)


def test_intervals_hold_the_figure_and_repeat_by_seed():
    ranked = small_ranking(1)
    plain = 100 * np.nanmean(interpolated_precision(ranked.klass, ranked.right, ranked.positives))
    first, again, other = (
        bootstrap_intervals(ranked, PICTURES, ALL, RECALL_GRIDS["official"], 200, seed)["all"] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first.low < plain < first.high


def test_a_perfect_detector_is_certain():
    ranked = small_ranking(0).without(~small_ranking(0).right)
    ranked = Ranking(
        ranked.row, ranked.klass, ranked.image, ranked.score, ranked.right, ranked.klass, ranked.image, CLASSES
    )  # every pair is found
    interval = bootstrap_intervals(ranked, PICTURES, ALL, RECALL_GRIDS["exact"], 50)["all"]
    assert (interval.low, interval.high, interval.sd) == (100.0, 100.0, 0.0)


def test_a_set_without_pairs_has_no_interval():
    ranked = small_ranking(0)
    empty = Ranking(
        ranked.row,
        ranked.klass,
        ranked.image,
        ranked.score,
        ranked.right,
        ranked.pair_class[:0],
        ranked.pair_image[:0],
        CLASSES,
    )
    assert bootstrap_intervals(empty, PICTURES, ALL, None, 20) == {"all": None}
    assert bootstrap_intervals(empty, PICTURES, ALL, None, 20, absent_counts=True)["all"].high == 0.0


def one_class(rng: np.random.Generator, pictures: int = 150) -> Ranking:
    """A picture holds one pair; 7 of 10 are found, right and wrong detections differ in score only on average."""
    right = rng.random(pictures) < 0.7
    score = rng.normal(size=pictures) + right
    order = np.argsort(-score, kind="stable")
    everyone, only = np.arange(pictures), np.zeros(pictures, int)
    return Ranking(order, only, order, score[order], right[order], only, everyone, 1)


def test_the_spread_is_that_of_fresh_pictures():
    rng, grid = np.random.default_rng(0), RECALL_GRIDS["exact"]
    worlds = [one_class(rng) for _ in range(300)]
    figures = [100 * interpolated_precision(w.klass, w.right, w.positives, grid)[0] for w in worlds]
    spreads = [bootstrap_intervals(w, 150, {"all": np.ones(1, bool)}, grid, 100)["all"].sd for w in worlds[:20]]
    assert np.mean(spreads) == pytest.approx(np.std(figures), rel=0.25)


def test_the_area_under_a_curve_is_all_point_precision():
    for seed in range(6):
        ranked = small_ranking(seed)
        areas = []
        for curve in precision_recall(ranked, most=1000):
            recall, precision = np.array([(0.0, 1.0), *curve]).T
            assert (np.diff(recall) > 0).all()
            assert (np.diff(precision[1:]) < 0).all()
            areas.append(float((np.diff(recall) * precision[1:]).sum()))
        expected = interpolated_precision(ranked.klass, ranked.right, ranked.positives, None)
        np.testing.assert_allclose(areas, np.nan_to_num(expected), atol=1e-12)


def test_long_curves_are_thinned_and_keep_their_ends():
    rng = np.random.default_rng(0)
    ranked = one_class(rng, 3000)
    (whole,), (thin,) = precision_recall(ranked, most=10_000), precision_recall(ranked, most=8)
    assert len(whole) > 8 >= len(thin)
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)


def test_known_object_rankings_are_those_of_the_evaluation():
    found, truths = small_world(3, ties=False)
    results, ranked = hico_det(found, truths, HOI_OBJECT, OFFICIAL), small_ranking(3)
    known = ranked.in_pictures(truths.image_objects[:, HOI_OBJECT])
    np.testing.assert_allclose(
        interpolated_precision(known.klass, known.right, known.positives), results.known_object.ap, rtol=1e-12
    )
