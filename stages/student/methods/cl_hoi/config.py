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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.storage.errors import UserError


def refuse_unsound(config: Any, where: str, counts: tuple[str, ...], rates: tuple[str, ...] = ()) -> None:
    """Raises UserError for the first of ``counts`` that is not above 0, or of ``rates`` that is not in 0 to 1 (without 1)."""
    for name in counts:
        if not getattr(config, name) > 0:
            raise UserError(f"student.{where}.{name}: {getattr(config, name)!r}; it must be above 0")
    for name in rates:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"student.{where}.{name}: {getattr(config, name)!r}; it must be at least 0 and below 1")
    if config.width % config.heads:
        raise UserError(f"student.{where}.width: {config.width}; not a multiple of heads: {config.heads}")


@dataclass(frozen=True)
class TranslatorConfig:
    """The Visual Linguistic Translator's shape. 32 queries are the Q-Former's; the rest is our default for ViT-L features.

    Attributes:
        queries: Q context tokens of a picture; blocks: of self-attention, cross-attention to the map, feed-forward.
        width: D of the tokens; heads: of every attention; ffn: hidden width.
    """

    queries: int = 32
    blocks: int = 6
    width: int = 768
    heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1

    def __post_init__(self) -> None:
        refuse_unsound(self, "translator", ("queries", "blocks", "width", "heads", "ffn"), ("dropout",))
        if self.width % 4:
            raise UserError(f"student.translator.width: {self.width}; sines of two axes want a multiple of 4")


@dataclass(frozen=True)
class NetworkConfig:
    """The Interaction Cognition Network's shape and switches.

    Attributes:
        width: of the pairs; heads: of every attention; layers: of the decoder; ffn: hidden width.
        roi_size: rows and columns of the grid that RoIAlign pools each box to.
        spatial, visual, context: the three relations. Without spatial, pairs are given no geometry, though what they look
            through is their union box; without visual, they see neither their boxes nor the map; without context, they are not
            shown the translator's tokens, and there is no translator.
        interactiveness: r, the probability that a pair interacts at all; off: 1.
        classes: rows of the classifier stay the text embeddings (``text``), or are trained from there (``trained``).
        centred: text embeddings lose their mean, which all prompts share, before they are compared.
        logit_scale, logit_bias: s and b where training starts (RegFormer).
        dropout: in the decoder's outputs; feature_dropout: of whole channels of the map.
    """

    width: int = 512
    heads: int = 8
    layers: int = 2
    ffn: int = 2048
    roi_size: int = 7
    spatial: bool = True
    visual: bool = True
    context: bool = True
    interactiveness: bool = True
    classes: Literal["text", "trained"] = "text"
    centred: bool = True
    logit_scale: float = 20.0
    logit_bias: float = -10.0
    dropout: float = 0.1
    feature_dropout: float = 0.0

    def __post_init__(self) -> None:
        counts = ("width", "heads", "layers", "ffn", "roi_size", "logit_scale")
        refuse_unsound(self, "network", counts, ("dropout", "feature_dropout"))
        if not (self.spatial or self.visual):
            raise UserError("student.network: spatial and visual are both off; nothing is left that tells pairs apart")


