"""Calibration: from cached image-text matching scores to the probability that an image shows an interaction.

The teacher scores whole images. Its answer for (image I, class c) is the match log-odds ``m = z1 - z0``; Platt
scaling ``t = sigmoid(a * m + b)``, fitted on the labelled images' image-level labels, makes it a probability. How t
reaches the pairs is :func:`hoi_distill.stages.student.pairs.supervision.soft_labels.image_terms`.

Of a teacher that is asked about single pairs, m is the log-odds of yes, and each verb v has an offset:
``t = sigmoid(a m + b + d_v)``, fitted on the pairs of labelled images with a normal prior of variance 1 on each ``d_v``. A verb
with few pairs stays near the others; an unseen one has ``d_v = 0``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit


@dataclass(frozen=True)
class Platt:
    """``t = sigmoid(slope * m + bias)``.

    Attributes:
        slope: factor of the log-odds m.
        bias: what is added to it.
        entries: how many entries it was fitted on.
        positives: how many of these are of an image that shows the class.
    """

    slope: float
    bias: float
    entries: int
    positives: int

    def __call__(self, log_odds: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The probability t of float log-odds of any shape."""
        return expit(self.slope * log_odds.astype(np.float64) + self.bias).astype(np.float32)

    def base_rate_at(self) -> float:
        """The log-odds m whose probability is the share of positives among the entries."""
        return (np.log(self.positives / (self.entries - self.positives)) - self.bias) / self.slope

    @property
    def fitted(self) -> bool:
        """Whether there were present and absent interactions to fit it on."""
        return 0 < self.positives < self.entries

    def record(self) -> dict[str, float]:
        """The fields by name, for JSON."""
        return asdict(self)


UNCALIBRATED = Platt(1.0, 0.0, 0, 0)
"""The teacher's own probability of a match."""


def match_log_odds(itm: np.ndarray) -> npt.NDArray[np.float32]:
    """float16 ``[..., 2]`` raw ITM logits (z0 no match, z1 match) to float32 ``[...]`` log-odds of a match."""
    return itm[..., 1].astype(np.float32) - itm[..., 0].astype(np.float32)


def fit_platt(log_odds: np.ndarray, present: np.ndarray) -> Platt:
    """Platt scaling by maximum likelihood, with Platt's smoothed targets so that separable scores stay finite.

    Args:
        log_odds: float ``[E]`` match log-odds.
        present: bool ``[E]``, whether the image shows the class.

    Raises:
        ValueError: without both kinds of entries there is nothing to calibrate on.
    """
    m, positives = log_odds.astype(np.float64), int(present.sum())
    negatives = len(m) - positives
    if not positives or not negatives:
        raise ValueError(f"calibration needs present and absent interactions, got {positives} and {negatives}")
    target = np.where(present, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale = max(float(m.std()), 1e-6)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        x = parameters[0] * m / scale + parameters[1]
        residual = expit(x) - target
        value = (np.logaddexp(0, x) - target * x).mean()
        return float(value), np.array([(residual * m / scale).mean(), residual.mean()])

    start = np.array([1.0, np.log(positives / negatives)])
    slope, bias = minimize(objective, start, jac=True, method="BFGS").x
    return Platt(float(slope / scale), float(bias), len(m), positives)


def shuffled_images(images: np.ndarray, seed: int) -> np.ndarray:
    """A control: each image is given another's answers. int64 ``[M]`` to a seeded cyclic permutation of it, in which
    no image keeps its own (for M > 1)."""
    order = np.random.default_rng([seed, len(images)]).permutation(len(images))
    taken = np.empty(len(images), np.int64)
    taken[order] = images[np.roll(order, 1)]
    return taken


FOLDS = 5
"""Labelled images are scaled by fits on the other folds, so that no target has seen its own label."""
ALL = FOLDS
"""The place of the fit on all labelled images, for those without annotations."""


@dataclass(frozen=True)
class VerbPlatt:
    """``t = sigmoid(slope m + bias + offset_v)``.

    Attributes:
        slope: factor of the log-odds m.
        bias: what is added for every verb.
        offset: float64 ``[V]``, what is added for each verb.
        entries: how many pairs and verbs it was fitted on.
        positives: how many of these are annotated.
    """

    slope: float
    bias: float
    offset: np.ndarray
    entries: int
    positives: int

    def __call__(self, log_odds: np.ndarray, verb: np.ndarray) -> np.ndarray:
        """float32 ``[E]`` probabilities of float ``[E]`` log-odds, whose verbs are int ``[E]``."""
        found: np.ndarray = expit(self.slope * log_odds.astype(np.float64) + self.bias + self.offset[verb])
        return found.astype(np.float32)

    @classmethod
    def none(cls, verbs: int) -> VerbPlatt:
        """The teacher's own probability."""
        return cls(1.0, 0.0, np.zeros(verbs), 0, 0)


def fit_verb_platt(log_odds: np.ndarray, verb: np.ndarray, shown: np.ndarray, verbs: int) -> VerbPlatt:
    """The calibration of E entries.

    Args:
        log_odds: float ``[E]``.
        verb: int ``[E]``.
        shown: bool ``[E]``, whether the pair is annotated with the verb.
        verbs: V.

    Returns:
        The fit; where all or none are shown, which tells nothing apart, the teacher's own probability.
    """
    positives = int(shown.sum())
    if positives in (0, len(shown)):
        return VerbPlatt.none(verbs)
    m, scale = log_odds.astype(np.float64), max(float(log_odds.std()), 1e-6)
    m = m / scale

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = x[0] * m + x[1] + x[2:][verb]
        residual = expit(z) - shown
        value = float((np.logaddexp(0, z) - shown * z).sum() + 0.5 * (x[2:] ** 2).sum())
        slopes = np.bincount(verb, residual, verbs) + x[2:]
        return value, np.concatenate(([residual @ m, residual.sum()], slopes))

    start = np.concatenate(([1.0, np.log(positives / (len(m) - positives))], np.zeros(verbs)))
    found = minimize(objective, start, jac=True, method="L-BFGS-B").x
    return VerbPlatt(float(found[0] / scale), float(found[1]), found[2:], len(m), positives)


def cross_fitted(
    log_odds: np.ndarray, verb: np.ndarray, shown: np.ndarray, fold: np.ndarray, verbs: int
) -> list[VerbPlatt]:
    """A fit without each fold, then one on everything (at :data:`ALL`).

    Args:
        log_odds: float ``[E]``, of entries of labelled images.
        verb: int ``[E]``.
        shown: bool ``[E]``.
        fold: int ``[E]`` from 0 to :data:`FOLDS` - 1.
        verbs: V.
    """
    kept = [fold != number for number in range(FOLDS)] + [np.ones(len(fold), bool)]
    return [fit_verb_platt(log_odds[each], verb[each], shown[each], verbs) for each in kept]
