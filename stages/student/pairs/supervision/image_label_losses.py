"""Losses on image-level labels: phrase attention, a multiple-instance loss and self-taught relatedness.

That interactions are distilled by contrast is CL-HOI's. The form of the losses is ours, after FILIP (Yao et al. 2022), RegFormer
(smooth-max multiple-instance loss) and PGBL (self-taught relatedness). All are computed in float32 and are finite for a batch
without a pair or a positive.

Shape legend: B images, T text width, P pairs, N candidates (pair, interaction) that a pair's object allows, G groups (image,
interaction), H interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.data.label_kinds import IGNORED, POSITIVE
from hoi_distill.stages.student.pairs.regions import Candidates, Groups, positions_of
from hoi_distill.stages.student.pairs.terms import TextSpace
from hoi_distill.stages.student.training.processes import ALONE, Processes, mean_of

LEAST_TEMPERATURE = 0.01


def temperature_of(log_temperature: Tensor) -> Tensor:
    """A learnt temperature, kept at or above 0.01."""
    return log_temperature.exp().clamp(min=LEAST_TEMPERATURE)


@dataclass
class ImageLabelBatch:
    """Image-level labels of B images, and which candidates they speak of.

    Attributes:
        target: float32 ``[B, H]`` in 0 to 1, how surely an image shows an interaction.
        kind: int8 ``[B, H]``: 1 positive, 0 negative, -1 ignored.
        weight: float32 ``[B, H]`` of each label in a loss.
        positive: the candidates whose label is positive.
        known: the candidates whose label is not ignored.
        related: int64, rising, the pairs whose relatedness is known, see :func:`relatedness_loss`.
    """

    target: Tensor
    kind: Tensor
    weight: Tensor
    positive: Groups
    known: Groups
    related: Tensor

    @classmethod
    def of(cls, target: Tensor, kind: Tensor, weight: Tensor, *, candidates: Candidates, pairs: int) -> ImageLabelBatch:
        """Those of a batch on the CPU.

        Args:
            target: see above.
            kind: see above.
            weight: see above.
            candidates: the batch's candidates.
            pairs: P.
        """
        of_candidate = kind[candidates.image, candidates.hoi]
        found, known = (
            Groups.of(candidates, mask, kind.shape[1]) for mask in (of_candidate == POSITIVE, of_candidate != IGNORED)
        )
        positive, ignored = (
            torch.zeros(pairs, dtype=torch.bool).index_fill(0, candidates.pair[of_candidate == value], True)  # noqa: FBT003
            for value in (POSITIVE, IGNORED)
        )
        return cls(target, kind, weight, found, known, positions_of(positive | ~ignored))


def phrase_loss(
    space: TextSpace,
    candidates: Candidates,
    labels: ImageLabelBatch,
    *,
    log_trust: Tensor,
    temperature: Tensor,
    attention_temperature: float,
    processes: Processes = ALONE,
) -> Tensor:
    """Interaction distillation: each positive phrase attends to the pairs that may show it. What it attends to is contrasted
    with the image's negatives. Positives that no pair's object allows are skipped.

    ``a = softmax_{p in P_k}(cos(e_p, w_k) / t_a + log trust_p)``, ``v_k = sum_p a_p e_p``, and
    ``-1 / sum(t_k) * sum_k t_k log [exp(cos(v_k, w_k) / t) / sum_{c in k, negatives} omega_c exp(cos(v_k, w_c) / t)]``.

    Args:
        space: pairs e and interactions w in text space.
        candidates: the candidates of the batch.
        labels: the image-level labels.
        log_trust: float ``[P]``, ``log(r * s_h * s_o)``.
        temperature: scalar t.
        attention_temperature: t_a.
        processes: the processes that share the global batch; the sum is divided by their count.

    Returns:
        A scalar; 0 where all positives are skipped.
    """
    embeddings, classes = space.pairs, space.classes
    groups = labels.positive
    positive = candidates.where(groups.positions)
    pair, hoi = positive.pair, positive.hoi
    unit = F.normalize(embeddings, dim=1)
    attention = (unit[pair] * classes[hoi]).sum(1) / attention_temperature + log_trust[pair]
    attended = segment_softmax(attention, groups.member, len(groups))
    found = embeddings.new_zeros(len(groups), embeddings.shape[1]).index_add(
        0, groups.member, attended[:, None] * embeddings[pair]
    )
    image, own = groups.image, groups.hoi
    contrast = F.normalize(found, dim=1) @ classes.T / temperature
    omega = torch.where(labels.kind[image] == 0, labels.weight[image], 0.0).scatter(1, own[:, None], 1.0)
    # a weight of 0 is no negative at all
    logits = (contrast + omega.clamp(min=1e-30).log()).masked_fill(omega == 0, -torch.inf)
    importance = labels.target[image, own]
    found_log = logits.log_softmax(1).gather(1, own[:, None])[:, 0]
    return -(importance * found_log).sum() / processes.normaliser(importance.sum(), 1e-6)


def segment_softmax(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Softmax of float ``[N]`` within each group (int64 ``[N]``)."""
    top = x.new_full((groups,), -torch.inf).scatter_reduce(0, group, x.detach(), "amax")
    grown = (x - top[group]).exp()
    return grown / grown.new_zeros(groups).index_add(0, group, grown)[group]


