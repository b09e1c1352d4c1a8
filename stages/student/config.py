"""Everything that a student's training depends on, as one frozen record of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.errors import UserError


@dataclass(frozen=True)
class StudentConfig:
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
    views: tuple[str, ...] = ("original", "flip")
    """Cached views drawn from in training, one at random for each picture and step; evaluation takes the first."""

    # detections to pairs
    score_threshold: float = 0.2
    min_instances: int = 3
    max_instances: int = 15
    nms_iou: float = 0.5
    association_iou: float = 0.5

    # network
    roi_size: int = 3
    """Rows and columns of the grid that RoIAlign pools each box to."""
    width: int = 256
    dropout: float = 0.2
    feature_dropout: float = 0.1
    logit_scale: float = 14.0
    prior_power: float = 1.0
    """Exponent of the detection scores in the final score (2.8 suits DETR's, see UPT)."""

    # loss
    focal_alpha: float = 0.5
    focal_gamma: float = 0.2

    # optimisation
    steps: int = 500
    labelled_per_step: int = 16
    unlabelled_per_step: int = 48
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 25
    clip_norm: float = 1.0
    seed: int = 0

    # bookkeeping
    log_every: int = 10
    save_every: int = 100
    """Steps between saves of the exact state; a killed run repeats at most this many."""
    predict_batch: int = 64

    def __post_init__(self) -> None:
        positive = (
            "min_instances", "max_instances", "roi_size", "width", "steps", "labelled_per_step", "learning_rate", "clip_norm",
            "log_every", "save_every", "predict_batch",
        )  # fmt: skip
        fractions = ("score_threshold", "nms_iou", "association_iou", "dropout", "feature_dropout", "focal_alpha")
        least = {
            "itm_weight": 0, "itm_ramp": 0, "prior_power": 0, "focal_gamma": 0, "weight_decay": 0, "warmup_steps": 0, "seed": 0,
            "unlabelled_per_step": 0,
        }  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"student.{name}: {getattr(self, name)!r}; it must be above 0")
        for name in fractions:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"student.{name}: {getattr(self, name)!r}; it must lie in 0 to 1")
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise UserError(f"student.{name}: {getattr(self, name)!r}; it must be at least {bound}")
        if not self.views:
            raise UserError("student.views: none given; name at least one column of the features table")
