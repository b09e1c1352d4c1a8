"""Keys of VLM-HOI's losses, as frozen records of plain values. Reading a configuration imports this, and no torch."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from hoi_distill.stages.keys import Fraction, NotNegative, Positive, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import WHOLE, PromptForm
from hoi_distill.storage.errors import UserError


@settings
class LossWeights:
    """The published weights of MUREN's losses, and the numbers inside two of them."""

    l1: float = 2.5
    """Weight of the boxes' L1 distance."""
    giou: float = 1.0
    """Weight of the boxes' generalised IoU."""
    object: float = 1.0
    """Weight of the object's cross-entropy."""
    verb: float = 2.0
    """[lambda_4] Weight of the focal verb loss: 2 in the released code, 1 in the paper."""
    no_object: float = 0.1
    """Weight of the class "no object" in the cross-entropy."""
    alpha: float = 0.5
    """Balance of positives and negatives in the focal verb loss."""
    gamma: float = 2.0
    """Exponent of the focal verb loss."""
    local_counts: bool = False
    """Divide by this process's counts, except that of annotated pairs, as MUREN's code does. The curve then depends on how
    many processes there are."""

    def of_terms(self) -> tuple[float, ...]:
        """In the order of :data:`~.criterion.TERMS`."""
        return self.l1, self.l1, self.giou, self.giou, self.object, self.verb


@settings
class Costs:
    """Weights of the parts of a matching cost."""

    object: float = 1.0
    """Weight of the probability of the annotated object."""
    verb: float = 1.0
    """Weight of the probabilities of the verbs."""
    l1: float = 2.5
    """Weight of the boxes' L1 distance."""
    giou: float = 1.0
    """Weight of the boxes' generalised IoU."""


Family = Literal["F0", "F1", "F1-literal", "F2", "F2n", "F3", "F4", "F7"]
"""F0: Eq. 4 at the argmax, for the record, no gradient. F1: expected cost, corrected; F1-literal: with Eq. 4's costs.
F2: soft targets. F2n: softer negatives (F2'), no term of its own but a weight in the verb loss. F3: margins. F4: listwise
KL. F7: images as a whole; it stands alone here and can be added to any other for images without labels."""


@settings
class ItmConfig:
    """The ITM term. Papers' symbols in brackets."""

    family: Family = "F1"
    weight: NotNegative = 1.0
    """[lambda_ITM] With 0 the training is the baseline bit for bit."""
    ramp: NotNegative = 5.0
    """Epochs over which that weight grows linearly from 0."""
    layers: Literal["final", "all"] = "final"
    """Which decoder layers learn; the paper does not say, its code takes all."""
    prompt: PromptForm = "full"
    object: Literal["gt", "predicted"] = "gt"
    """F1 only: costs of the annotated object, or averaged over the predicted distribution of objects."""
    alpha: NotNegative = 0.5
    """[alpha] F0 and F1: the score above which an annotated verb costs nothing, at most 1 unless ``scores`` is ``raw``. Eq. 4
    has 1, its ablation 0, 1 and 2, all of raw scores."""
    beta: Fraction = 0.5
    """[beta] F1: by how much of its score t a verb that is not annotated gets cheaper."""
    mixing: Fraction = 0.3
    """[lambda] The teacher's share: of F2's targets, of F2n's forgiveness, of F4's distribution."""
    temperature: Positive = 1.0
    """[T] Of the student's softmax in F1 and F4."""
    tau: Positive = 1.0
    """[tau] Of the teacher's softmax in F4, in units of log-odds."""
    margin: NotNegative = 0.2
    """[delta_0] F3: the least margin between an annotated verb and another."""
    margin_slope: NotNegative = 0.1
    """[eta] F3: how much of the teacher's difference of log-odds is added to it."""
    margin_limit: NotNegative = 2.0
    """F3: and at most how much."""
    gamma: NotNegative = 2.0
    """Exponent of ``|target - p|`` in F2 and F7: 0 is plain cross-entropy; above, F2 quarrels less with the focal verb
    loss on the same logits."""
    smoothing: Positive = 0.2
    """F7: temperature, in log-probability, of the smooth maximum over queries."""
    scores: Literal["calibrated", "raw"] = field(default="calibrated", metadata=LATER)
    """F0 and F1-literal: what Eq. 4's costs are of. ``calibrated``: the probability t. ``raw``: the match log-odds m as the
    teacher gives them, on which the paper's equation stands."""
    unmatched: bool = field(default=False, metadata=LATER)
    """F1 and F1-literal: queries without an annotated pair learn too, as the paper's negatives are all predicted triplets that
    the image's annotations lack. Their triplets are those of the predicted objects."""
    calibration: Literal["platt", "sentence"] = field(default="platt", metadata=LATER)
    """How t is made of m. ``platt``: one slope and bias for all sentences. ``sentence``: also an offset of each sentence,
    shrunk towards 0, and each labelled image is calibrated by a fit on the others only (five folds)."""

    def __post_init__(self) -> None:
        if self.scores == "raw" and self.family not in ("F0", "F1-literal"):
            raise UserError(
                f"scores: raw scores are for Eq. 4's costs, F0 and F1-literal, not {self.family}; calibrated"
            )
        if self.alpha > 1 and self.scores != "raw":
            raise UserError(f"alpha: expected at most 1; got {self.alpha:g} (more is for F1-literal with scores: raw)")
        if self.unmatched and self.family not in ("F1", "F1-literal"):
            raise UserError(f"unmatched: is for F1 and F1-literal, not {self.family}; choose false")
        if self.family == "F1" and self.alpha > 1 - self.beta:
            raise UserError(
                f"alpha: {self.alpha} is above 1 - beta = {1 - self.beta:g}, so an annotated verb could cost more "
                "than another; lower alpha or beta, or choose family F1-literal"
            )
        if self.family == "F2" and self.mixing > 0.3:
            raise UserError(f"mixing: {self.mixing}; above 0.3 F2 rewards plausible verbs as if annotated")
        if self.family == "F7" and self.prompt not in WHOLE:
            raise UserError(
                f"prompt: F7 judges a verb together with its object, which '{self.prompt}' does not name; full"
            )
        if self.object == "predicted" and self.family not in ("F1", "F1-literal"):
            raise UserError(f"object: predicted objects are for family F1, not {self.family}; choose gt")

    def weight_at(self, epoch: float) -> float:
        """The term's weight after ``epoch`` epochs, fractions included."""
        return self.weight * self.ramp_at(epoch)

    def ramp_at(self, epoch: float) -> float:
        """The share of the weight after ``epoch`` epochs, 0 to 1."""
        return 1.0 if self.ramp == 0 else min(1.0, epoch / self.ramp)

    def learning_layers(self, layers: int) -> range:
        """Which of a decoder's ``layers`` learn from the term."""
        return range(0 if self.layers == "all" else layers - 1, layers)