def smooth_max(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """``log mean exp`` of float ``[N]`` within each group (int64 ``[N]``): float ``[groups]``. Every group has a member."""
    top = x.new_full((groups,), -torch.inf).scatter_reduce(0, group, x.detach(), "amax")
    total = x.new_zeros(groups).index_add(0, group, (x - top[group]).exp())
    members = x.new_zeros(groups).index_add(0, group, torch.ones_like(x))
    return top + (total / members).log()


def mil_loss(
    logit: Tensor,
    log_r: Tensor,
    candidates: Candidates,
    labels: ImageLabelBatch,
    *,
    alpha: float,
    gamma: float,
    processes: Processes = ALONE,
) -> Tensor:
    """Image-level multiple-instance loss: focal cross-entropy between the smooth maximum over an interaction's pairs and the
    image's target. Ignored interactions and those without a pair do not count.

    The focal factor of a soft target t is ``(t alpha + (1 - t)(1 - alpha)) |t - sigmoid(q)|^gamma``.

    Args:
        logit: float ``[N]`` interaction logits z of the candidates.
        log_r: float ``[P]``, logarithm of the pairs' interactiveness r.
        candidates: the candidates of the batch.
        labels: the image-level labels.
        alpha: balance of positives and negatives.
        gamma: exponent of the focal factor.
        processes: the processes that share the global batch.

    Returns:
        A scalar, over the number of positives, at least 1.
    """
    groups = labels.known
    of_pair = log_r[candidates.pair[groups.positions]]
    q = smooth_max(logit[groups.positions] + of_pair, groups.member, len(groups))
    t, positive = labels.target[groups.image, groups.hoi], labels.kind[groups.image, groups.hoi] == POSITIVE
    balance = t * alpha + (1 - t) * (1 - alpha)
    error = ((t - q.sigmoid()).abs() + 1e-6) ** gamma
    terms = balance * error * F.binary_cross_entropy_with_logits(q, t, reduction="none")
    return (labels.weight[groups.image, groups.hoi] * terms).sum() / processes.normaliser(positive.sum())


def relatedness_loss(
    logit: Tensor, log_r: Tensor, candidates: Candidates, labels: ImageLabelBatch, processes: Processes = ALONE
) -> Tensor:
    """Self-taught relatedness: r of a pair is to equal the probability of its most likely positive interaction, as it stands.

    Pairs whose object allows no positive interaction are to have r = 0, unless it allows an ignored one: that pair does not
    count.

    Args:
        logit: float ``[N]`` interaction logits z of the candidates.
        log_r: float ``[P]``, logarithm of the pairs' interactiveness r.
        candidates: the candidates of the batch.
        labels: the image-level labels.
        processes: the processes that share the global batch.

    Returns:
        A scalar.
    """
    positive = labels.kind[candidates.image, candidates.hoi] == POSITIVE
    likely = torch.where(positive, logit.detach().sigmoid(), 0.0)
    most = log_r.new_zeros(len(log_r)).scatter_reduce(0, candidates.pair, likely, "amax")[labels.related]
    r = log_r[labels.related]
    absent = torch.log(-torch.expm1(r.clamp(max=-1e-6)))
    terms = -(most * r + (1 - most) * absent)
    return mean_of(terms, processes)
