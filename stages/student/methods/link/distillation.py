"""Dense distillation from phase-1 teachers: every candidate pair at the levels of logits, queries and maps (LINK, section 3).

``KD(f_s, f_t) = KL(softmax(f_t / tau) || softmax(f_s / tau))`` over the channels of a query or of a map's cell, and on the
logit Psi of the final probability a Bernoulli divergence per entry or a softmax over the pair's classes. All in float32.

Where teacher and student differ, the teacher is resized: its layers and channels linearly, its grid bilinearly, all with
half-pixel centres and without anti-aliasing (so two teacher layers average into one, and equal sizes are left as they are).

Shapes: B pictures, I instances, P pairs, N candidates (pair, class) with prior P > 0, Le encoder and Ld decoder layers,
D unary and latent width, E pair width (of the teacher: Dt, Et), H interactions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.keys import NotNegative, Positive, settings
from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.training.processes import ALONE, Processes, mean_of
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.student.pairs.regions import Candidates, Regions
    from hoi_distill.stages.student.pairs.terms import PairOutput


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
    """Distil on pictures without annotations too."""

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


@dataclass
class Taught:
    """What one teacher said of a batch, aligned with its regions; None for what is not distilled.

    Attributes:
        has: bool ``[B]``, the pictures that the teacher answered; of the others the values mean nothing.
        entry_logits: float ``[N]`` interaction logits O of the batch's candidates.
        unary: float ``[Le, I, Dt]`` unary queries after each encoder layer.
        pairs: float ``[Ld, P, Et]`` pair queries after each decoder layer.
        latent: float ``[B, Dt, ht, wt]`` latent maps.
    """

    has: Tensor
    entry_logits: Tensor | None = None
    unary: Tensor | None = None
    pairs: Tensor | None = None
    latent: Tensor | None = None

    def to(self, device: torch.device) -> Taught:
        """The same on another device."""
        rest = (self.entry_logits, self.unary, self.pairs, self.latent)
        return Taught(self.has.to(device), *(None if value is None else value.to(device) for value in rest))


def kd_terms(
    output: PairOutput,
    taught: Sequence[Taught],
    regions: Regions,
    candidates: Candidates,
    *,
    seen: Tensor,
    config: KdConfig,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """The terms of positive weight by name (``logit``, ``query``, ``map``), unweighted, averaged over the teachers.

    A term is exactly 0 where the student answers what its teachers answer, and where there is nothing to distil. Gradients
    reach the student only.

    Args:
        output: the student's output.
        taught: what each teacher answered.
        regions: the batch.
        candidates: N candidates.
        seen: bool ``[H]``; candidates of unseen interactions do not count.
        config: what is distilled.
        processes: the processes that share the global batch, over which terms are averaged.

    Returns:
        float32 scalars.
    """
    terms: dict[str, Tensor] = {}
    if not taught:
        return terms
    if config.logit > 0:
        student, each = output.logits[-1][candidates.pair, candidates.hoi], []
        for one in taught:
            assert one.entry_logits is not None
            kept = seen[candidates.hoi] & one.has[candidates.image]
            each.append(_logit(student[kept], one.entry_logits[kept], candidates.where(kept), config, processes))
        terms["logit"] = _mean(each)
    if config.query > 0:
        terms["query"] = _mean([_query(output, one, regions, config.temperature, processes) for one in taught])
    if config.map > 0:
        terms["map"] = _mean([_map(output, one, config.temperature, processes) for one in taught])
    factor = config.temperature**2 if config.tau_squared else 1.0
    return {name: factor * term for name, term in terms.items()}


def _logit(student: Tensor, teacher: Tensor, candidates: Candidates, config: KdConfig, processes: Processes) -> Tensor:
    """Of the candidates that count: interaction logits ``[N]`` of both."""
    pair = candidates.pair
    student, teacher = (
        final_logit(logits, candidates.prior) / config.temperature for logits in (student, teacher.detach())
    )
    if config.logit_form == "bernoulli":
        return mean_of(bernoulli_divergence(teacher, student), processes)
    return mean_of(divergence(by_pair(teacher, pair), by_pair(student, pair)), processes)


def _query(output: PairOutput, one: Taught, regions: Regions, temperature: float, processes: Processes) -> Tensor:
    assert one.unary is not None
    assert one.pairs is not None
    assert output.unary is not None, "the network has no tokens of instances"
    assert output.pairs is not None, "the network has no tokens of pairs"
    instances, pairs = one.has[regions.picture], one.has[regions.pair_picture]
    encoder = _tokens(output.unary[:, instances], one.unary[:, instances], temperature, processes)
    return encoder + _tokens(output.pairs[:, pairs], one.pairs[:, pairs], temperature, processes)


def _tokens(student_LND: Tensor, teacher_LND: Tensor, temperature: float, processes: Processes) -> Tensor:
    teacher = matched(teacher_LND[None], student_LND.shape)[0]
    return mean_of(divergence(teacher, student_LND.float(), temperature), processes)


def _map(output: PairOutput, one: Taught, temperature: float, processes: Processes) -> Tensor:
    assert one.latent is not None
    assert output.latent is not None, "the network has no latent map"
    student_BDhw = output.latent[one.has]
    teacher = matched(one.latent[one.has], student_BDhw.shape[1:])
    return mean_of(divergence(teacher.movedim(1, -1), student_BDhw.movedim(1, -1).float(), temperature), processes)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax(teacher / tau) || softmax(student / tau))`` over the last axis: float ``[..., K]`` to ``[...]``.

    Logits of -inf are classes that neither has.
    """
    teacher, student = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
    absent = teacher.isneginf()
    return F.kl_div(
        student.masked_fill(absent, 0), teacher.masked_fill(absent, 0), reduction="none", log_target=True
    ).sum(-1)


def bernoulli_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """``KL(Bernoulli(sigmoid(teacher)) || Bernoulli(sigmoid(student)))``, elementwise on logits."""
    present = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    absent = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return present + absent


def by_pair(values: Tensor, pair: Tensor) -> Tensor:
    """Values ``[N]`` of candidates, one row a pair: ``[pairs, K]``, padded with -inf. ``pair``: int64 ``[N]``, rising."""
    _, row, counts = torch.unique_consecutive(pair, return_inverse=True, return_counts=True)
    column = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[row]
    table = values.new_full((len(counts), int(counts.max()) if len(counts) else 1), -math.inf)
    return table.index_put((row, column), values)


@torch.no_grad()
def matched(teacher: Tensor, size: Sequence[int]) -> Tensor:
    """The teacher's values ``[B, *any three]`` at the student's three sizes, by trilinear interpolation. float32."""
    size = tuple(size)
    if teacher.shape[1:] == size or teacher.numel() == 0:
        return teacher.detach().float().reshape(len(teacher), *size)
    return F.interpolate(teacher.detach().float()[:, None], size, mode="trilinear", align_corners=False)[:, 0]


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).mean()
