"""Calibration of match log-odds with an offset of each sentence (ours), fitted on other images than those it is used on.

A teacher likes some sentences more than others, whatever the image. One Platt scaling for all cannot know that. Here
``t = sigmoid(slope * m + bias + offset_s)`` for sentence s. The offsets are shrunk: their prior is normal with mean 0, so a
sentence that is never annotated stays near 0. What calibrates an image's scores must not have seen its annotations, because
the student learns from both. So labelled images are split in folds, and each fold has a fit on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

FOLDS = 5
SPREAD = 1.0
"""Standard deviation of the offsets' prior, in log-odds."""


@dataclass(frozen=True, eq=False)
class SentenceCalibration:
    """K fits, each without one fold of the labelled images, and a last one on all of them.

    Attributes:
        slope: float64 ``[K + 1]``.
        bias: float64 ``[K + 1]``.
        offset: float64 ``[K + 1, P]``, of each sentence.
        fold: int64 ``[N]``, which fit a row's scores are calibrated by: K for images without labels.
    """

    slope: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    fold: npt.NDArray[np.int64]

    def __call__(self, log_odds: np.ndarray, rows: np.ndarray) -> npt.NDArray[np.float32]:
        """The probability t of float log-odds ``[B, P]`` of int64 rows ``[B]``."""
        fit = self.fold[rows]
        x = self.slope[fit, None] * log_odds.astype(np.float64) + self.bias[fit, None] + self.offset[fit]
        return expit(x).astype(np.float32)

    @classmethod
    def fit(
        cls,
        log_odds: np.ndarray,
        known: npt.NDArray[np.int64],
        column: npt.NDArray[np.int64],
        present: npt.NDArray[np.bool_],
        *,
        candidate: npt.NDArray[np.bool_] | None,
        folds: int = FOLDS,
    ) -> SentenceCalibration:
        """From the L labelled images.

        Args:
            log_odds: float ``[N, P]``, NaN where there is none.
            known: int64 ``[L]``, rows of the labelled images.
            column: int64 ``[C]``, the sentence of each class, -1 for a class without one.
            present: bool ``[L, C]``, the annotated classes.
            candidate: bool ``[L, C]``, entries to fit on; None: all.
            folds: K.
        """
        classes = np.flatnonzero(column >= 0)
        values = np.asarray(log_odds[known])[:, column[classes]].astype(np.float64)
        wanted = ~np.isnan(values)
        if candidate is not None:
            wanted &= candidate[:, classes]
        image, place = np.nonzero(wanted)
        sentence = column[classes][place]
        m, labels = values[image, place], present[:, classes][image, place]
        own = np.arange(len(known)) % folds
        chosen = [own[image] != fold for fold in range(folds)] + [np.ones(len(image), bool)]
        fits = [fit_offsets(m[each], labels[each], sentence[each], log_odds.shape[1]) for each in chosen]
        fold = np.full(len(log_odds), folds, np.int64)
        fold[known] = own
        slope, bias, offset = (np.array(part) for part in zip(*fits, strict=True))
        return cls(slope, bias, offset, fold)


def fit_offsets(
    log_odds: np.ndarray, present: np.ndarray, sentence: np.ndarray, sentences: int, spread: float = SPREAD
) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Slope, bias and float64 ``[sentences]`` offsets of greatest posterior probability.

    Args:
        log_odds: float ``[E]`` match log-odds.
        present: bool ``[E]``, whether the image shows the class.
        sentence: int ``[E]``, the sentence of each entry.
        sentences: how many there are.
        spread: standard deviation of the offsets' prior, in log-odds.
    """
    m, target = log_odds.astype(np.float64), present.astype(np.float64)
    scale = max(float(m.std()), 1e-6) if len(m) else 1.0

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, bias, offset = parameters[0], parameters[1], parameters[2:]
        x = slope * m / scale + bias + offset[sentence]
        residual = expit(x) - target
        prior = (offset**2).sum() / (2 * spread**2)
        slopes = [(residual * m / scale).sum(), residual.sum()]
        own = np.bincount(sentence, residual, sentences) + offset / spread**2
        return float((np.logaddexp(0, x) - target * x).sum() + prior), np.concatenate([slopes, own])

    found = minimize(objective, np.zeros(sentences + 2), jac=True, method="L-BFGS-B").x
    return float(found[0] / scale), float(found[1]), found[2:]
