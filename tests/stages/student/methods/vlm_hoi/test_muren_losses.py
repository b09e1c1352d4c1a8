"""Matching and losses against slow transcriptions of the specification, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hoi_distill.stages.student.methods.vlm_hoi.criterion import TERMS, Criterion, flat
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import Costs, LossWeights
from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets, match, match_layers, matching_costs
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.training.focal import hard_focal_terms
from tests.fixtures.tiny_muren import K, N, V, random_boxes, random_output, random_targets, tiny_muren


def naive_giou(a, b):
    ax1, ay1, ax2, ay2 = (a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2)
    bx1, by1, bx2, by2 = (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2)
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = a[2] * a[3] + b[2] * b[3] - shared
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return shared / union - (hull - union) / hull


def naive_l1(a, b):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def naive_cost(output, targets, b, n, t):
    """One query for one pair, as section 2 says."""
    human, object_, object_logits, verb_logits = (each[b, n].tolist() for each in output)
    target = targets[b]
    p_object = math.exp(object_logits[target.objects[t]]) / sum(map(math.exp, object_logits))
    p = [sigmoid(z) for z in verb_logits]
    y = target.verbs[t].tolist()
    positive = [q for q, yes in zip(p, y, strict=True) if yes]
    negative = [1 - q for q, yes in zip(p, y, strict=True) if not yes]
    verb = -0.5 * (sum(positive) / len(positive) + sum(negative) / len(negative))
    gt_human, gt_object = target.human_boxes[t].tolist(), target.object_boxes[t].tolist()
    l1_human, l1_object = naive_l1(human, gt_human), naive_l1(object_, gt_object)
    giou_human, giou_object = -naive_giou(human, gt_human), -naive_giou(object_, gt_object)
    if not any(gt_object):
        l1_object = 0
        giou_object += giou_human
    return -p_object + verb + 2.5 * max(l1_human, l1_object) + max(giou_human, giou_object)


def naive_terms(output, targets, matches, no_object_weight=0.1):
    """One layer's six terms in the order of TERMS."""
    pairs = sum(len(each) for each in targets)
    human_l1 = object_l1 = human_giou = object_giou = boxes = entropy = weights = focal = positives = 0.0
    pictures, queries, classes = output.object_logits.shape
    for b in range(pictures):
        of = dict(zip(*(each.tolist() for each in matches[b]), strict=True))
        for n in range(queries):
            t = of.get(n)
            if t is not None:
                box, gt = output.human_boxes[b, n].tolist(), targets[b].human_boxes[t].tolist()
                human_l1 += naive_l1(box, gt)
                human_giou += 1 - naive_giou(box, gt)
                box, gt = output.object_boxes[b, n].tolist(), targets[b].object_boxes[t].tolist()
                if any(gt):
                    boxes += 1
                    object_l1 += naive_l1(box, gt)
                    object_giou += 1 - naive_giou(box, gt)
            logits = output.object_logits[b, n].tolist()
            label = classes - 1 if t is None else int(targets[b].objects[t])
            weight = no_object_weight if label == classes - 1 else 1
            weights += weight
            entropy -= weight * (logits[label] - math.log(sum(map(math.exp, logits))))
            for v, z in enumerate(output.verb_logits[b, n].tolist()):
                p = sigmoid(z)
                if t is not None and targets[b].verbs[t, v] == 1:
                    positives += 1
                    focal -= 0.5 * (1 - p) ** 2 * math.log(p)
                else:
                    focal -= 0.5 * p**2 * math.log(1 - p)
    return (
        human_l1 / max(pairs, 1), object_l1 / max(boxes, 1), human_giou / max(pairs, 1), object_giou / max(boxes, 1),
        entropy / weights, focal / max(positives, 1),
    )  # fmt: skip


@pytest.fixture
def scene():
    """Three pictures, one of them without pairs and one with a missing object; three layers."""
    torch.manual_seed(3)
    targets = [random_targets(3, missing=1), random_targets(0), random_targets(2)]
    return random_output(3, 3, missing_object=True, requires_grad=True), targets


