"""Everything that a student in the CL-HOI style depends on, as frozen records of plain values.

A reimplementation in the style of CL-HOI (arXiv 2410.15657), of which little but the abstract could be read: the two
networks, the three relations and "contrastive" are the paper's; sizes, losses and schedule are ours, with precedents named
where they are used. The rows of its ablation, each one key away from the next:

    A0  bridge: copy                       A5  losses.mil above 0
    A1  network: spatial, context false    A6  network.interactiveness true
    A2  network.spatial true               A7  tables.labels: with or without verification
    A3  network.context true, distil false A8  tables of another captioner
    A4  distil true                        A9  labels: ground_truth;  A10 tables.detections, allow_hoi_tuned_detector
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import override

from hoi_distill.stages.keys import Count, CountOrNone, NotNegative, Positive, Rate, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.supervision.config import ImageLabelLossConfig, PairAnswerConfig
from hoi_distill.storage.errors import UserError

Exponents = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


def refuse_uneven_heads(width: int, heads: int) -> None:
    """Raises UserError where the heads of an attention cannot share its width."""
    if width % heads:
        raise UserError(f"width: {width}; not a multiple of heads: {heads}")


@settings
class TranslatorConfig:
    """The Visual Linguistic Translator's shape. 32 queries are the Q-Former's; the rest is our default for ViT-L features."""

    queries: Count = 32
    """Q, context tokens of an image."""
    blocks: Count = 6
    """Blocks of self-attention, cross-attention to the map and feed-forward."""
    width: Count = 768
    """D, of the tokens."""
    heads: Count = 12
    """Heads of every attention."""
    ffn: Count = 3072
    """Hidden width of the feed-forward blocks."""
    dropout: Rate = 0.1

    def __post_init__(self) -> None:
        refuse_uneven_heads(self.width, self.heads)
        if self.width % 4:
            raise UserError(f"width: {self.width}; sines of two axes want a multiple of 4")


@settings
class CognitionConfig:
    """The Interaction Cognition Network's shape and switches."""

    width: Count = 512
    """Width of the pairs."""
    heads: Count = 8
    """Heads of every attention."""
    layers: Count = 2
    """Layers of the decoder."""
    ffn: Count = 2048
    """Hidden width of the feed-forward blocks."""
    roi_size: Count = 7
    """Rows and columns of the grid that RoIAlign pools each box to."""
    spatial: bool = True
    """Off: pairs get no geometry; they still attend to the map inside their union box."""
    visual: bool = True
    """Off: pairs get neither the features of their boxes nor the map."""
    context: bool = True
    """Off: pairs do not attend to the translator's tokens, and there is no translator."""
    interactiveness: bool = True
    """r, the probability that a pair interacts at all; off: 1."""
    classes: Literal["text", "trained"] = "text"
    """Rows of the classifier stay the text embeddings, or are trained from there."""
    centred: bool = True
    """Text embeddings lose their mean, which all prompts share, before they are compared."""
    logit_scale: Positive = 20.0
    """Where the scale s starts (RegFormer)."""
    logit_bias: float = -10.0
    """Where the bias b starts (RegFormer)."""
    dropout: Rate = 0.1
    """Dropout of the decoder's outputs."""
    feature_dropout: Rate = 0.0
    """Dropout of whole channels of the map."""

    def __post_init__(self) -> None:
        refuse_uneven_heads(self.width, self.heads)
        if not (self.spatial or self.visual):
            raise UserError("spatial: spatial and visual are both off; nothing is left that tells pairs apart")


@settings
class ContextConfig:
    """Stage 1, context distillation: the translator learns the teacher's texts."""

    steps: Count = 1500
    """Steps of stage 1."""
    pictures_per_step: Count = 256
    """B, images a step."""
    queue: CountOrNone = 0
    """Texts of earlier steps' images that are negatives of every image, beside the batch's own."""
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 1e-4
    warmup_steps: CountOrNone = 150
    clip_norm: Positive = 0.1
    temperature: Positive = 0.07
    """Where the learnt temperature starts; it stays at or above 0.01."""


@settings
class ClHoiConfig(PairsConfig):
    """A training in the CL-HOI style. ``unlabelled_per_step`` are stage 2's images a step: as none is labelled,
    ``labelled_per_step`` is not read. ``focal_*`` and ``association_iou`` serve pair-level targets only (``bridge: copy``,
    ``labels: instances``).
    """

    labels: Literal["teacher", "ground_truth", "instances"] = "teacher"
    """Where image-level targets come from: the teacher's text; the annotations' image-level labels (control); or pairs
    are told their annotated classes themselves, by the pair classifier's loss (control, the network's own ceiling)."""
    bridge: Literal["contrastive", "copy"] = "contrastive"
    """From images to pairs: the losses below, or each label copied to every pair that its object allows."""
    distil: bool = True
    """Whether the translator is trained in stage 1; off: it stays as it was drawn."""
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    context_stage: ContextConfig = field(default_factory=ContextConfig)
    network: CognitionConfig = field(default_factory=CognitionConfig)
    losses: ImageLabelLossConfig = field(default_factory=ImageLabelLossConfig)
    pair_answers: PairAnswerConfig = field(default=PairAnswerConfig(), metadata=LATER)
    translator_rate: NotNegative = 0.0
    """The translator's learning rate in stage 2, as a share of the network's; 0: frozen."""

    # prediction: sigmoid(z) * r ** gamma * (s_h * s_o) ** lambda
    held_out: Rate = 0.1
    """Share of the images that are not trained on: on their image-level targets the exponents are chosen."""
    gammas: Exponents = (1.0, 0.5, 2.0)
    lambdas: Exponents = (1.0, 0.5, 2.0, 2.8)
    """Exponents to choose from; of equally good ones the first. Of one each, nothing is held out. ``prior_power`` is not read."""

    allow_hoi_tuned_detector: bool = False
    """Whether boxes may owe something to annotated interactions: of a detector fine-tuned on HICO-DET, or annotated ones."""

    # optimisation
    labelled_per_step: Count = 1
    unlabelled_per_step: Count = 32
    steps: Count = 12_000
    learning_rate: Positive = 2e-4
    warmup_steps: CountOrNone = 1_200
    clip_norm: Positive = 0.1

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chooses and not self.held_out:
            raise UserError("held_out: 0, but there are exponents to choose from; hold out 0.1 or give one of each")

        if self.pair_answers.used and (self.pair_answers.calibrated or not self.pair_answers.unlabelled):
            raise UserError(
                "pair_answers: no image of this method is labelled; write calibrated: false and images: unlabelled"
            )

    @property
    def chooses(self) -> bool:
        """Whether exponents are chosen at all."""
        return len(self.gammas) * len(self.lambdas) > 1

    @property
    def translates(self) -> bool:
        """Whether stage 1 takes place."""
        return self.distil and self.network.context

    def first_stage(self) -> PairsConfig:
        """Stage 1's steps, as the training loop reads them."""
        own = self.context_stage
        return PairsConfig(
            views=self.views, steps=own.steps, labelled_per_step=1, unlabelled_per_step=own.pictures_per_step,
            learning_rate=own.learning_rate, weight_decay=own.weight_decay, warmup_steps=own.warmup_steps,
            clip_norm=own.clip_norm, shuffle_window=self.shuffle_window, seed=self.seed,
            log_every=self.log_every, save_every=self.save_every,
            precision=self.precision, fused_optimizer=self.fused_optimizer, tf32=self.tf32,
        )  # fmt: skip
