"""Confidence intervals of a mean average precision: what another draw of test pictures might have given.

The N test pictures are drawn N times with replacement, pairs and detections with them; the figure is computed anew; this
is repeated. A picture drawn k times weighs k: its pairs are k positives, and its detections enter precision and recall k
times at their place in the ranking. What a detection matched does not change, since matching stays within a picture. A
class without a pair among the drawn pictures has no average precision there and is left out of that outcome's mean.

The interval is the figure plus the percentiles of (outcome - mean of the outcomes). Plain percentiles would be biased:
interpolation takes the highest precision at or beyond a recall level, so it gains from chance, and the outcomes lie
systematically above the figure (on many classes with few pairs so far that their percentiles may leave it out). That
distance is given as ``bias``; the figure itself is not corrected for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.evaluate.metrics.curves import Ranking, suffix_maximum


@dataclass(frozen=True)
class Interval:
    """Bounds in percent, the standard deviation of the outcomes, and their mean less the figure."""

    low: float
    high: float
    sd: float
    bias: float

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in vars(self).items()}


Intervals = Mapping[str, Mapping[str, Interval | None]]
"""By setting and set of classes."""


def bootstrap_intervals(
    ranking: Ranking,
    pictures: int,
    sets: Mapping[str, np.ndarray],
    grid: np.ndarray | None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    absent_counts: bool = False,
) -> dict[str, Interval | None]:
    """Intervals of the mean over each set of classes, by name.

    Args:
        pictures: N; pictures without pairs or detections are drawn too.
        sets: ``bool [C]`` by name.
        grid: recall levels ``float64 [L]`` on which precision is read, None for all-point average precision.
        seed: the same seed draws the same pictures, whatever the ranking.
        absent_counts: a class without pairs enters the mean as 0 instead of being left out (SWiG-HOI).

    Returns:
        None for a set of which no resample had a pair.
    """
    weighted, chosen = Weighted(ranking, pictures, grid), list(sets.values())

    def figures(weight: np.ndarray) -> np.ndarray:
        ap = weighted.average_precision(weight)
        return 100 * _means(np.nan_to_num(ap) if absent_counts else ap, chosen)

    figure, generator = figures(np.ones(pictures, np.int64)), np.random.default_rng(seed)
    outcomes = np.empty((resamples, len(sets)))
    for number in range(resamples):
        outcomes[number] = figures(np.bincount(generator.integers(0, pictures, pictures), minlength=pictures))
    tail = 100 * (1 - level) / 2
    intervals: dict[str, Interval | None] = {}
    for name, own, values in zip(sets, figure, outcomes.T, strict=True):
        values = values[~np.isnan(values)]
        if len(values) < 2:
            intervals[name] = None
            continue
        bias = values.mean() - own
        low, high = (np.percentile(values, [tail, 100 - tail]) - bias).clip(0, 100)
        intervals[name] = Interval(float(low), float(high), float(values.std(ddof=1)), float(bias))
    return intervals


def _means(ap: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the classes of each set that have a precision; NaN where none has."""
    there = ~np.isnan(ap)
    return np.array([ap[there & chosen].mean() if (there & chosen).any() else np.nan for chosen in sets])


class Weighted:
    """Average precision per class for any weights of the pictures; what does not depend on them is laid out once."""

    def __init__(self, ranking: Ranking, pictures: int, grid: np.ndarray | None) -> None:
        self.classes, self.grid, self.pictures = ranking.classes, grid, pictures
        found = np.flatnonzero(ranking.right)
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
        self.pair_class, self.pair_image = ranking.pair_class, ranking.pair_image

    def average_precision(self, weight: np.ndarray) -> np.ndarray:
        """``float64 [C]`` for ``int64 [N]`` weights; NaN for a class whose pairs weigh nothing."""
        positives = np.bincount(self.pair_class, weight[self.pair_image], self.classes).astype(np.int64)
        if not len(self.klass):
            return np.where(positives > 0, 0.0, np.nan)
        right = self._running(weight[self.found_image])
        everything = self._running(np.add.reduceat(weight[self.image], self.starts))
        # A true positive of weight 0 repeats the count before it at a precision no higher: it changes no maximum.
        precision = suffix_maximum(self.klass, right / np.maximum(everything, 1), self.classes)
        if self.grid is None:
            steps = np.diff(right, prepend=0)
            begins = self.first[:-1][np.diff(self.first) > 0]
            steps[begins] = right[begins]
            total = np.bincount(self.klass, precision * steps, self.classes) / np.maximum(positives, 1)
        else:
            total = self._on_grid(right, precision, positives, self.grid)
        return np.where(positives > 0, total, np.nan)

    def _running(self, values: np.ndarray) -> np.ndarray:
        """Cumulated within each class."""
        total = np.cumsum(values)
        before = np.concatenate([[0], total])[self.first[:-1]]
        return total - before[self.klass]

    def _on_grid(self, right: np.ndarray, precision: np.ndarray, positives: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Mean over recall levels; a level is reached by the smallest count n with n / positives >= level as floats."""
        all_of = np.maximum(positives, 1)[:, None]
        needed = np.ceil(grid * all_of)
        needed -= (needed - 1) / all_of >= grid
        needed += needed / all_of < grid
        span = int(right.max()) + 1
        key = self.klass * span + right
        wanted = np.arange(self.classes)[:, None] * span + np.clip(needed, 0, span).astype(np.int64)
        place = np.searchsorted(key, wanted)
        reached = (place < self.first[1:, None]) & (needed < span)
        return np.where(reached, precision[np.minimum(place, len(precision) - 1)], 0.0).sum(1) / len(grid)
