"""Everything that a pair classifier's training depends on, as a frozen record of plain values."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from hoi_distill.stages.keys import Count, CountOrNone, Fraction, NotNegative, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.supervision.config import PairAnswerConfig


@settings
class PairClassifierConfig(PairsConfig):
    """The pair classifier's hyper-parameters. The defaults are those of the pico world's recipe."""

    # the arm of the study
    itm_on: Literal["none", "labelled", "unlabelled", "both"] = "unlabelled"
    """Which images' soft labels are distilled. Annotated pairs of the labelled images are always used."""
    teacher: Literal["itm", "shuffled", "oracle", "self"] = "itm"
    """Where soft labels come from: calibrated ITM scores; another image's ITM scores (control); the annotations'
    image-level labels (upper bound); a student trained on the labels alone (self-training control)."""
    itm_weight: NotNegative = 0.3
    """Weight of the soft-label term; with 0 the training is the labels-only training bit for bit."""
    itm_ramp: CountOrNone = 200
    """Steps over which that weight grows from 0: soft labels of whole images are shared out among pairs by what the
    student already believes, so it should first have learned from annotated pairs."""
    itm_logit: Literal["interaction", "final"] = "interaction"
    """What an image's probability is the noisy-or of: ``sigmoid(O)`` of its pairs, or final probabilities
    ``P * sigmoid(O)``. There a P well below 1 keeps the noisy-or of the one right pair below t, and what is left of the
    gradient raises wrong pairs: on pico that made distillation do harm."""
    encoder: Literal["teacher", "region_cnn"] = "teacher"
    """Whose feature maps: the cached teacher's, or a small frozen CNN pre-trained on the detections' box classes."""

    pair_answers: PairAnswerConfig = field(default=PairAnswerConfig(), metadata=LATER)

    # network
    roi_size: Count = 3
    """Rows and columns of the grid that RoIAlign pools each box to."""
    width: Count = 256
    dropout: Fraction = 0.2
    feature_dropout: Fraction = 0.1
    logit_scale: float = 14.0

    # optimisation
    unlabelled_per_step: CountOrNone = 48
    weight_decay: NotNegative = 1e-2

    @property
    def distils(self) -> bool:
        """Whether soft labels enter the training at all. With weight 0 no unlabelled image is used either."""
        return self.itm_on != "none" and self.itm_weight > 0