@dataclass(frozen=True)
class ContextConfig:
    """Stage 1, context distillation: the translator learns to say what the teacher wrote.

    Attributes:
        steps: of stage 1; pictures_per_step: B.
        queue: texts of earlier steps' pictures that are negatives of every picture beside the batch's own.
        temperature: where the learnt one starts; it stays at or above 0.01.
    """

    steps: int = 1500
    pictures_per_step: int = 256
    queue: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 150
    clip_norm: float = 0.1
    temperature: float = 0.07

    def __post_init__(self) -> None:
        for name in ("steps", "pictures_per_step", "learning_rate", "clip_norm", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"student.context_stage.{name}: {getattr(self, name)!r}; it must be above 0")
        for name in ("queue", "weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"student.context_stage.{name}: {getattr(self, name)!r}; it must be at least 0")


@dataclass(frozen=True)
class LossesConfig:
    """Stage 2's weights: ``contrastive * L_nce + mil * L_mil + relatedness * L_rel``; mil and relatedness 0: the purist run.

    Attributes:
        attention_temperature: of the attention of a teacher's phrase to the pairs; temperature: where the learnt one of
            the contrast between phrases starts.
        mil_alpha, mil_gamma: of the multiple-instance loss's focal terms (RegFormer).
    """

    contrastive: float = 1.0
    mil: float = 1.0
    relatedness: float = 0.1
    attention_temperature: float = 0.1
    temperature: float = 0.07
    mil_alpha: float = 0.25
    mil_gamma: float = 2.0

    def __post_init__(self) -> None:
        for name in ("contrastive", "mil", "relatedness", "mil_gamma"):
            if not getattr(self, name) >= 0:
                raise UserError(f"student.losses.{name}: {getattr(self, name)!r}; it must be at least 0")
        for name in ("attention_temperature", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"student.losses.{name}: {getattr(self, name)!r}; it must be above 0")
        if not 0 <= self.mil_alpha <= 1:
            raise UserError(f"student.losses.mil_alpha: {self.mil_alpha!r}; it must lie in 0 to 1")


@dataclass(frozen=True)
class ClHoiConfig(PairsConfig):
    """A training in the CL-HOI style. ``unlabelled_per_step`` are stage 2's pictures a step: as none is labelled,
    ``labelled_per_step`` is not read. ``focal_*`` and ``association_iou`` serve pair-level targets only (``bridge: copy``,
    ``labels: instances``).
    """

    labels: Literal["teacher", "ground_truth", "instances"] = "teacher"
    """Where image-level targets come from: the teacher's text; the annotations' image-level labels (control); or pairs
    are told their annotated classes themselves, by the pair classifier's loss (control, the network's own ceiling)."""
    bridge: Literal["contrastive", "copy"] = "contrastive"
    """From pictures to pairs: the losses below, or each label copied to every pair that its object allows."""
    distil: bool = True
    """Whether the translator is trained in stage 1; off: it stays as it was drawn."""
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    context_stage: ContextConfig = field(default_factory=ContextConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    translator_rate: float = 0.0
    """The translator's learning rate in stage 2, as a share of the network's; 0: frozen."""

    # prediction: sigmoid(z) * r ** gamma * (s_h * s_o) ** lambda
    held_out: float = 0.1
    """Share of the pictures that are not trained on: on their image-level targets the exponents are chosen."""
    gammas: tuple[float, ...] = (1.0, 0.5, 2.0)
    lambdas: tuple[float, ...] = (1.0, 0.5, 2.0, 2.8)
    """Exponents to choose from; of equally good ones the first. Of one each, nothing is held out. ``prior_power`` is not read."""

    allow_hoi_tuned_detector: bool = False
    """Whether boxes may owe something to annotated interactions: of a detector fine-tuned on HICO-DET, or annotated ones."""

    # optimisation
    labelled_per_step: int = 1
    unlabelled_per_step: int = 32
    steps: int = 12_000
    learning_rate: float = 2e-4
    warmup_steps: int = 1_200
    clip_norm: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(above_0=("unlabelled_per_step",), least_0=("translator_rate",))
        if not 0 <= self.held_out < 1:
            raise UserError(f"student.held_out: {self.held_out!r}; it must be at least 0 and below 1")
        for name in ("gammas", "lambdas"):
            if not getattr(self, name) or min(getattr(self, name)) < 0:
                raise UserError(f"student.{name}: {list(getattr(self, name))!r}; give at least one, none below 0")
        if self.chooses and not self.held_out:
            raise UserError(
                "student.held_out: 0, but there are exponents to choose from; hold out 0.1 or give one of each"
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
            clip_norm=own.clip_norm, seed=self.seed, log_every=self.log_every, save_every=self.save_every,
        )  # fmt: skip


SECTIONS = {
    "translator": TranslatorConfig, "context_stage": ContextConfig, "network": NetworkConfig, "losses": LossesConfig
}  # fmt: skip


def config_from(record: Mapping[str, Any]) -> ClHoiConfig:
    """From the plain values of ``dataclasses.asdict``, JSON's lists included."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return ClHoiConfig(**{**plain, **{name: made(**record[name]) for name, made in SECTIONS.items()}})
