"""The difference of two students, or of two arms of several trainings each, and its confidence interval.

Two things make a difference uncertain. Other test images would change it: a bootstrap draws the images anew, the same ones
for both sides, so that what makes an image hard for both cancels. Another training would change it: the trainings of an arm
differ by their seeds. The two are added:

    variance = variance of the difference over the draws + s1^2 / k1 + s2^2 / k2

where s is the standard deviation of an arm's k trainings. The interval is the difference plus and minus Student's t times the
root. Its degrees of freedom are those of Welch and Satterthwaite, so that few trainings make it wide: two say very little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from hoi_distill.stages.evaluate.metrics.bootstrap import LEVEL
from hoi_distill.stages.evaluate.metrics.outcomes import Outcomes


@dataclass(frozen=True)
class Difference:
    """One side less the other, in points of mean average precision.

    Attributes:
        value: the difference of the means over trainings.
        low: lower bound of the interval.
        high: upper bound of the interval.
        trainings: of each side. The interval says what another training would change only if both have more than one.
    """

    value: float
    low: float
    high: float
    trainings: tuple[int, int]

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.low > 0 or self.high < 0

    @override
    def __str__(self) -> str:
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f}) {'differs' if self.differs else 'does not'}"


def difference(ours: Sequence[Outcomes], theirs: Sequence[Outcomes], name: str) -> Difference | None:
    """The difference of two arms over one set of classes.

    Args:
        ours: of each training of one arm.
        theirs: of each training of the other.
        name: of the set.

    Returns:
        None where they are not comparable: a side has no training, lacks the set or has no pair in it, or the test images
        or the classes of the set are not the same in all of them.
    """
    both = [*ours, *theirs]
    if not ours or not theirs or any(name not in each.metrics for each in both):
        return None
    if (
        len({(each.test, each.classes[name]) for each in both}) > 1
        or np.isnan([each.metrics[name] for each in both]).any()
    ):
        return None
    figures = [np.array([each.metrics[name] for each in side]) for side in (ours, theirs)]
    value = float(figures[0].mean() - figures[1].mean())
    drawn = [np.mean([each.draws[name] for each in side], axis=0) for side in (ours, theirs)]
    # (variance, its degrees of freedom) of each source.
    sources = [(float(np.nanvar(drawn[0] - drawn[1], ddof=1)), both[0].images - 1)]
    sources += [(float(of.var(ddof=1)) / len(of), len(of) - 1) for of in figures if len(of) > 1]
    margin = _margin(sources)
    return Difference(value, value - margin, value + margin, (len(ours), len(theirs)))


def _margin(sources: Sequence[tuple[float, int]]) -> float:
    """Half the width of the interval of a sum of independent parts, each with its variance and degrees of freedom."""
    from scipy.special import stdtrit

    total = sum(variance for variance, _ in sources)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / max(degrees, 1) for variance, degrees in sources)
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(total)
