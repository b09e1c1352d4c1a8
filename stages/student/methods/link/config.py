"""Everything that a LINK student depends on, as frozen records of plain values."""

from __future__ import annotations

from dataclasses import field

from typing_extensions import override

from hoi_distill.stages.keys import Count, Fraction, Positive, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.supervision.config import (
    KdConfig,
    PairAnswerConfig,
    SoftLabelConfig,
    TextLabelConfig,
)
from hoi_distill.storage.errors import UserError


@settings
class LinkConfig(PairsConfig):
    """A LINK training: the network, its teachers, and what every student of pairs is trained with.

    No published text states LINK's optimiser, batch or weights. Weight decay and clipping are those of UPT, PViC and
    their relatives; the other defaults are ours.
    """

    network: LinkNetworkConfig = field(default_factory=LinkNetworkConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    soft_labels: SoftLabelConfig = field(default=SoftLabelConfig(), metadata=LATER)
    text_labels: TextLabelConfig = field(default=TextLabelConfig(), metadata=LATER)
    pair_answers: PairAnswerConfig = field(default=PairAnswerConfig(), metadata=LATER)
    box_jitter: Fraction = 0.0
    """Standard deviation by which each edge of a box moves at each step, as a share of the box's side; annotated pairs
    are associated anew. A teacher's logits and queries belong to the boxes as they were detected, so jitter excludes
    distilling those; its maps do not know of boxes."""
    any_object: bool = False
    """Every detected object allows every interaction; for detectors that do not know the vocabulary's objects."""
    top_k: Count | None = None
    """How many triplets of each image prediction keeps, the best; None: all. For vocabularies of thousands."""

    # optimisation
    clip_norm: Positive = 0.1

    @property
    def uses_unlabelled(self) -> bool:
        """Whether images without annotations are learnt from."""
        images = self.soft_labels, self.text_labels, self.pair_answers
        return (self.kd.on and self.kd.unlabelled) or any(term.unlabelled for term in images)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box_jitter and self.kd.reads_pairs:
            raise UserError(
                f"box_jitter: {self.box_jitter!r} moves the boxes that the teachers' logits and queries belong to; "
                "set it to 0, or student.kd.logit and student.kd.query"
            )
        if self.box_jitter and self.pair_answers.used:
            raise UserError(
                f"box_jitter: {self.box_jitter!r} moves the boxes that the teacher was asked about; set it to 0, or "
                "student.pair_answers.images to none"
            )
        if self.kd.on and self.kd.weighting == "share" and self.precision == "fp16":
            raise UserError(
                "precision: fp16 rounds the gradients to 0 that kd.weighting share compares; choose bf16 or no"
            )
