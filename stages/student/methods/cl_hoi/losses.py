"""What teaches a student in the CL-HOI style: symmetric contrast of contexts, phrase attention, and two image-level terms.

That the losses are contrastive is CL-HOI's; their form here is ours, after CLIP (Radford et al. 2021; global contrast), FILIP
(Yao et al. 2022; late interaction), RegFormer (smooth-max multiple-instance term) and PGBL (self-taught relatedness). All in
float32 and finite for a batch without a pair, a positive or a second picture.

Shape legend: B pictures, N texts of which the first B are the pictures' own, Q tokens, J sentences, T text width, P pairs,
E candidates (pair, class) that a pair's object allows, G groups (picture, class), H interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.student.training.processes import ALONE, Processes, mean_of

if TYPE_CHECKING:
    from hoi_distill.stages.student.pairs.regions import Candidates
    from hoi_distill.stages.student.pairs.terms import Phrases

LEAST_TEMPERATURE = 0.01


def temperature_of(log_temperature: Tensor) -> Tensor:
    """A learnt temperature, kept at or above 0.01."""
    return log_temperature.exp().clamp(min=LEAST_TEMPERATURE)


def late_similarity(phrases: Tensor, sentences: Tensor, text: Tensor, texts: int) -> Tensor:
    """Each text's sentences find their closest token, and are averaged: float ``[B, N]`` (FILIP's text-to-image side).

    Args:
        phrases: float ``[B, Q, T]`` tokens of the pictures.
        sentences: float ``[J, T]`` of all texts.
        text: int64 ``[J]``, the text of each sentence. Every text has one.
        texts: N.
    """
    closest = (phrases @ sentences.T).amax(1)  # [B, J]
    total = closest.new_zeros(len(phrases), texts).index_add(1, text, closest)
    return total / torch.bincount(text, minlength=texts).clamp(min=1)


def symmetric_nce(similarity: Tensor, same: Tensor) -> Tensor:
    """Contrast of each picture with all texts and of each of its texts with all pictures, averaged: a scalar.

    ``-1/2 * mean_i [log softmax_j S(i, j) at j = i + log softmax_j S(j, i) at j = i]``. Texts without a picture (a queue of
    earlier ones) are negatives of pictures alone.

    Args:
        similarity: float ``[B, N]`` over temperature, N >= B; text i < B is picture i's own.
        same: bool ``[B, N]``, pairs that are no negatives of each other; its diagonal is not looked at.
    """
    own = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    contrasted = similarity.float().masked_fill(same & ~own, -torch.inf)
    pictures = contrasted[:, : len(contrasted)]
    found = contrasted.log_softmax(1).diagonal() + pictures.log_softmax(0).diagonal()
    return -0.5 * found.mean() if len(found) else similarity.sum() * 0


def same_sets(positive: Tensor, others: Tensor) -> Tensor:
    """bool ``[B, N]``: whether two pictures show the same interactions, of which they show at least one.

    Args:
        positive: bool ``[B, H]``, what pictures show. Two of which nothing is said may well differ.
        others: bool ``[N, H]``, what the pictures show that they are compared with.
    """
    a, b = positive.float(), others.float()
    common, sizes, other_sizes = a @ b.T, a.sum(1)[:, None], b.sum(1)[None]
    return (common == sizes) & (common == other_sizes) & (sizes > 0)


def context_loss(
    phrases: Tensor, whole: Tensor, sentences: Tensor, text: Tensor, *, same: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Stage 1's terms, the global and the late contrast: two scalars.

    Args:
        phrases: float ``[B, Q, T]`` of length 1, tokens of the pictures.
        whole: float ``[B, T]`` of length 1, the pictures as wholes.
        sentences: float ``[J, T]`` of length 1, of N texts.
        text: int64 ``[J]``, the text of each sentence.
        same: bool ``[B, N]``, pairs that are no negatives of each other.
        temperature: scalar, of both contrasts.
    """
    texts = same.shape[1]
    mean = F.normalize(sentences.new_zeros(texts, sentences.shape[1]).index_add(0, text, sentences), dim=1)
    late = late_similarity(phrases, sentences, text, texts)
    return symmetric_nce(whole @ mean.T / temperature, same), symmetric_nce(late / temperature, same)


@dataclass
class LabelBatch:
    """Image-level labels of B images.

    Attributes:
        target: float32 ``[B, H]`` in 0 to 1.
        kind: int8 ``[B, H]``: 1 positive, 0 negative, -1 ignored.
        weight: float32 ``[B, H]``.
    """

    target: Tensor
    kind: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> LabelBatch:
        """The same on another device."""
        return LabelBatch(self.target.to(device), self.kind.to(device), self.weight.to(device))


