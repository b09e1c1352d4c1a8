"""Losses of dense distillation: every candidate at the levels of logits, queries and maps (LINK, section 3).

``KD(f_s, f_t) = KL(softmax(f_t / tau) || softmax(f_s / tau))`` over the channels of a query or of a map's cell. On the final
probability's logit Psi it is a Bernoulli divergence of each candidate, or a softmax over the pair's classes. All in float32.

Where the shapes differ, the teacher's values are resized: layers and channels linearly, the grid bilinearly, all with
half-pixel centres and without anti-aliasing. Two teacher layers average into one; equal sizes stay as they are.

Shapes: B images, I instances, P pairs, N candidates (pair, class) with prior P > 0, Le encoder and Ld decoder layers,
D unary and latent width, E pair width (of the teacher: Dt, Et), H interactions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.pairs.regions import Candidates, Regions, positions_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.terms import PairOutput
from hoi_distill.stages.student.training.processes import ALONE, Processes, mean_of


@dataclass
class TeacherOutputs:
    """One teacher's outputs on a batch, in the order of its regions; None for a level that is not distilled.

    Attributes:
        has: bool ``[B]``, the images that the teacher has answered. Values of the other images mean nothing.
        logits: float ``[N]`` interaction logits O of the batch's candidates.
        unary: float ``[Le, I, Dt]`` unary queries after each encoder layer.
        pairs: float ``[Ld, P, Et]`` pair queries after each decoder layer.
        latent: float ``[B, Dt, ht, wt]`` latent maps.
    """

    has: Tensor
    logits: Tensor | None = None
    unary: Tensor | None = None
    pairs: Tensor | None = None
    latent: Tensor | None = None


@dataclass(frozen=True)
class ByPair:
    """Where candidates stand in a table that has one row a pair and room for the pair with the most.

    Attributes:
        row: int64 ``[N]``.
        column: int64 ``[N]``.
        shape: rows and columns of the table.
    """

    row: Tensor
    column: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, pair: Tensor) -> ByPair:
        """The places of candidates by their pairs, int64 ``[N]``, rising, on the CPU."""
        _, row, counts = torch.unique_consecutive(pair, return_inverse=True, return_counts=True)
        column = torch.arange(len(pair)) - (counts.cumsum(0) - counts)[row]
        return cls(row, column, (len(counts), int(counts.max()) if len(counts) else 1))

    def table(self, values: Tensor) -> Tensor:
        """Values ``[N]`` of the candidates as a table, padded with -inf."""
        return values.new_full(self.shape, -math.inf).index_put((self.row, self.column), values)


@dataclass(frozen=True)
class Answered:
    """What one teacher has answered of a batch: int64 positions, rising.

    Attributes:
        images: ``[b]`` among the images.
        instances: ``[i]`` among the instances.
        pairs: ``[p]`` among the pairs.
        candidates: ``[n]`` among the candidates, seen ones only.
        by_pair: where these n stand in a table of one row a pair.
    """

    images: Tensor
    instances: Tensor
    pairs: Tensor
    candidates: Tensor
    by_pair: ByPair

    @classmethod
    def of(cls, has: Tensor, regions: Regions, candidates: Candidates, seen: Tensor) -> Answered:
        """Of a batch on the CPU.

        Args:
            has: bool ``[B]``, the images that the teacher has answered.
            regions: the batch.
            candidates: its candidates.
            seen: bool ``[H]``; candidates of unseen interactions do not count.
        """
        kept = positions_of(seen[candidates.hoi] & has[candidates.image])
        instances, pairs = (positions_of(has[image]) for image in (regions.image, regions.pair_image))
        return cls(positions_of(has), instances, pairs, kept, ByPair.of(candidates.pair[kept]))


def distillation_losses(
    output: PairOutput,
    teachers: Sequence[TeacherOutputs],
    answered: Sequence[Answered],
    candidates: Candidates,
    *,
    config: KdConfig,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """The losses of positive weight by name (``logit``, ``query``, ``map``), unweighted, averaged over the teachers.

    A loss is exactly 0 where the student's output equals its teachers', and where there is nothing to distil. Gradients
    reach the student only.

    Args:
        output: the student's output.
        teachers: each teacher's outputs.
        answered: what each teacher has answered.
        candidates: N candidates.
        config: what is distilled.
        processes: the processes that share the global batch, over which losses are averaged.

    Returns:
        float32 scalars.
    """
    losses: dict[str, Tensor] = {}
    if not teachers:
        return losses
    taught = list(zip(teachers, answered, strict=True))
    if config.logit > 0:
        student = output.logits[-1][candidates.pair, candidates.hoi]
        losses["logit"] = _mean(
            [_logit(student, *each, candidates=candidates, config=config, processes=processes) for each in taught]
        )
    if config.query > 0:
        losses["query"] = _mean([_query(output, *each, config.temperature, processes) for each in taught])
    if config.map > 0:
        losses["map"] = _mean([_map(output, *each, config.temperature, processes) for each in taught])
    factor = config.temperature**2 if config.tau_squared else 1.0
    return {name: factor * loss for name, loss in losses.items()}


def _logit(
    logits: Tensor,
    outputs: TeacherOutputs,
    answered: Answered,
    *,
    candidates: Candidates,
    config: KdConfig,
    processes: Processes,
) -> Tensor:
    """``logits``: ``[N]``, the student's interaction logits of all candidates."""
    assert outputs.logits is not None
    prior = candidates.prior[answered.candidates]
    student, teacher = (
        final_logit(each[answered.candidates], prior) / config.temperature for each in (logits, outputs.logits.detach())
    )
    if config.logit_form == "bernoulli":
        return mean_of(bernoulli_divergence(teacher, student), processes)
    table = answered.by_pair.table
    return mean_of(divergence(table(teacher), table(student)), processes)


def _query(
    output: PairOutput, teacher: TeacherOutputs, answered: Answered, temperature: float, processes: Processes
) -> Tensor:
    assert teacher.unary is not None
    assert teacher.pairs is not None
    assert output.unary is not None, "the network has no tokens of instances"
    assert output.pairs is not None, "the network has no tokens of pairs"
    instances, pairs = answered.instances, answered.pairs
    encoder = _tokens(output.unary[:, instances], teacher.unary[:, instances], temperature, processes)
    return encoder + _tokens(output.pairs[:, pairs], teacher.pairs[:, pairs], temperature, processes)


def _tokens(student_LND: Tensor, teacher_LND: Tensor, temperature: float, processes: Processes) -> Tensor:
    resized = matched(teacher_LND[None], student_LND.shape)[0]
    return mean_of(divergence(resized, student_LND.float(), temperature), processes)


def _map(
    output: PairOutput, teacher: TeacherOutputs, answered: Answered, temperature: float, processes: Processes
) -> Tensor:
    assert teacher.latent is not None
    assert output.latent is not None, "the network has no latent map"
    student_BDhw = output.latent[answered.images]
    resized = matched(teacher.latent[answered.images], student_BDhw.shape[1:])
    return mean_of(divergence(resized.movedim(1, -1), student_BDhw.movedim(1, -1).float(), temperature), processes)


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


@torch.no_grad()
def matched(teacher: Tensor, size: Sequence[int]) -> Tensor:
    """The teacher's values ``[B, *any three]`` at the student's three sizes, by trilinear interpolation. float32."""
    size = tuple(size)
    if teacher.shape[1:] == size or teacher.numel() == 0:
        return teacher.detach().float().reshape(len(teacher), *size)
    return F.interpolate(teacher.detach().float()[:, None], size, mode="trilinear", align_corners=False)[:, 0]


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).mean()
