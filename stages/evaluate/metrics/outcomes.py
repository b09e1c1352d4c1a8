"""What a test set's bootstrap made of one evaluated student, small enough to be kept beside its figures.

The draws of the bootstrap depend on its seed and the number of images alone
(:func:`hoi_distill.stages.evaluate.metrics.bootstrap.resample`). So the outcomes of two students are paired, draw by draw,
wherever each was evaluated, and their difference has an interval without either one's detections.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi_distill.stages.evaluate.metrics.bootstrap import resample
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import UserError

RESAMPLES, SEED = 1000, 0
"""Of every stored bootstrap: outcomes of other draws are not paired."""
STEPS = 8
"""An outcome is stored to the nearest eighth of the outcomes' standard deviation."""
MISSING = -128
"""The code of a draw without a pair of any class of the set."""


class OtherDraws(Exception):
    """Stored outcomes are of draws that others are not paired with."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The means of one student over sets of classes, for the test images as they are and for each draw of them.

    Attributes:
        test: names the test images and their annotations.
        images: number of test images.
        classes: names the classes of each set that have test pairs.
        metrics: the mean of each set, in percent; NaN where no class has a pair.
        draws: ``float64 [R]`` of each set: its mean in each draw, in percent; NaN as above.
    """

    test: str
    images: int
    classes: Mapping[str, str]
    metrics: Mapping[str, float]
    draws: Mapping[str, np.ndarray]

    def as_json(self) -> dict[str, Any]:
        """About 6 kB for seven sets; :func:`read_outcomes` reads it."""
        codes, sets = [], {}
        for name, drawn in self.draws.items():
            known = ~np.isnan(drawn)
            centre, step = (
                (float(drawn[known].mean()), float(drawn[known].std()) / STEPS) if known.any() else (0.0, 0.0)
            )
            code = np.full(len(drawn), MISSING, np.int8)
            if step:
                code[known] = np.rint((drawn[known] - centre) / step).clip(-127, 127)
            else:
                code[known] = 0
            codes.append(code)
            metric = self.metrics[name]
            sets[name] = {
                "classes": self.classes[name],
                "metric": None if np.isnan(metric) else round(metric, 6),
                "centre": round(centre, 6),
                "step": round(step, 8),
            }
        packed = zlib.compress(np.stack(codes).tobytes() if codes else b"", 9)
        return {
            "test": self.test,
            "images": self.images,
            "seed": SEED,
            "draws": RESAMPLES,
            "sets": sets,
            "codes": base64.b85encode(packed).decode(),
        }


def draw_outcomes(ranking: Ranking, sets: Mapping[str, np.ndarray], grid: np.ndarray | None, test: str) -> Outcomes:
    """Draw the test images and keep what comes of it.

    Args:
        ranking: the counted detections of the default setting.
        sets: ``bool [C]`` by name.
        grid: recall levels of average precision; None: all points.
        test: names the test images and their annotations.
    """
    metrics, drawn = resample(ranking, sets, grid, resamples=RESAMPLES, seed=SEED)
    with_pairs = ranking.positives > 0
    return Outcomes(
        test=test,
        images=ranking.images,
        classes={name: content_name(np.packbits(chosen & with_pairs).tobytes(), 4) for name, chosen in sets.items()},
        metrics=dict(zip(sets, metrics.tolist(), strict=True)),
        draws=dict(zip(sets, drawn.T, strict=True)),
    )


def read_outcomes(record: Any, where: str) -> Outcomes:
    """Outcomes as :meth:`Outcomes.as_json` wrote them.

    Args:
        record: the JSON value.
        where: the file, for messages.

    Raises:
        UserError: it is damaged, or of other draws.
    """
    try:
        sets, made = record["sets"], (record["seed"], record["draws"])
        if made != (SEED, RESAMPLES):
            raise OtherDraws
        packed = zlib.decompress(base64.b85decode(record["codes"]))
        codes = np.frombuffer(packed, np.int8).reshape(len(sets), RESAMPLES).astype(np.float64)
        codes[codes == MISSING] = np.nan
        return Outcomes(
            test=str(record["test"]),
            images=int(record["images"]),
            classes={name: str(kept["classes"]) for name, kept in sets.items()},
            metrics={name: np.nan if kept["metric"] is None else float(kept["metric"]) for name, kept in sets.items()},
            draws={
                name: kept["centre"] + kept["step"] * row for (name, kept), row in zip(sets.items(), codes, strict=True)
            },
        )
    except OtherDraws:
        raise UserError(f"{where}: its bootstrap has other draws than this version makes; remove the file") from None
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error):
        raise UserError(f"{where}: its bootstrap is damaged; remove the file, and it is made anew") from None