def test_costs_are_the_published_ones(scene):
    output, targets = scene
    found = matching_costs(output, targets, Costs())
    assert found.shape == (3, 5, N)
    for layer in range(3):
        row = 0
        for b, target in enumerate(targets):
            for t in range(len(target)):
                for n in range(N):
                    expected = naive_cost(output.layer(layer), targets, b, n, t)
                    assert found[layer, row, n].item() == pytest.approx(expected, abs=1e-5)
                row += 1


def test_matches_are_the_cheapest_of_each_picture(scene):
    output, targets = scene
    layers = match_layers(output, targets)
    assert [[len(query) for query, _ in layer] for layer in layers] == [[3, 0, 2]] * 3
    for b in (0, 2):
        cost = [[naive_cost(output.layer(1), targets, b, n, t) for t in range(len(targets[b]))] for n in range(N)]
        query, target = linear_sum_assignment(cost)
        assert layers[1][b][0].tolist() == query.tolist()
        assert layers[1][b][1].tolist() == target.tolist()
    alone = match(output.layer(1), targets)
    assert all(torch.equal(a, b) for x, y in zip(alone, layers[1], strict=True) for a, b in zip(x, y, strict=True))


def test_a_missing_object_is_matched_by_its_human():
    """Two queries, right about the human or not; the object boxes are anywhere and must not matter."""
    target = Targets(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.zeros(1, 4), torch.tensor([K]), torch.ones(1, V))
    output = MurenOutput(
        torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]]),
        torch.tensor([[[0.01, 0.01, 0.02, 0.02], [0.9, 0.9, 0.2, 0.2]]]),
        torch.zeros(1, 2, K + 2),
        torch.zeros(1, 2, V),
    )
    assert match(output, [target])[0][0].tolist() == [1]
    total, terms, _ = Criterion()(MurenOutput(*(each[None] for each in output)), [target])
    assert terms["human_l1"] == 0
    assert terms["object_l1"] == terms["object_giou"] == 0
    assert total.isfinite()


def test_more_pairs_than_queries_are_answered_as_far_as_queries_go():
    torch.manual_seed(0)
    output, targets = random_output(2, 1), [random_targets(N + 3)]
    total, _, matches = Criterion()(output, targets)
    assert total.isfinite()
    assert [sorted(layer[0][0].tolist()) for layer in matches] == [list(range(N))] * 2


def test_every_term_of_every_layer(scene):
    output, targets = scene
    total, terms, matches = Criterion()(output, targets)
    expected_total = 0.0
    for layer in range(3):
        expected = naive_terms(output.layer(layer), targets, matches[layer])
        for name, weight, value in zip(TERMS, (2.5, 2.5, 1, 1, 1, 2), expected, strict=True):
            key = name if layer == 2 else f"{name}_{layer}"
            assert terms.pop(key).item() == pytest.approx(value, rel=1e-4), key
            expected_total += weight * value
    assert not terms
    assert total.item() == pytest.approx(expected_total, rel=1e-4)
    total.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() and each.grad.any() for each in output)


def test_terms_carry_their_own_weights(scene):
    output, targets = scene
    weights = LossWeights(l1=0, giou=0, object=3, verb=0, no_object=0.7)
    total, _, matches = Criterion(weights)(output, targets)
    expected = sum(3 * naive_terms(output.layer(i), targets, matches[i], 0.7)[4] for i in range(3))
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_pictures_without_pairs_are_finite_and_teach_silence():
    output = random_output(2, 2, requires_grad=True)
    total, terms, matches = Criterion()(output, [random_targets(0), random_targets(0)])
    total.backward()
    assert total.isfinite()
    assert [terms[name].item() for name in TERMS[:4]] == [0, 0, 0, 0]
    assert matches[0][0][0].tolist() == []
    assert (output.verb_logits.grad > 0).all()
    assert (output.object_logits.grad[..., -1] < 0).all()
    assert all(each.grad.isfinite().all() for each in output)


