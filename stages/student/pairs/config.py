"""What every student of detected boxes in pairs is configured with, as a frozen record of plain values."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from typing_extensions import TypeVar

from hoi_distill.stages.keys import Count, CountOrNone, Fraction, NotNegative, Positive, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.training.options import Precision, TrainingOptions
from hoi_distill.storage.errors import UserError


@settings
class PairsConfig(TrainingOptions):
    """What every student of detected boxes in pairs needs to know: which boxes, which views, how it is stepped through."""

    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("original", "flip")
    """Cached views drawn from in training, one at random for each image and step; evaluation takes the first, which is
    not the mirrored one."""

    # detections to pairs
    score_threshold: Fraction = 0.2
    min_instances: Count = 3
    max_instances: Count = 15
    nms_iou: Fraction = 0.5
    association_iou: Fraction = 0.5
    prior_power: NotNegative = 1.0
    """Exponent of the detection scores in the final score (2.8 suits DETR's, see UPT)."""

    # loss
    focal_alpha: Fraction = 0.5
    focal_gamma: NotNegative = 0.2

    # optimisation
    steps: Count = 500
    epochs: Positive | None = field(default=None, metadata=LATER)
    """How often the labelled images are gone through, or where there are none, the others: instead of ``steps``."""
    labelled_per_step: Count = 16
    """Images, of all processes together; so is ``unlabelled_per_step``."""
    unlabelled_per_step: CountOrNone = 16
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    warmup_steps: CountOrNone = 25
    clip_norm: Positive = 1.0
    precision: Precision = field(default="no", metadata=LATER)
    shuffle_window: CountOrNone = field(default=0, metadata=LATER)
    """For a cache in an object store that does not fit on this machine's disk. An epoch's order is drawn within a window of so
    many images, which moves over blocks of 1/16 of it, so that each shard is fetched about once an epoch. 0: from all images."""
    seed: CountOrNone = 0

    # bookkeeping
    log_every: Count = 10
    save_every: Count = 100
    """Steps between saves of the exact state; a killed run repeats at most this many."""
    predict_batch: Count = 64
    loader_workers: CountOrNone = 0
    """Processes that read batches, beside each training process; 0: a thread of it does."""

    def __post_init__(self) -> None:
        if self.views[0] == "flip":
            raise UserError(
                f"views: {', '.join(self.views)}; the first is evaluated, with boxes that are not mirrored: put "
                "original before flip"
            )
        if self.epochs is not None and self.steps != type(self).steps:
            raise UserError(f"epochs: {self.epochs:g}, and steps is {self.steps}; give one of the two")

    def steps_in_epoch(self, labelled: int, unlabelled: int) -> float:
        """How many steps go once through so many labelled images, or where there are none, through the others."""
        if labelled:
            return labelled / self.labelled_per_step
        return unlabelled / max(self.unlabelled_per_step, 1)


BOOKKEEPING = ("log_every", "save_every", "predict_batch", "loader_workers")
"""Parameters that change no weight."""

ConfigT = TypeVar("ConfigT", bound=PairsConfig, default=PairsConfig)
