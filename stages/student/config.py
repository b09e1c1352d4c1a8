"""Everything that a student's training depends on, as frozen records of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.errors import UserError


@dataclass(frozen=True)
class PairsConfig:
    """What every student of detected boxes in pairs needs to know: which boxes, which views, how it is stepped through."""

    views: tuple[str, ...] = ("original", "flip")
    """Cached views drawn from in training, one at random for each picture and step; evaluation takes the first, which is
    not the mirrored one."""

    # detections to pairs
    score_threshold: float = 0.2
    min_instances: int = 3
    max_instances: int = 15
    nms_iou: float = 0.5
    association_iou: float = 0.5
    prior_power: float = 1.0
    """Exponent of the detection scores in the final score (2.8 suits DETR's, see UPT)."""

    # loss
    focal_alpha: float = 0.5
    focal_gamma: float = 0.2

    # optimisation
    steps: int = 500
    labelled_per_step: int = 16
    """Pictures, of all processes together; so is ``unlabelled_per_step``."""
    unlabelled_per_step: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 25
    clip_norm: float = 1.0
    seed: int = 0

    # bookkeeping
    log_every: int = 10
    save_every: int = 100
    """Steps between saves of the exact state; a killed run repeats at most this many."""
    predict_batch: int = 64

    def __post_init__(self) -> None:
        self.check(
            above_0=(
                "min_instances", "max_instances", "steps", "labelled_per_step", "learning_rate", "clip_norm", "log_every",
                "save_every", "predict_batch",
            ),
            fractions=("score_threshold", "nms_iou", "association_iou", "focal_alpha"),
            least_0=("prior_power", "focal_gamma", "weight_decay", "warmup_steps", "seed", "unlabelled_per_step"),
        )  # fmt: skip
        if not self.views:
            raise UserError("student.views: none given; name at least one column of the features table")
        if self.views[0] == "flip":
            raise UserError(
                f"student.views: {', '.join(self.views)}; the first is evaluated, with boxes that are not mirrored: put "
                "original before flip"
            )

    def check(
        self, above_0: tuple[str, ...] = (), fractions: tuple[str, ...] = (), least_0: tuple[str, ...] = ()
    ) -> None:
        """Raises UserError for the first field outside its bounds."""
        for names, sound, bounds in (
            (above_0, lambda value: value > 0, "be above 0"),
            (fractions, lambda value: 0 <= value <= 1, "lie in 0 to 1"),
            (least_0, lambda value: value >= 0, "be at least 0"),
        ):
            for name in names:
                if not sound(getattr(self, name)):
                    raise UserError(f"student.{name}: {getattr(self, name)!r}; it must {bounds}")


BOOKKEEPING = ("log_every", "save_every", "predict_batch")
"""Parameters that change no weight."""


@dataclass(frozen=True)
class StudentConfig(PairsConfig):
    """The pair classifier's hyper-parameters. The defaults are those of the pico world's recipe."""

    # the arm of the study
    itm_on: Literal["none", "labelled", "unlabelled", "both"] = "unlabelled"
    """Which pictures' soft labels are distilled. Annotated pairs of the labelled pictures are always used."""
    teacher: Literal["itm", "shuffled", "oracle", "self"] = "itm"
    """Where soft labels come from: calibrated ITM scores; another picture's ITM scores (control); the annotations'
    image-level labels (upper bound); a student trained on the labels alone (self-training control)."""
    itm_weight: float = 0.3
    """Weight of the soft-label term; with 0 the training is the labels-only training bit for bit."""
    itm_ramp: int = 200
    """Steps over which that weight grows from 0: soft labels of whole pictures are shared out among pairs by what the
    student already believes, so it should first have learned from annotated pairs."""
    itm_logit: Literal["interaction", "final"] = "interaction"
    """What a picture's probability is the noisy-or of: ``sigmoid(O)`` of its pairs, or final probabilities
    ``P * sigmoid(O)``. There a P well below 1 keeps the noisy-or of the one right pair below t, and what is left of the
    gradient raises wrong pairs: on pico that made distillation do harm."""
    encoder: Literal["teacher", "region_cnn"] = "teacher"
    """Whose feature maps: the cached teacher's, or a small frozen CNN pre-trained on the detections' box classes."""

    # network
    roi_size: int = 3
    """Rows and columns of the grid that RoIAlign pools each box to."""
    width: int = 256
    dropout: float = 0.2
    feature_dropout: float = 0.1
    logit_scale: float = 14.0

    # optimisation
    unlabelled_per_step: int = 48
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(("roi_size", "width"), ("dropout", "feature_dropout"), ("itm_weight", "itm_ramp"))