def test_logits_as_far_as_half_precision_goes_stay_finite():
    targets = [random_targets(2)]
    far = 6e4 * torch.ones(2, 1, N, V).half()
    for sign in (1, -1):
        verbs = (sign * far).requires_grad_()
        objects = (sign * far[..., : K + 1] * torch.linspace(-1, 1, K + 1).half()).requires_grad_()
        output = MurenOutput(random_boxes(2, 1, N).half(), random_boxes(2, 1, N).half(), objects, verbs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, terms, _ = Criterion()(output, targets)
        total.backward()
        assert total.isfinite()
        assert total.dtype == torch.float32
        assert all(value.isfinite() for value in terms.values())
        assert verbs.grad.isfinite().all()
        assert objects.grad.isfinite().all()


def test_matching_under_autocast_is_that_of_full_precision(scene):
    output, targets = scene
    expected = matching_costs(output, targets, Costs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matching_costs(output, targets, Costs()), expected)


def test_answers_that_are_not_finite_are_named():
    output = random_output(1, 1)
    output.verb_logits[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        match(output.layer(0), [random_targets(1)])


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_two_processes_average_to_what_one_learns(counts):
    """Each with half of the pictures, their counts summed over both: the mean of their losses is the whole loss."""
    torch.manual_seed(5)
    output = random_output(2, 2, missing_object=True)
    targets = [random_targets(count, missing=min(count, 1)) for count in counts]
    whole, _, _ = Criterion()(output, targets)
    halves = [MurenOutput(*(each[:, [b]] for each in output)) for b in range(2)]
    seen: list[torch.Tensor] = []
    for half, target in zip(halves, targets, strict=True):
        Criterion()(half, [target], reduce=lambda each: seen.append(each) or each.clone())
    counted = torch.stack(seen).sum(0)
    losses = [
        Criterion()(half, [t], reduce=lambda each: counted.clone())[0] for half, t in zip(halves, targets, strict=True)
    ]
    assert torch.stack(losses).mean().item() == pytest.approx(whole.item(), rel=1e-5)
    if counts == (3, 1):
        local = Criterion(LossWeights(local_counts=True))
        losses = [
            local(half, [t], reduce=lambda each: counted.clone())[0] for half, t in zip(halves, targets, strict=True)
        ]
        assert torch.stack(losses).mean().item() != pytest.approx(whole.item(), rel=1e-4)


def test_negative_weights_act_on_the_matched_query_only(scene):
    output, targets = scene
    rows = torch.cat([each.verbs for each in targets])
    factors = torch.where(rows == 1, 9.0, 0.25)  # where the label is 1 nothing is weighed
    base, _, matches = Criterion()(output, targets)
    total, _, _ = Criterion()(output, targets, negative_weights=factors)
    picture, query, row = flat(matches, targets, "cpu")
    assert picture.shape == (3, 5)
    saved = 0.0
    for layer in range(3):
        logits = output.verb_logits[layer, picture[layer], query[layer]]
        spared = 0.75 * hard_focal_terms(logits, rows[row[layer]]) * (rows[row[layer]] == 0)
        saved += 2 * spared.sum().item() / rows.sum().item()
    assert base.item() - total.item() == pytest.approx(saved, rel=1e-3)
    same, _, _ = Criterion()(output, targets, negative_weights=torch.ones_like(rows))
    assert same.item() == base.item()


def test_a_network_learns_one_picture_by_heart():
    torch.manual_seed(0)
    model = tiny_muren(frozen_batch_norm=False, frozen_stages=0)
    pixels, mask, targets = torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool), [random_targets(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        total, terms, _ = Criterion()(model(pixels, mask), targets)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.4 * losses[0]
    assert terms["human_giou"] < 0.5
