"""Losses that teach verb logits from image-text matching: the families F0 to F4 and F7, and the choice among them.

For a matched query with object o: verbs V that the teacher has scored with o (``no_interaction`` is none of them),
logits z, ``p = sigmoid(z)``, ``pi = softmax_V(z / T)``, annotated verbs ``y``, the teacher's match log-odds m and their
calibration t (:mod:`hoi_distill.stages.student.methods.vlm_hoi.itm_targets`). Every loss is one number a query, float32
or better, to be summed, divided by the number of matched queries (of all processes) and weighted with
:meth:`ItmConfig.weight_at`. A query none of whose annotated verbs is in V (a pair annotated with ``no_interaction``; a
top-k table) is worth 0.

Shapes: Q matched queries, B images, N queries of an image, V verbs, O objects, C classes as in ``itm_targets``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmScores
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig

TINY = 1e-6
"""Added to the base of a power: below an exponent of 1 its slope at 0 is infinite."""


class MatchedQueries(NamedTuple):
    """What the network answers at Q matched queries, and the annotations that they are matched with.

    Annotations that a crop has removed must not be among them.

    Attributes:
        image: int64 ``[Q]``, each query's place in the batch.
        verb_logits: ``[Q, V]`` of any float type.
        verbs: float ``[Q, V]`` in {0, 1}, annotated.
        objects: int64 ``[Q]`` in 0..O (O: no visible object), annotated.
        object_logits: ``[Q, at least O + 1]``, needed for predicted objects only.
    """

    image: Tensor
    verb_logits: Tensor
    verbs: Tensor
    objects: Tensor
    object_logits: Tensor | None = None


def itm_terms(config: ItmConfig, scores: ItmScores, hoi_id: Tensor, queries: MatchedQueries) -> Tensor:
    """The chosen family's loss of each matched query, ``[Q]``; zeros for F2n and F7, whose effect lies elsewhere.

    Args:
        config: the family and its parameters.
        scores: fields ``[B, C]``.
        hoi_id: int64 ``[V, O + 1]`` of the table's columns.
        queries: Q matched queries.
    """
    image, verb_logits, verbs, objects, object_logits = queries
    if config.family in ("F2n", "F7"):
        return verb_logits.new_zeros(len(verb_logits), dtype=torch.float32)
    here = scores.of_verbs(image, objects, hoi_id)
    scored = here.log_odds if config.scores == "raw" else here.soft
    wanted = supervised_verbs(here.soft, verbs)
    if config.object == "predicted":
        if object_logits is None:
            raise ValueError("predicted objects need object_logits")
        everywhere = of_objects(config, scores, image, hoi_id)
        own = objects[:, None] == torch.arange(hoi_id.shape[1], device=objects.device)
        annotated = own[:, :, None] * verbs[:, None]
        cost = costs(config, everywhere, annotated)
        possible = ~torch.isnan(everywhere) & wanted.any(1)[:, None, None]
        return expected_cost_of_objects(object_logits, verb_logits, cost, possible, config.temperature)
    if config.family == "F0":
        return cost_of_argmax(verb_logits, costs(config, scored, verbs), wanted)
    if config.family in ("F1", "F1-literal"):
        return expected_cost(verb_logits, costs(config, scored, verbs), wanted, config.temperature)
    if config.family == "F2":
        return soft_targets(verb_logits, verbs, here.soft, wanted, mixing=config.mixing, gamma=config.gamma)
    if config.family == "F3":
        shape = {"least": config.margin, "slope": config.margin_slope, "limit": config.margin_limit}
        return margins(verb_logits, verbs, here.log_odds, wanted, **shape)
    shape = {"mixing": config.mixing, "temperature": config.temperature, "tau": config.tau}
    return listwise(verb_logits, verbs, here.centred, wanted, **shape)


def unmatched_terms(
    config: ItmConfig,
    scores: ItmScores,
    hoi_id: Tensor,
    image: Tensor,
    *,
    verb_logits: Tensor,
    object_logits: Tensor,
) -> Tensor:
    """F1 of queries without an annotated pair: the expected cost of their predicted triplets that the image's annotations
    lack (Eq. 4's second sum, VLM-HOI).

    Each counts as much as its query shows an object at all, ``1 - q(no object)``. That factor has no gradient: with one the
    cheapest way out would be to predict nothing.

    Args:
        config: family F1 or F1-literal and its parameters.
        scores: fields ``[B, C]``, with ``present``.
        hoi_id: int64 ``[V, O + 1]`` of the table's columns.
        image: int64 ``[U]``, each query's place in the batch.
        verb_logits: ``[U, V]`` of any float type.
        object_logits: ``[U, at least O + 1]``; the last class is "no object".

    Returns:
        ``[U]``, 0 for a query whose image has no such triplet.
    """
    everywhere, present = of_objects(config, scores, image, hoi_id), scores.of_objects(image, hoi_id).present
    assert present is not None
    possible = ~torch.isnan(everywhere) & ~present
    cost = costs(config, everywhere, torch.zeros_like(everywhere))
    shown = 1 - torch.softmax(_full(object_logits), -1)[:, -1].detach()
    return shown * expected_cost_of_objects(object_logits, verb_logits, cost, possible, config.temperature)


def of_objects(config: ItmConfig, scores: ItmScores, image: Tensor, hoi_id: Tensor) -> Tensor:
    """What costs are made of, of every verb with every object: float ``[Q, O + 1, V]``, NaN where there is no score."""
    everywhere = scores.of_objects(image, hoi_id)
    return everywhere.log_odds if config.scores == "raw" else everywhere.soft


def supervised_verbs(values: Tensor, verbs: Tensor) -> Tensor:
    """The verbs of V; none for a query without an annotated verb among them.

    Args:
        values: float ``[Q, V]``, the teacher's scores; NaN where it has none.
        verbs: float ``[Q, V]`` in {0, 1}, annotated.

    Returns:
        bool ``[Q, V]``.
    """
    known = ~torch.isnan(values)
    return known & (known & (verbs > 0)).any(1, keepdim=True)


def costs(config: ItmConfig, soft: Tensor, verbs: Tensor) -> Tensor:
    """What it costs to bet on a verb; NaN where it was not asked. Shapes of ``soft`` and ``verbs`` broadcast.

    Corrected (ours): ``y max(0, alpha - t) + (1 - y)(1 - beta t)``, with ``alpha <= 1 - beta`` never more for an
    annotated verb than for another, and plausible verbs that nobody annotated cost less. Literal (Eq. 4):
    ``y max(0, alpha - t) + (1 - y) t``: an absurd verb with t near 0 is cheaper than an annotated one with t < alpha. With
    ``scores: raw`` m stands in the place of t.
    """
    soft = _full(soft)
    other = 1 - config.beta * soft if config.family == "F1" else soft
    return torch.where(verbs > 0, (config.alpha - soft).clamp(min=0), other)


def cost_of_argmax(verb_logits: Tensor, cost: Tensor, wanted: Tensor) -> Tensor:
    """F0: ``c[argmax_V z]``, ``[Q]``. A table looked up at an argmax: constant in z, its gradient is 0.

    The released code does this through a string and a live teacher, at every query and layer, with z0 as the score.
    Failure: it teaches nothing; a diagnostic.
    """
    best = _only(_full(verb_logits), wanted).argmax(-1, keepdim=True)
    return torch.where(wanted, cost, 0).gather(-1, best).squeeze(-1).detach()


def expected_cost(verb_logits: Tensor, cost: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """F1 (ours): ``L = sum_v pi_v c_v``, the exact expectation of F0's lookup under the student's own choice.

    ``dL/dz_v = pi_v (c_v - L) / T``: sums to 0 over v, so lowering all verbs gains nothing. Failure: vanishes where pi
    is saturated; cannot tell which person acts; verbs compete (harmless if all annotated verbs cost 0).

    Args:
        verb_logits: float ``[..., V]``.
        cost: float ``[..., V]``.
        wanted: bool ``[..., V]``; the three broadcast.
        temperature: T, of the student's softmax.

    Returns:
        ``[...]``, 0 where nothing is wanted.
    """
    choice = torch.softmax(_only(_full(verb_logits) / temperature, wanted), -1)
    known_cost = torch.where(wanted, cost, 0)  # before the product: a NaN behind a mask still reaches the gradient
    return (torch.where(wanted, choice, 0) * known_cost).sum(-1)


def expected_cost_of_objects(
    object_logits: Tensor, verb_logits: Tensor, cost: Tensor, wanted: Tensor, temperature: float = 1.0
) -> Tensor:
    """F1 averaged over predicted objects: ``L = sum_o q_o L_o``, q the softmax over objects that have a wanted verb.

    ``dL/da_o = q_o (L_o - L)``; "no object" gets none. q must be normalised without it: costs are at least 0, so with
    ``p_v q_o`` as it comes the optimum is to predict nothing. Failure: needs every valid column.

    Args:
        object_logits: float ``[Q, >= O + 1]``.
        verb_logits: float ``[Q, V]``.
        cost: float ``[Q, O + 1, V]``.
        wanted: bool ``[Q, O + 1, V]``.
        temperature: T, of the student's softmax over verbs.

    Returns:
        ``[Q]``.
    """
    by_object = expected_cost(verb_logits[:, None], cost, wanted, temperature)
    return expected_cost(object_logits[:, : wanted.shape[1]], by_object, wanted.any(-1))


def soft_targets(
    verb_logits: Tensor, verbs: Tensor, soft: Tensor, wanted: Tensor, *, mixing: float, gamma: float = 0.0
) -> Tensor:
    """F2 (ours): ``sum_V |s - p|^gamma BCE(p, s)`` against ``s = y + (1 - y) lambda t``, ``[Q]``.

    With gamma 0 ``dL/dz = p - s``; the optimum is p = s whatever gamma. Failure: a miscalibrated t raises false
    positives; on the same logits as a hard focal loss the two disagree wherever t > 0.
    """
    target = torch.where(wanted, verbs + (1 - verbs) * mixing * _full(soft), 0)
    logits = _full(verb_logits)
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    if gamma:
        loss = ((target - logits.sigmoid()).abs() + TINY) ** gamma * loss
    return torch.where(wanted, loss, 0).sum(-1)


def negative_weights(config: ItmConfig, soft: Tensor, verbs: Tensor, ramp: float = 1.0) -> Tensor | None:
    """F2' (ours): factors of the verb loss's negative terms, ``1 - lambda t`` where y = 0 and t is known, else 1.

    Implausible verbs are punished as before, plausible unlabelled ones less, none is rewarded. A constant: the teacher
    gets no gradient. Failure: it only removes signal, so it helps no further than labels are incomplete.

    Args:
        config: the family and its parameters.
        soft: float ``[R, V]`` of any rows, matched queries or annotated pairs (:meth:`ItmScores.of_verbs`).
        verbs: float ``[R, V]`` in {0, 1}, annotated.
        ramp: see :meth:`ItmConfig.ramp_at`.

    Returns:
        float32 ``[R, V]`` without gradient; None for other families and weight 0, whose verb loss is the baseline's.
    """
    share = config.mixing * config.weight * ramp
    if config.family != "F2n" or share == 0:
        return None
    known = supervised_verbs(soft, verbs) & (verbs == 0)
    return torch.where(known, 1 - min(share, 1.0) * soft.detach().float(), 1.0)


def margins(
    verb_logits: Tensor,
    verbs: Tensor,
    log_odds: Tensor,
    wanted: Tensor,
    *,
    least: float = 0.2,
    slope: float = 0.1,
    limit: float = 2.0,
) -> Tensor:
    """F3 (ours): ``sum_{u in Y} sum_{v not in Y} max(0, d_uv - (z_u - z_v))``.

    ``d_uv = d_0 + min(eta max(0, m_u - m_v), limit)``, from the log-odds themselves, without a calibration. The gradient
    is -1 on z_u and +1 on z_v of each pair that falls short; invariant to shifts. Failure: grows with the number of
    verbs; leaves absolute confidence, which ranks images against each other, alone.

    Returns:
        ``[Q]``; memory ``[Q, V, V]``.
    """
    z, m = _full(verb_logits), torch.where(wanted, _full(log_odds), 0)
    pair = (wanted & (verbs > 0))[:, :, None] & (wanted & (verbs == 0))[:, None, :]
    margin = least + (slope * (m[:, :, None] - m[:, None, :]).clamp(min=0)).clamp(max=limit)
    short = (margin - (z[:, :, None] - z[:, None, :])).clamp(min=0)
    return torch.where(pair, short, 0).sum((1, 2))


def listwise(
    verb_logits: Tensor,
    verbs: Tensor,
    centred: Tensor,
    wanted: Tensor,
    *,
    mixing: float,
    temperature: float = 1.0,
    tau: float = 1.0,
) -> Tensor:
    """F4 (ours): ``T^2 KL(rho || pi)``, ``rho = (1 - lambda) y / |Y| + lambda softmax_V(m / tau)``, m less its sentence's mean.

    ``dL/dz = T (pi - rho)``; invariant to shifts. Failure: one winner takes most; verbs that go with everything ("hold")
    absorb mass unless their mean is taken off. ``[Q]``, at least 0.
    """
    annotated = torch.where(wanted, _full(verbs), 0)
    teacher = torch.softmax(_only(torch.where(wanted, _full(centred), 0) / tau, wanted), -1)
    rho = (1 - mixing) * annotated / annotated.sum(-1, keepdim=True).clamp(min=1) + mixing * teacher
    rho = torch.where(wanted, rho, 0)
    log_choice = torch.log_softmax(_only(_full(verb_logits) / temperature, wanted), -1)
    return temperature**2 * (torch.xlogy(rho, rho) - torch.where(wanted, rho * log_choice, 0)).sum(-1)


def image_terms(
    verb_logits: Tensor,
    object_logits: Tensor,
    soft: Tensor,
    hois: Tensor,
    *,
    smoothing: float = 0.2,
    gamma: float = 2.0,
) -> Tensor:
    """F7 (ours, not the paper's): images without labels, each class's best query against the calibrated score.

    ``s_qc = log softmax(objects)_q,o(c) + log sigmoid(z_q,v(c))``; the image's log-probability is the smooth maximum
    ``S_c = sum_q w_qc s_qc``, ``w = softmax_q(s / smoothing)``, between mean and maximum and so never above 0;
    ``L = sum_c |t - exp S|^gamma BCE(exp S, t)``. Wholly in log space, finite for any finite logits, fp16 included.
    Failure: it may teach the wrong person or box of the right image; start from a student that knows its labels.

    Args:
        verb_logits: float ``[B, N, V]``.
        object_logits: float ``[B, N, >= O + 1]``, softmax over all of them.
        soft: float ``[B, C]``; NaN is left out.
        hois: int64 ``[C, 2]`` (verb, object).
        smoothing: temperature of the smooth maximum.
        gamma: exponent of ``|t - exp S|``.

    Returns:
        ``[B]``. Divide the sum by that of the known t over all processes, at least 1.
    """
    if verb_logits.shape[1] == 0:
        return verb_logits.sum((1, 2), dtype=torch.float32)
    wanted = ~torch.isnan(soft)
    verb, thing = hois.T
    score = F.log_softmax(_full(object_logits), -1)[..., thing] + F.logsigmoid(_full(verb_logits))[..., verb]
    present = (torch.softmax(score / smoothing, 1) * score).sum(1)
    # log(1 - exp(x)) is finite for any x < 0; x = 0 is met only where every factor has underflowed.
    present = present.clamp(max=-torch.finfo(present.dtype).tiny)
    absent = torch.log(-torch.expm1(present))
    target = torch.where(wanted, _full(soft), 0)
    loss = -(target * present + (1 - target) * absent)
    if gamma:
        loss = ((target - present.exp()).abs() + TINY) ** gamma * loss
    return torch.where(wanted, loss, 0).sum(-1)


def _full(values: Tensor) -> Tensor:
    """In float32, or better if it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _only(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logits that leave softmax nothing for what is not wanted; finite, so that a row without any has no NaN."""
    return logits.masked_fill(~wanted, torch.finfo(logits.dtype).min)
