"""Curves and bootstrap intervals: weights mean what they say, and the interval what it promises."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS, interpolated_precision, ranking
from hoi_distill.stages.evaluate.metrics.bootstrap import WeightedPrecision, bootstrap_intervals
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL
from hoi_distill.stages.evaluate.metrics.curves import Ranking, precision_recall
from hoi_distill.stages.evaluate.metrics.hico_det import hico_det
from tests.fixtures.small_hico import CLASSES, HOI_OBJECT, IMAGES, small_world

ALL = {"all": np.ones(CLASSES, bool)}


def small_ranking(seed: int) -> Ranking:
    found, gt = small_world(seed, ties=False)
    matched = hico_det(found, gt, HOI_OBJECT, OFFICIAL).matched
    order = ranking(found.hoi, found.score, found.image)
    return Ranking(
        row=order,
        klass=found.hoi[order].astype(np.int64),
        image=found.image[order].astype(np.int64),
        score=found.score[order],
        is_tp=matched[order] >= 0,
        gt_class=np.asarray(gt.hoi),
        gt_image=np.asarray(gt.image),
        classes=CLASSES,
        images=IMAGES,
    )


def slowly(ranked: Ranking, weight: np.ndarray, grid: np.ndarray | None) -> list[float]:
    """The weighted definition, one detection at a time."""
    values = []
    for klass in range(ranked.classes):
        positives = sum(weight[image] for image in ranked.gt_image[ranked.gt_class == klass])
        points, tp, seen = [], 0, 0
        for row in np.flatnonzero(ranked.klass == klass):
            seen += weight[ranked.image[row]]
            if ranked.is_tp[row]:
                gained = weight[ranked.image[row]]
                tp += gained
                points.append((tp / positives if positives else 0, tp / max(seen, 1), gained))
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
    weighted = WeightedPrecision(ranked, levels)
    plain = interpolated_precision(ranked.klass, ranked.is_tp, ranked.positives, levels)
    np.testing.assert_allclose(weighted.average_precision(np.ones(IMAGES, np.int64)), plain, rtol=1e-12)
    for weight in np.random.default_rng(seed).integers(0, 4, (20, IMAGES)):
        np.testing.assert_allclose(weighted.average_precision(weight), slowly(ranked, weight, levels), atol=1e-12)


def test_intervals_hold_the_figure_and_repeat_by_seed():
    ranked = small_ranking(1)
    plain = 100 * np.nanmean(interpolated_precision(ranked.klass, ranked.is_tp, ranked.positives))
    first, again, other = (
        bootstrap_intervals(ranked, ALL, RECALL_GRIDS["official"], resamples=200, seed=seed)["all"]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first.low < plain < first.high


def test_a_perfect_detector_is_certain():
    ranked = small_ranking(0).select(small_ranking(0).is_tp)
    ranked = replace(ranked, gt_class=ranked.klass, gt_image=ranked.image)  # every pair is found
    interval = bootstrap_intervals(ranked, ALL, RECALL_GRIDS["exact"], resamples=50)["all"]
    assert (interval.low, interval.high, interval.sd) == (100.0, 100.0, 0.0)


def test_a_set_without_pairs_has_no_interval():
    ranked = small_ranking(0)
    empty = replace(ranked, gt_class=ranked.gt_class[:0], gt_image=ranked.gt_image[:0])
    assert bootstrap_intervals(empty, ALL, None, resamples=20) == {"all": None}
    assert bootstrap_intervals(empty, ALL, None, resamples=20, absent_counts=True)["all"].high == 0.0


def one_class(rng: np.random.Generator, images: int = 150) -> Ranking:
    """An image holds one pair. 7 of 10 are found; true and false positives differ in score only on average."""
    is_tp = rng.random(images) < 0.7
    score = rng.normal(size=images) + is_tp
    order = np.argsort(-score, kind="stable")
    everyone, only = np.arange(images), np.zeros(images, int)
    return Ranking(
        row=order,
        klass=only,
        image=order,
        score=score[order],
        is_tp=is_tp[order],
        gt_class=only,
        gt_image=everyone,
        classes=1,
        images=images,
    )


def test_the_spread_is_that_of_fresh_images():
    rng, grid = np.random.default_rng(0), RECALL_GRIDS["exact"]
    worlds = [one_class(rng) for _ in range(300)]
    figures = [100 * interpolated_precision(w.klass, w.is_tp, w.positives, grid)[0] for w in worlds]
    spreads = [bootstrap_intervals(w, {"all": np.ones(1, bool)}, grid, resamples=100)["all"].sd for w in worlds[:20]]
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
        expected = interpolated_precision(ranked.klass, ranked.is_tp, ranked.positives, None)
        np.testing.assert_allclose(areas, np.nan_to_num(expected), atol=1e-12)


def test_long_curves_are_thinned_and_keep_their_ends():
    rng = np.random.default_rng(0)
    ranked = one_class(rng, 3000)
    (whole,), (thin,) = precision_recall(ranked, most=10_000), precision_recall(ranked, most=8)
    assert len(whole) > 8 >= len(thin)
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)


def test_known_object_rankings_are_those_of_the_evaluation():
    found, gt = small_world(3, ties=False)
    results, ranked = hico_det(found, gt, HOI_OBJECT, OFFICIAL), small_ranking(3)
    shown = gt.image_objects[:, HOI_OBJECT]
    known = ranked.select(shown[ranked.image, ranked.klass], shown[ranked.gt_image, ranked.gt_class])
    for field in fields(Ranking):
        ours, theirs = (getattr(one, field.name) for one in (known, results.known_object_ranking))
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(getattr(ranked, field.name), getattr(results.ranking, field.name))
    np.testing.assert_allclose(
        interpolated_precision(known.klass, known.is_tp, known.positives), results.known_object.ap, rtol=1e-12
    )
