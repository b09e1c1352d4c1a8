"""Supervision terms. A student of pairs is a network and a list of terms.

A term names the tables that it reads, makes its targets for a batch of images, and computes its losses from the network's output.
Any network can take any term, provided that its output has what the term uses. All terms use the logits of candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from hoi_distill.stages.student.pairs.instances import ImageInstances
from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.pairs.regions import Candidates, Regions
from hoi_distill.stages.student.training.processes import ALONE, Processes


class TextSpace(NamedTuple):
    """Pairs and interactions in the space of a text encoder.

    Attributes:
        pairs: float ``[P, T]`` embeddings of the pairs.
        classes: float ``[H, T]`` embeddings of the interactions' prompts, of length 1.
        log_temperature: scalar, logarithm of the temperature at which they are contrasted.
    """

    pairs: Tensor
    classes: Tensor
    log_temperature: Tensor


class PairOutput(NamedTuple):
    """What a network answers on a batch of B images with I instances and P pairs. The last decoder layer is the answer.

    Attributes:
        logits: float ``[Ld, P, H]``, interaction logits O of every pair and interaction; the prior masks them later.
        unary: float ``[Le, I, D]``, tokens of the instances after each encoder layer.
        pairs: float ``[Ld, P, E]``, tokens of the pairs after each decoder layer.
        latent: float ``[B, D, h, w]``, the feature map as the decoder gets it.
        log_r: float ``[P]``, logarithm of the probability that a pair interacts at all.
        text_space: pairs and interactions in the space of a text encoder.
    """

    logits: Tensor
    unary: Tensor | None = None
    pairs: Tensor | None = None
    latent: Tensor | None = None
    log_r: Tensor | None = None
    text_space: TextSpace | None = None


@dataclass(frozen=True)
class BatchImages:
    """The images of a batch before they become tensors on a device.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        instances: the instances, pairs and annotations of each image.
        regions: what the network reads of them, on the CPU.
        candidates: their candidates, on the CPU.
        cells: for each image the cell of every table that a term reads by view, by table.
    """

    rows: np.ndarray
    instances: Sequence[ImageInstances]
    regions: Regions
    candidates: Candidates
    cells: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Predictions:
    """A network's output on the N candidates of a batch.

    Attributes:
        output: the network's output.
        regions: the batch.
        candidates: its candidates.
        processes: the processes that share the global batch.
    """

    output: PairOutput
    regions: Regions
    candidates: Candidates
    processes: Processes = ALONE

    @cached_property
    def logit(self) -> Tensor:
        """float ``[Ld, N]``, interaction logits."""
        return self.output.logits[:, self.candidates.pair, self.candidates.hoi]

    @cached_property
    def final(self) -> Tensor:
        """float32 ``[Ld, N]``, logits of the final detection probability ``P * sigmoid(O)``, times r if there is one."""
        prior = self.candidates.prior
        if self.output.log_r is not None:
            prior = (prior * self.output.log_r[self.candidates.pair].exp()).clamp(max=1 - 1e-6)
        return final_logit(self.logit, prior)


@dataclass(frozen=True)
class Supervision:
    """What a network of pairs learns from.

    Attributes:
        terms: the supervision terms.
        valid: bool ``[objects, H]`` on the CPU, the interactions that an object allows in training.

    Raises:
        ValueError: two terms have one name, under which a batch has the targets of one alone.
    """

    terms: Sequence[Term]
    valid: Tensor

    def __post_init__(self) -> None:
        for place, term in enumerate(self.terms):
            if any(term.name == other.name for other in self.terms[:place]):
                raise ValueError(
                    f"supervision terms: two are named {term.name!r}; give one, as a subclass, a `name` of its own"
                )


class WeightedLoss(NamedTuple):
    """One loss of a term.

    Attributes:
        name: its name in the log, after ``loss/``.
        weight: its factor in the total; with ``share`` the norm that its gradient shall have.
        value: the loss, unweighted, a scalar.
        at: parts of the network's output at which its gradient is compared with that of the losses that name none.
        share: whether ``weight`` is the share of the norm of that gradient, at each step.
    """

    name: str
    weight: float
    value: Tensor
    at: tuple[Tensor, ...] = ()
    share: bool = False


class Term(ABC):
    """One source of supervision.

    Attributes:
        name: key of its targets in a batch. Each term of a training has another one.
        view_tables: tables of which each image's cell of the drawn view is read with the batch.
        view_rows: bool ``[N]`` of the training set, the images whose cells are read; others have None; default: all.
    """

    name: ClassVar[str]
    view_tables: tuple[str, ...] = ()
    view_rows: np.ndarray | None = None

    @abstractmethod
    def targets(self, batch: BatchImages) -> Any:
        """The targets of a batch on the CPU.

        Which candidates count belongs to the targets, as positions. A mask on the device would make the host wait.

        Returns:
            A tensor, something that has ``to(device)``, or a dataclass, tuple, dict or list of such. The list is empty if
            the term compares with nothing.
        """

    @abstractmethod
    def losses(self, predictions: Predictions, targets: Any, step: int) -> list[WeightedLoss]:
        """The losses of a batch.

        Args:
            predictions: the network's answers.
            targets: what :meth:`targets` made, on the device.
            step: number of the training step, from 0.
        """
