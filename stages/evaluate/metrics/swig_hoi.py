"""SWiG-HOI's evaluation as its authors' code does it: eleven-point average precision of the evaluated interactions.

Wang et al., ICCV 2021 and CVPR 2022. In HICO-DET's terms it is one more row of switches: per interaction the 19,999
detections of highest score count, recall levels are k/10 exactly, and equal scores rank as a stable ``argsort()[::-1]``
leaves them. An evaluated interaction without annotated pairs or without detections counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency, swig_vocabulary
from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL
from hoi_distill.stages.evaluate.metrics.hico_det import Truths, hico_det

CONVENTION = replace(OFFICIAL, name="swig-hoi", recall_grid="exact", top_per_class=19_999, ties="last")
"""What SWiG-HOI's evaluator does otherwise than HICO-DET's official one."""


@dataclass(frozen=True, eq=False)
class SwigResults:
    """Per interaction, arrays of length 14,130: ``ap`` a fraction, 0 where nothing is annotated or found; ``pairs``
    annotated; ``detections`` that counted; ``found`` right ones. Means are over those that are evaluated.

    Per stored detection: ``matched`` int64 [D], the annotated pair it found (a row of ``annotations.classified()``) or
    -1; ``counted`` bool [D], False beyond the cap and where the interaction is not evaluated.
    """

    ap: np.ndarray
    pairs: np.ndarray
    detections: np.ndarray
    found: np.ndarray
    matched: np.ndarray
    counted: np.ndarray

    def mean(self, frequency: int | None = None) -> float:
        """Over all 5,539 evaluated interactions, or those unseen (0), rare (1) or non-rare (2) in training."""
        chosen = swig_evaluated() if frequency is None else swig_evaluated() & (swig_frequency() == frequency)
        return float(self.ap[chosen].mean())

    def percentages(self) -> dict[str, float]:
        """{"full", "non_rare", "rare", "unseen"} in percent."""
        return {
            name: 100 * self.mean(frequency)
            for name, frequency in (("full", None), ("non_rare", 2), ("rare", 1), ("unseen", 0))
        }


def swig_hoi(detections: Detections, annotations: Annotations) -> SwigResults:
    """Evaluate detections of the pictures of `annotations`. Time grows as n log n with the detections."""
    vocabulary = swig_vocabulary()
    evaluated = np.append(swig_evaluated(), False)  # the last is hoi -1
    pairs = annotations.classified()
    results = hico_det(
        replace(detections, hoi=np.where(evaluated[detections.hoi], detections.hoi, -1)),
        Truths(
            pairs.pair_image(), pairs.human_box, pairs.object_box, pairs.hoi.astype(np.int64),
            image_objects=np.zeros((len(annotations), len(vocabulary.objects)), bool),  # there is no known-object setting
        ),
        vocabulary.hois[:, 1].astype(np.int64),
        CONVENTION,
    )  # fmt: skip
    of = results.default
    return SwigResults(np.nan_to_num(of.ap), of.pairs, of.detections, of.found, results.matched, results.counted)
