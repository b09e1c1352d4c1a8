"""Confidence intervals of a mean average precision: how far it would move with other test images.

The N test images are drawn N times with replacement, each with its pairs and detections. The mean is computed anew, and
this is repeated. An image drawn k times has weight k: each of its pairs counts as k positives, and each of its detections
enters precision and recall k times at its place in the ranking. Matches do not change, because matching stays within a
image. A class without a pair among the drawn images has no average precision there and is left out of that mean.

The interval is the metric plus the percentiles of (outcome - mean of the outcomes). Plain percentiles would be biased:
interpolation takes the highest precision at or beyond a recall level, so chance raises it, and the outcomes lie
systematically above the metric. With many classes of few pairs their percentiles may even leave the metric out. That
distance is given as ``bias``; the metric itself is not corrected for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.evaluate.metrics.curves import Ranking, suffix_maximum

LEVEL = 0.95
"""Share of the outcomes that an interval holds."""


@dataclass(frozen=True)
class Interval:
    """An interval of a metric in percent.

    Attributes:
        low: lower bound.
        high: upper bound.
        sd: standard deviation of the outcomes.
        bias: mean of the outcomes less the metric.
    """

    low: float
    high: float
    sd: float
    bias: float

    def as_json(self) -> dict[str, float]:
        """The fields, rounded to six decimals."""
        return {name: round(value, 6) for name, value in vars(self).items()}


Intervals = Mapping[str, Mapping[str, Interval | None]]
"""By setting and set of classes."""


def bootstrap_intervals(
    ranking: Ranking,
    sets: Mapping[str, np.ndarray],
    grid: np.ndarray | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    absent_counts: bool = False,
) -> dict[str, Interval | None]:
    """Intervals of the mean over each set of classes, by name.

    Args:
        ranking: the counted detections; images without pairs or detections are drawn too.
        sets: ``bool [C]`` by name.
        grid: recall levels ``float64 [L]`` on which precision is read, None for all-point average precision.
        resamples: number of draws.
        seed: the same seed draws the same images, whatever the ranking.
        absent_counts: a class without pairs enters the mean as 0 instead of being left out (SWiG-HOI).

    Returns:
        None for a set of which no resample had a pair.
    """
    metrics, outcomes = resample(ranking, sets, grid, resamples=resamples, seed=seed, absent_counts=absent_counts)
    return {
        name: _interval(metric, values[~np.isnan(values)])
        for name, metric, values in zip(sets, metrics, outcomes.T, strict=True)
    }


def resample(
    ranking: Ranking,
    sets: Mapping[str, np.ndarray],
    grid: np.ndarray | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    absent_counts: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over each set of classes, for the images as they are and for each draw of them.

    The draws depend on ``seed`` and the number of images alone. So the outcomes of two rankings of the same images are
    paired.

    Args:
        ranking: as in :func:`bootstrap_intervals`, as are the other arguments.
        sets: ``bool [C]`` by name.
        grid: recall levels.
        resamples: number of draws, R.
        seed: draws the images.
        absent_counts: a class without pairs counts as 0.

    Returns:
        ``float64 [S]`` metrics and ``float64 [R, S]`` outcomes, in percent; NaN where no class of a set has a pair.
    """
    weighted, chosen = WeightedPrecision(ranking, grid), list(sets.values())

    def means(weight: np.ndarray) -> np.ndarray:
        ap = weighted.average_precision(weight)
        return 100 * _means(np.nan_to_num(ap) if absent_counts else ap, chosen)

    images = ranking.images
    metrics, generator = means(np.ones(images, np.int64)), np.random.default_rng(seed)
    outcomes = np.empty((resamples, len(sets)))
    for number in range(resamples):
        outcomes[number] = means(np.bincount(generator.integers(0, images, images), minlength=images))
    return metrics, outcomes


def _interval(metric: float, outcomes: np.ndarray) -> Interval | None:
    if len(outcomes) < 2:
        return None
    tail = 100 * (1 - LEVEL) / 2
    bias = outcomes.mean() - metric
    low, high = (np.percentile(outcomes, [tail, 100 - tail]) - bias).clip(0, 100)
    return Interval(float(low), float(high), float(outcomes.std(ddof=1)), float(bias))


def _means(ap: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the classes of each set that have an average precision; NaN where none has."""
    known = ~np.isnan(ap)
    return np.array([ap[known & chosen].mean() if (known & chosen).any() else np.nan for chosen in sets])


class WeightedPrecision:
    """Average precision per class for any weights of the images. What does not depend on the weights is made once.

    Args:
        ranking: the counted detections.
        grid: recall levels ``float64 [L]``, None for all points.
    """

    def __init__(self, ranking: Ranking, grid: np.ndarray | None) -> None:
        self.classes, self.grid = ranking.classes, grid
        found = np.flatnonzero(ranking.is_tp)
        self.klass = ranking.klass[found]
        self.first = np.searchsorted(self.klass, np.arange(self.classes + 1))
        # Precision is read at true positives, so each needs the weight of what lies between it and the one before;
        # what comes after a class's last true positive is never read.
        begins = np.searchsorted(ranking.klass, self.klass)
        previous = np.concatenate([[-1], found[:-1]])
        segment = np.maximum(previous + 1, begins)
        lengths = found + 1 - segment
        self.starts = np.cumsum(lengths) - lengths
        inside = np.arange(int(lengths.sum())) + np.repeat(segment - self.starts, lengths)
        self.image = ranking.image[inside]
        self.found_image = ranking.image[found]
        self.gt_class, self.gt_image = ranking.gt_class, ranking.gt_image

    def average_precision(self, weight: np.ndarray) -> np.ndarray:
        """Average precision of each class, ``float64 [C]``; NaN for a class whose pairs have no weight.

        Args:
            weight: ``int64 [N]`` of the images.
        """
        positives = np.bincount(self.gt_class, weight[self.gt_image], self.classes).astype(np.int64)
        if not len(self.klass):
            return np.where(positives > 0, 0.0, np.nan)
        found = self._running(weight[self.found_image])
        everything = self._running(np.add.reduceat(weight[self.image], self.starts))
        # A true positive of weight 0 repeats the count before it at a precision no higher: it changes no maximum.
        precision = suffix_maximum(self.klass, found / np.maximum(everything, 1), self.classes)
        if self.grid is None:
            steps = np.diff(found, prepend=0)
            begins = self.first[:-1][np.diff(self.first) > 0]
            steps[begins] = found[begins]
            total = np.bincount(self.klass, precision * steps, self.classes) / np.maximum(positives, 1)
        else:
            total = self._on_grid(found, precision, positives, self.grid)
        return np.where(positives > 0, total, np.nan)

    def _running(self, values: np.ndarray) -> np.ndarray:
        """Cumulative sums within each class."""
        total = np.cumsum(values)
        before = np.concatenate([[0], total])[self.first[:-1]]
        return total - before[self.klass]

    def _on_grid(self, found: np.ndarray, precision: np.ndarray, positives: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """The mean over recall levels. The smallest count n with n / positives >= level, as floats, reaches a level."""
        total = np.maximum(positives, 1)[:, None]
        needed = np.ceil(grid * total)
        needed -= (needed - 1) / total >= grid
        needed += needed / total < grid
        span = int(found.max()) + 1
        key = self.klass * span + found
        wanted = np.arange(self.classes)[:, None] * span + np.clip(needed, 0, span).astype(np.int64)
        place = np.searchsorted(key, wanted)
        reached = (place < self.first[1:, None]) & (needed < span)
        return np.where(reached, precision[np.minimum(place, len(precision) - 1)], 0.0).sum(1) / len(grid)
