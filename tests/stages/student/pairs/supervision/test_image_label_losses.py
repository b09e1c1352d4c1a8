"""The losses on image-level labels: by hand, and what they promise of any batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from hoi_distill.stages.student.pairs.regions import Candidates
from hoi_distill.stages.student.pairs.supervision.image_label_losses import (
    ImageLabelBatch,
    mil_loss,
    phrase_loss,
    relatedness_loss,
    segment_softmax,
    smooth_max,
    temperature_of,
)
from hoi_distill.stages.student.pairs.terms import TextSpace

# Two images; the first has pairs 0 and 1, the second pair 2. Pairs 0 and 1 allow classes 0 and 1, pair 2 allows class 2.
IMAGE = tensor([0, 0, 1])
PAIR, HOI = tensor([0, 0, 1, 1, 2]), tensor([0, 1, 0, 1, 2])
CANDIDATES = Candidates(PAIR, HOI, torch.ones(5), IMAGE[PAIR])
NOTHING = torch.empty(0, dtype=torch.long)
CLASSES = torch.eye(3)
FOCAL = {"alpha": 0.25, "gamma": 2.0}


def known(kind, weight=None, candidates=CANDIDATES, pairs=3) -> ImageLabelBatch:
    """Labels from the kinds alone: positives 1, all weights 1."""
    kind = tensor(kind, dtype=torch.int8)
    weights = torch.ones(kind.shape) if weight is None else tensor(weight)
    return ImageLabelBatch.of((kind == 1).float(), kind, weights, candidates=candidates, pairs=pairs)


def phrases_loss(look, candidates, trust, labels, temperature, attention_temperature):
    """:func:`phrase_loss` of classes that are unit vectors."""
    space = TextSpace(look, CLASSES, temperature.log())
    return phrase_loss(
        space, candidates, labels,
        log_trust=trust, temperature=temperature, attention_temperature=attention_temperature,
    )  # fmt: skip


def test_temperature_stays_above_its_floor():
    assert temperature_of(tensor(-20.0)) == pytest.approx(0.01)
    assert temperature_of(tensor(0.07).log()) == pytest.approx(0.07)


def test_phrase_loss_by_hand():
    """One positive (class 0 of image 0), looked for among two pairs; class 1 a weak negative, class 2 a strong one."""
    look = tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    trust = tensor([0.5, 0.25, 1.0])
    labels = known([[1, 0, 0], [0, 0, -1]], weight=[[1.0, 0.2, 1.0], [1.0, 1.0, 0.0]])
    labels.target[0, 0] = 0.7
    share = [math.exp(1 / 0.5) * 0.5, math.exp(0) * 0.25]
    v = [share[0] / sum(share), 2 * share[1] / sum(share), 0]
    cosine = [each / math.hypot(*v) for each in v]
    logits = [math.exp(c / 0.4) for c in cosine]
    expected = -math.log(logits[0] / (logits[0] + 0.2 * logits[1] + logits[2]))
    found = phrases_loss(look, CANDIDATES, trust.log(), labels, tensor(0.4), 0.5)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_phrase_loss_weighs_positives_by_their_targets():
    look, trust = torch.randn(3, 3), torch.zeros(3)
    labels = known([[1, 0, 0], [0, 0, 1]])
    first, second = (
        phrases_loss(look, CANDIDATES, trust, replace(labels, kind=one.kind, positive=one.positive), tensor(0.4), 0.5)
        for one in (known([[1, 0, 0], [0, 0, 0]]), known([[0, 0, 0], [0, 0, 1]]))
    )
    labels.target[0, 0], labels.target[1, 2] = 0.9, 0.6
    both = phrases_loss(look, CANDIDATES, trust, labels, tensor(0.4), 0.5)
    torch.testing.assert_close(both, (0.9 * first + 0.6 * second) / 1.5)


def test_phrases_without_a_matching_pair_are_skipped():
    look, trust = torch.randn(3, 3), torch.zeros(3)
    some = phrases_loss(look, CANDIDATES, trust, known([[1, 0, 0], [0, 0, 0]]), tensor(0.1), 0.1)
    # no pair of image 0 allows class 2, none of image 1 class 0; as positives they are no negatives either
    more = known([[1, 0, -1], [1, 0, 0]])
    alone = known([[1, 0, -1], [0, 0, 0]])
    args = look, CANDIDATES, trust
    torch.testing.assert_close(
        phrases_loss(*args, more, tensor(0.1), 0.1), phrases_loss(*args, alone, tensor(0.1), 0.1)
    )
    assert some != phrases_loss(*args, alone, tensor(0.1), 0.1)


def test_attention_prefers_trusted_pairs():
    look = tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).requires_grad_()
    trust = tensor([0.0, -3.0, 0.0])
    labels = known([[1, 0, 0], [0, 0, 0]])
    phrases_loss(look + tensor([[0.0, 0.1, 0.0]]), CANDIDATES, trust, labels, tensor(0.1), 0.1).backward()
    assert look.grad is not None
    assert look.grad[0].norm() > 5 * look.grad[1].norm() > 0


def test_smooth_max_and_segment_softmax_by_hand():
    x, group = tensor([0.0, math.log(3), 500.0]), tensor([0, 0, 1])
    torch.testing.assert_close(smooth_max(x, group, 2), tensor([math.log(2), 500.0]))
    torch.testing.assert_close(segment_softmax(x, group, 2), tensor([0.25, 0.75, 1.0]))


def test_mil_loss_by_hand():
    logit, log_r = tensor([1.0, -1.0, 0.0, 2.0, 0.5]), tensor([0.5, 1.0, 1.0]).log()
    labels = known([[1, -1, 0], [0, 0, 0]], weight=[[1.0, 0.0, 1.0], [1.0, 1.0, 0.2]])
    labels.target[0, 0], labels.target[1, 2] = 0.8, 0.1
    q0, q2 = math.log((0.5 * math.e + 1) / 2), 0.5
    expected = 0.0
    for q, t, w in ((q0, 0.8, 1.0), (q2, 0.1, 0.2)):  # class 1 is ignored
        s = 1 / (1 + math.exp(-q))
        balance = t * 0.25 + (1 - t) * 0.75
        expected += w * balance * abs(t - s) ** 2 * -(t * math.log(s) + (1 - t) * math.log(1 - s))
    found = mil_loss(logit, log_r, CANDIDATES, labels, **FOCAL)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_mil_masks_ignored_classes():
    logit = torch.randn(5, requires_grad=True)
    mil_loss(logit, torch.zeros(3), CANDIDATES, known([[1, -1, 0], [0, 0, 0]]), **FOCAL).backward()
    assert logit.grad is not None
    assert (logit.grad[HOI == 1] == 0).all()
    assert (logit.grad[HOI != 1] != 0).all()


def test_mil_pulls_hardest_at_the_likeliest_pair():
    logit = tensor([3.0, 0.0, -1.0, 0.0, 0.0]).requires_grad_()
    mil_loss(logit, torch.zeros(3), CANDIDATES, known([[1, -1, 0], [0, 0, -1]]), **FOCAL).backward()
    assert logit.grad is not None
    assert logit.grad[0] < logit.grad[2] < 0


def test_relatedness_by_hand():
    """Pair 0 and 1 allow a positive class; pair 2 allows none, and its only class is known."""
    logit, r = tensor([1.0, 9.0, -1.0, 9.0, 9.0]), [0.3, 0.6, 0.2]
    labels = known([[1, 0, 0], [1, 1, 0]])
    wanted = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.0]
    terms = [-(w * math.log(p) + (1 - w) * math.log(1 - p)) for w, p in zip(wanted, r, strict=True)]
    found = relatedness_loss(logit, tensor(r).log(), CANDIDATES, labels)
    assert found.item() == pytest.approx(sum(terms) / 3, abs=1e-5)


def test_relatedness_does_not_guess_at_ignored_classes_nor_teach_the_classifier():
    logit = torch.randn(5, requires_grad=True)
    log_r = torch.full((3,), -0.7, requires_grad=True)
    relatedness_loss(logit, log_r, CANDIDATES, known([[1, 0, 0], [0, 0, -1]])).backward()
    assert log_r.grad is not None
    assert log_r.grad[2] == 0
    assert (log_r.grad[:2] != 0).all()
    assert logit.grad is None


@pytest.mark.parametrize("case", ["no pairs", "no positives", "all ignored"])
def test_interaction_losses_are_finite(case):
    kind = {"no pairs": [[1, 0, 0]], "no positives": [[0, 0, 0]], "all ignored": [[-1, -1, -1]]}[case]
    pairs = 0 if case == "no pairs" else 2
    look = torch.randn(pairs, 3, requires_grad=True)
    pair, hoi = (NOTHING, NOTHING) if not pairs else (PAIR[:4], HOI[:4])
    logit, log_r = torch.randn(len(pair), requires_grad=True), torch.full((pairs,), -0.1, requires_grad=True)
    candidates = Candidates(pair, hoi, torch.ones(len(pair)), torch.zeros_like(pair))
    labels = known(kind, candidates=candidates, pairs=pairs)
    loss = (
        phrases_loss(look, candidates, log_r, labels, tensor(0.07), 0.1)
        + mil_loss(logit, log_r, candidates, labels, **FOCAL)
        + relatedness_loss(logit, log_r, candidates, labels)
    )
    loss.backward()
    for leaf in (look, logit, log_r):
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()
    assert torch.isfinite(loss)


def test_extreme_logits_stay_finite():
    logit = tensor([80.0, -80.0, 80.0, -80.0, 80.0]).requires_grad_()
    log_r = tensor([0.0, -60.0, -1e-9]).requires_grad_()
    look = (1e4 * torch.eye(3)).requires_grad_()
    labels = known([[1, 0, 0], [0, 0, 1]])
    loss = (
        phrases_loss(look, CANDIDATES, log_r, labels, tensor(0.01), 0.1)
        + mil_loss(logit, log_r, CANDIDATES, labels, **FOCAL)
        + relatedness_loss(logit, log_r, CANDIDATES, labels)
    )
    loss.backward()
    assert torch.isfinite(loss)
    for leaf in (look, logit, log_r):
        assert torch.isfinite(leaf.grad).all()
