"""Keys of supervision terms, as frozen records of plain values. Reading a configuration imports this, and no torch."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import numpy as np

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import CountOrNone, Fraction, NotNegative, Positive, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.storage.errors import UserError

Images = Literal["none", "labelled", "unlabelled", "both"]
"""Training images by whether they have annotations."""


@settings
class ImageSupervision:
    """A teacher's word on whole images: for which of them it counts, and how strongly."""

    images: Images = "none"
    """The images whose labels are distilled."""
    weight: NotNegative = 1.0
    """Weight of the term; 0: as ``images: none``."""
    ramp: CountOrNone = 200
    """Steps over which the weight grows from 0. A label of a whole image is shared out among its pairs by what the student
    believes already, so it should first have learnt from annotated pairs."""

    @property
    def used(self) -> bool:
        """Whether anything is distilled."""
        return self.images != "none" and self.weight > 0

    @property
    def unlabelled(self) -> bool:
        """Whether images without annotations are distilled on."""
        return self.used and self.images != "labelled"

    def rows(self, labelled: np.ndarray) -> np.ndarray:
        """bool ``[N]``, the images that are distilled on, of those that are labelled (bool ``[N]``)."""
        chosen = {"labelled": labelled, "unlabelled": ~labelled, "both": np.ones_like(labelled)}
        return chosen[self.images] if self.used else np.zeros_like(labelled)

    def count(self, labelled: int, unlabelled: int) -> int:
        """How many images are distilled on, of so many with and without annotations."""
        return {"labelled": labelled, "unlabelled": unlabelled, "both": labelled + unlabelled}.get(self.images, 0)


@settings
class SoftLabelConfig(ImageSupervision):
    """Soft labels from cached image-text-matching scores, on the noisy-or of an image's pairs."""

    weight: NotNegative = 0.3
    calibrated: bool = True
    """Off: the teacher's own probabilities, as where no image is labelled. On: Platt scaling on the labelled images."""
    teacher: Literal["itm", "shuffled"] = field(default="itm", metadata=LATER)
    """Whose scores an image gets: its own, or, as a control, another image's."""


@settings
class TextLabelConfig(ImageSupervision):
    """Image-level labels from a teacher's cached text (stage ``image_labels``), on the smooth maximum of an image's pairs."""


@settings
class PairAnswerConfig(ImageSupervision):
    """A teacher's cached yes/no answers about single pairs (stage ``pair_answers``), on the interaction logits. On labelled
    images only what the annotations do not find in a pair is distilled."""

    weight: NotNegative = 0.3
    ramp: CountOrNone = 0
    """Steps over which the weight grows from 0."""
    prior_power: NotNegative = 1.0
    """Exponent of the prior by which an answer counts in the mean: a pair that is hardly there counts little."""
    calibrated: bool = True
    """On: answers are scaled on the labelled images, with an offset for each verb. Off: the teacher's own probabilities."""
    answers: Literal["own", "mean", "permuted"] = "own"
    """Which answers a pair gets: its own; or, as controls, the mean over the pairs of its image with an object of the same class,
    as if the teacher had been asked about the image, or those of another such pair."""

    def columns(self, vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
        """What a training reads of the two tables, by role; nothing where nothing is distilled.

        Args:
            vocabulary: whose questions about pairs they are.
        """
        return {"instances": ("value",), "pair_answers": tuple(vocabulary.pair_questions())} if self.used else {}


@settings
class KdConfig:
    """What is distilled and how strongly. With all weights 0 no teacher is read and the training is the plain one."""

    pairs: tuple[str, ...] = ()
    """The configuration's names of the tables written by stage ``link_pairs``, one a teacher."""
    maps: tuple[str, ...] = ()
    """The same for stage ``link_maps``, in the same order; may be empty where ``map`` is 0."""
    logit: NotNegative = 0.0
    """Weight of the logit term: mean over entries (``softmax``: over pairs) of the last decoder layer."""
    query: NotNegative = 0.0
    """Weight of the query term: mean over tokens and encoder layers, plus mean over tokens and decoder layers."""
    map: NotNegative = 0.0
    """Weight of the map term: mean over the cells of the latent map."""
    temperature: Positive = 1.0
    tau_squared: bool = True
    """Multiply the terms by the temperature's square, which keeps their gradients' size (Hinton et al. 2015)."""
    logit_form: Literal["bernoulli", "softmax"] = "bernoulli"
    """Each class by itself, as a pair may show several; or the distribution over the classes that the pair allows."""
    unlabelled: bool = False
    """Distil on images without annotations too."""
    weighting: Literal["factor", "share"] = field(default="factor", metadata=LATER)
    """What ``logit``, ``query`` and ``map`` are. ``factor``: the term is multiplied by it. ``share``: the term's gradient gets
    this share of the norm that the gradient of all other losses has at each step, at what the term compares (the logits; the
    queries; the latent map). Shares mean the same at any number of pairs, classes and channels."""

    def __post_init__(self) -> None:
        if self.reads_pairs and not self.pairs:
            raise UserError("pairs: names no table; list those of stage link_pairs, or set logit and query to 0")
        if self.reads_maps and not self.maps:
            raise UserError("maps: names no table; list those of stage link_maps, or set map to 0")
        if self.reads_pairs and self.reads_maps and len(self.pairs) != len(self.maps):
            raise UserError(
                f"maps: {len(self.maps)} tables for {len(self.pairs)} in student.kd.pairs; name one of each a teacher"
            )

    @property
    def reads_pairs(self) -> bool:
        """Whether tables of stage ``link_pairs`` are read."""
        return self.logit > 0 or self.query > 0

    @property
    def reads_maps(self) -> bool:
        """Whether tables of stage ``link_maps`` are read."""
        return self.map > 0

    @property
    def on(self) -> bool:
        """Whether a teacher is read at all."""
        return self.reads_pairs or self.reads_maps

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are read."""
        return (*(self.pairs if self.reads_pairs else ()), *(self.maps if self.reads_maps else ()))


@settings
class ImageLabelLossConfig:
    """Weights and shapes of the losses on image-level labels:
    ``contrastive * L_nce + mil * L_mil + relatedness * L_rel``. With ``mil`` and ``relatedness`` 0 only the contrast is left.
    """

    contrastive: NotNegative = 1.0
    """Weight of the contrast between phrases and pairs."""
    mil: NotNegative = 1.0
    """Weight of the multiple-instance loss."""
    relatedness: NotNegative = 0.1
    """Weight of the relatedness loss."""
    attention_temperature: Positive = 0.1
    """Temperature of a phrase's attention to the pairs."""
    temperature: Positive = 0.07
    """Where the learnt temperature of the contrast starts."""
    mil_alpha: Fraction = 0.25
    """Balance of positives and negatives in the multiple-instance loss (RegFormer)."""
    mil_gamma: NotNegative = 2.0
    """Exponent of the focal factor in the multiple-instance loss (RegFormer)."""
