"""SWiG-HOI's evaluation as its authors' code does it: eleven-point average precision of the evaluated interactions.

Wang et al., ICCV 2021 and CVPR 2022. It is HICO-DET's evaluation with other switches: the 19,999 highest-scored
detections of each interaction count, recall levels are k/10 exactly, and equal scores rank as a stable ``argsort()[::-1]``
leaves them. The average precision of an evaluated interaction without annotated pairs or without detections is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency, swig_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.hico_det import GroundTruth, hico_det

CONVENTION = replace(OFFICIAL, name="swig-hoi", recall_grid="exact", top_per_class=19_999, ties="last")
"""The switches of SWiG-HOI's evaluator."""


@dataclass(frozen=True, eq=False)
class SwigResults:
    """Results per interaction and per stored detection. Means are over the evaluated interactions.

    Attributes:
        ap: ``float64 [14130]``, fractions; 0 for an interaction without annotated pairs or true positives.
        pairs: ``int64 [14130]`` annotated pairs.
        detections: ``int64 [14130]`` detections that count.
        found: ``int64 [14130]`` true positives.
        ranking: the counted detections in rank order.
        matched: ``int64 [D]`` the annotated pair that a detection found, a row of ``annotations.classified()``, or -1.
        counted: ``bool [D]``, False beyond the cap and where the interaction is not evaluated.
    """

    ap: np.ndarray
    pairs: np.ndarray
    detections: np.ndarray
    found: np.ndarray
    ranking: Ranking
    matched: np.ndarray
    counted: np.ndarray

    def mean(self, frequency: int | None = None) -> float:
        """Mean over the 5,539 evaluated interactions.

        Args:
            frequency: only those unseen (0), rare (1) or non-rare (2) in training; None: all.
        """
        chosen = swig_evaluated() if frequency is None else swig_evaluated() & (swig_frequency() == frequency)
        return float(self.ap[chosen].mean())

    def percentages(self) -> dict[str, float]:
        """The means {"full", "non_rare", "rare", "unseen"} in percent."""
        return {
            name: 100 * self.mean(frequency)
            for name, frequency in (("full", None), ("non_rare", 2), ("rare", 1), ("unseen", 0))
        }


def swig_hoi(detections: HoiDetections, annotations: Annotations) -> SwigResults:
    """Evaluate detections of the images of ``annotations``. Time grows as n log n with the detections."""
    vocabulary = swig_vocabulary()
    evaluated = np.append(swig_evaluated(), False)  # the last is hoi -1
    pairs = annotations.classified()
    results = hico_det(
        replace(detections, hoi=np.where(evaluated[detections.hoi], detections.hoi, -1)),
        GroundTruth(
            pairs.pair_image(), pairs.human_box, pairs.object_box, pairs.hoi.astype(np.int64),
            image_objects=np.zeros((len(annotations), len(vocabulary.objects)), bool),  # there is no known-object setting
        ),
        vocabulary.hois[:, 1].astype(np.int64),
        CONVENTION,
    )  # fmt: skip
    per_class = results.default
    return SwigResults(
        ap=np.nan_to_num(per_class.ap),
        pairs=per_class.pairs,
        detections=per_class.detections,
        found=per_class.found,
        ranking=results.ranking,
        matched=results.matched,
        counted=results.counted,
    )