def phrase_loss(
    phrases: Phrases,
    candidates: Candidates,
    labels: LabelBatch,
    *,
    log_trust: Tensor,
    temperature: Tensor,
    attention_temperature: float,
    processes: Processes = ALONE,
) -> Tensor:
    """Interaction distillation: each positive phrase attends to the pairs that may show it, and what it finds is contrasted
    with the image's negatives. Positives that no pair's object allows are skipped.

    ``a = softmax_{p in P_k}(cos(look_p, w_k) / t_a + log trust_p)``, ``v_k = sum_p a_p look_p``, and
    ``-1 / sum(t_k) * sum_k t_k log [exp(cos(v_k, w_k) / t) / sum_{c in k, negatives} omega_c exp(cos(v_k, w_c) / t)]``.

    Args:
        phrases: pairs and interactions in text space.
        candidates: the candidates of the batch.
        labels: the image-level labels.
        log_trust: float ``[P]``, ``log(r * s_h * s_o)``.
        temperature: scalar t.
        attention_temperature: t_a.
        processes: the processes that share the global batch; the sum is divided by their count.

    Returns:
        A scalar; 0 where all positives are skipped.
    """
    look, classes = phrases.look, phrases.classes
    positive = candidates.where(labels.kind[candidates.image, candidates.hoi] == 1)
    pair, hoi = positive.pair, positive.hoi
    unit = F.normalize(look, dim=1)
    attention = (unit[pair] * classes[hoi]).sum(1) / attention_temperature + log_trust[pair]
    group, member = torch.unique(positive.image * len(classes) + hoi, return_inverse=True)
    attended = segment_softmax(attention, member, len(group))
    found = look.new_zeros(len(group), look.shape[1]).index_add(0, member, attended[:, None] * look[pair])
    image, own = group // len(classes), group % len(classes)
    contrast = F.normalize(found, dim=1) @ classes.T / temperature
    omega = torch.where(labels.kind[image] == 0, labels.weight[image], 0.0).scatter(1, own[:, None], 1.0)
    # a weight of 0 is no negative at all
    logits = (contrast + omega.clamp(min=1e-30).log()).masked_fill(omega == 0, -torch.inf)
    importance = labels.target[image, own]
    found_log = logits.log_softmax(1).gather(1, own[:, None])[:, 0]
    return -(importance * found_log).sum() / processes.share(importance.sum(), 1e-6)


def segment_softmax(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Softmax of float ``[E]`` within each group (int64 ``[E]``)."""
    top = x.new_full((groups,), -torch.inf).scatter_reduce(0, group, x.detach(), "amax")
    grown = (x - top[group]).exp()
    return grown / grown.new_zeros(groups).index_add(0, group, grown)[group]


def smooth_max(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """``log mean exp`` of float ``[E]`` within each group (int64 ``[E]``): float ``[groups]``. Every group has a member."""
    top = x.new_full((groups,), -torch.inf).scatter_reduce(0, group, x.detach(), "amax")
    total = x.new_zeros(groups).index_add(0, group, (x - top[group]).exp())
    return top + (total / torch.bincount(group, minlength=groups)).log()


def mil_loss(
    logit: Tensor,
    log_r: Tensor,
    candidates: Candidates,
    labels: LabelBatch,
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
        log_r: float ``[P]``, logarithm of the pairs' interactiveness.
        candidates: the candidates of the batch.
        labels: the image-level labels.
        alpha: balance of positives and negatives.
        gamma: exponent of the focal factor.
        processes: the processes that share the global batch.

    Returns:
        A scalar, over the number of positives, at least 1.
    """
    counted = labels.kind[candidates.image, candidates.hoi] >= 0
    known = candidates.where(counted)
    group, member = torch.unique(known.image * labels.kind.shape[1] + known.hoi, return_inverse=True)
    q = smooth_max(logit[counted] + log_r[known.pair], member, len(group))
    t, positive = labels.target.flatten()[group], labels.kind.flatten()[group] == 1
    balance = t * alpha + (1 - t) * (1 - alpha)
    error = ((t - q.sigmoid()).abs() + 1e-6) ** gamma
    terms = balance * error * F.binary_cross_entropy_with_logits(q, t, reduction="none")
    return (labels.weight.flatten()[group] * terms).sum() / processes.share(positive.sum())


def relatedness_loss(
    logit: Tensor, log_r: Tensor, candidates: Candidates, kind: Tensor, processes: Processes = ALONE
) -> Tensor:
    """Self-taught relatedness: r of a pair is to equal the probability of its most likely positive interaction, as it stands.

    Pairs whose object allows no positive interaction are to have r = 0, unless it allows an ignored one: that pair does not
    count.

    Args:
        logit: float ``[N]`` interaction logits z of the candidates.
        log_r: float ``[P]``, logarithm of the pairs' interactiveness.
        candidates: the candidates of the batch.
        kind: int ``[B, H]``, see :class:`LabelBatch`.
        processes: the processes that share the global batch.

    Returns:
        A scalar.
    """
    of_candidate = kind[candidates.image, candidates.hoi]
    likely = torch.where(of_candidate == 1, logit.detach().sigmoid(), 0.0)
    most = log_r.new_zeros(len(log_r)).scatter_reduce(0, candidates.pair, likely, "amax")
    positive, unknown = (
        log_r.new_zeros(len(log_r)).index_add(0, candidates.pair, (of_candidate == value).to(log_r)) > 0
        for value in (1, -1)
    )
    counted = positive | ~unknown
    r = log_r[counted]
    absent = torch.log(-torch.expm1(r.clamp(max=-1e-6)))
    terms = -(most[counted] * r + (1 - most[counted]) * absent)
    return mean_of(terms, processes)
