"""Calibration: from cached image-text matching scores to the probability that an image shows an interaction.

The teacher scores whole images. Its answer for (image I, class c) is the match log-odds ``m = z1 - z0``; Platt
scaling ``t = sigmoid(a * m + b)``, fitted on the labelled images' image-level labels, makes it a probability. How t
reaches the pairs is :func:`hoi_distill.stages.student.pairs.supervision.soft_labels.image_terms`.
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
