"""How well scores of pairs tell which pair it is: areas under ROC curves, ties counted by halves."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def wins(scores: np.ndarray, positive: np.ndarray) -> tuple[float, int]:
    """How often a positive scores above a negative.

    Args:
        scores: float ``[E]``.
        positive: bool ``[E]``.

    Returns:
        The number of (positive, negative) in which the positive is above, a tie counting a half; and of all.
    """
    positives = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float(ranks - positives * (positives + 1) / 2), positives * (len(scores) - positives)


def area(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The area under the ROC curve; None without a positive or without a negative."""
    above, compared = wins(scores, positive)
    return above / compared if compared else None


def localisation_area(scores: np.ndarray, positive: np.ndarray, group: np.ndarray) -> tuple[float | None, int]:
    """The probability that a positive scores above a negative of its own group.

    With the pairs of one image whose object is of one class, and one verb, as a group, an answer about the whole image gets 0.5
    by construction.

    Args:
        scores: float ``[E]``.
        positive: bool ``[E]``.
        group: int ``[E]``.

    Returns:
        The area, None where no group has both; and how many comparisons it rests on.
    """
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    counted = [wins(scores[each], positive[each]) for each in np.split(order, ends) if len(each) > 1]
    above, compared = (sum(values) for values in zip(*counted, strict=True)) if counted else (0.0, 0)
    return (above / compared if compared else None), int(compared)


def calibration_error(probability: np.ndarray, positive: np.ndarray, bins: int = 10) -> float | None:
    """The expected calibration error: by bin of the probability, how far its mean is from the share of positives, averaged over
    entries.

    Args:
        probability: float ``[E]`` in [0, 1].
        positive: bool ``[E]``.
        bins: of equal width.
    """
    if not len(probability):
        return None
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(place, probability, bins) - np.bincount(place, positive, bins)
    return float(np.abs(gap).sum() / len(probability))
