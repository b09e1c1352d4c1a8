"""What every student of detected boxes in pairs is configured with, as a frozen record of plain values."""

from __future__ import annotations

from dataclasses import dataclass

from hoi_distill.storage.errors import UserError


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

    def epochs(self, labelled: int, unlabelled: int) -> float:
        """How often ``steps`` go through so many labelled pictures, or where there are none, through the others."""
        if labelled:
            return self.steps * self.labelled_per_step / labelled
        return self.steps * self.unlabelled_per_step / max(unlabelled, 1)

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
