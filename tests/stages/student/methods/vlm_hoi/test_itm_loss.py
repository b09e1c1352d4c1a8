"""The ITM loss family: gradients as written, what each can and cannot be gamed by, finite wherever logits are."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig
from hoi_distill.stages.student.methods.vlm_hoi.image_set import ImageBatch
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_loss import (
    MatchedQueries,
    cost_of_argmax,
    costs,
    expected_cost,
    expected_cost_of_objects,
    image_terms,
    itm_terms,
    listwise,
    margins,
    negative_weights,
    soft_targets,
    supervised_verbs,
)
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmScores
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.losses import ItmTables, batch_loss
from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.training.gradients import gradient_ratio
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY

COLUMNS = columns_for(VOCABULARY)
HOI_ID, HOIS = torch.from_numpy(COLUMNS.hoi_id), torch.from_numpy(COLUMNS.hois)
VERBS, OBJECTS, CLASSES = len(VOCABULARY.verbs), len(VOCABULARY.objects), len(COLUMNS.hois)
BICYCLE, DOG = 1, 16
HOLD, NONE, RIDE, WALK = range(4)  # the vocabulary's verbs, sorted
MATCHED = ("F0", "F1", "F1-literal", "F2", "F3", "F4")


def random_case(seed: int, queries: int = 5, verbs: int = 7):
    """Double logits, labels with at least one verb each, log-odds m with some NaN."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 3, (queries, verbs))).requires_grad_()
    labels = torch.from_numpy(random.random((queries, verbs)) < 0.3).double()
    labels[torch.arange(queries), torch.from_numpy(random.integers(0, verbs, queries))] = 1
    log_odds = torch.from_numpy(random.normal(0, 3, (queries, verbs)))
    log_odds[torch.from_numpy(random.random((queries, verbs)) < 0.2)] = torch.nan
    return logits, labels, log_odds


def batch(seed: int = 0, images: int = 2) -> ItmScores:
    log_odds = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (images, CLASSES)).astype(np.float32))
    log_odds[:, COLUMNS.column < 0] = torch.nan
    return ItmScores(log_odds, log_odds.sigmoid(), log_odds - torch.linspace(-1, 1, CLASSES))


def queries(*labels: tuple[int, ...], things: tuple[int, ...] = (BICYCLE, DOG, BICYCLE)):
    """Arguments of itm_terms after hoi_id: image, verb logits, labels, objects, object logits."""
    verbs = torch.zeros(len(labels), VERBS)
    for query, chosen in enumerate(labels):
        verbs[query, list(chosen)] = 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(labels), VERBS, generator=generator).requires_grad_()
    objects = torch.randn(len(labels), OBJECTS + 1, generator=generator).requires_grad_()
    return torch.arange(len(labels)) % 2, logits, verbs, torch.tensor(things[: len(labels)]), objects


def terms(family: str, logits: torch.Tensor | None = None, **options) -> torch.Tensor:
    image, drawn, verbs, things, objects = queries((RIDE,), (HOLD, WALK), (HOLD,))
    logits = drawn if logits is None else logits
    return itm_terms(
        ItmConfig(family, **options), batch(), HOI_ID, MatchedQueries(image, logits, verbs, things, objects)
    )


def test_the_literal_lookup_has_no_gradient():
    logits, labels, log_odds = random_case(0)
    wanted = supervised_verbs(log_odds, labels)
    cost = costs(ItmConfig("F0"), log_odds.sigmoid(), labels)
    loss = cost_of_argmax(logits, cost, wanted)
    best = torch.where(wanted, logits, -torch.inf).argmax(1)
    expected = torch.where(wanted.any(1), cost[torch.arange(len(cost)), best], 0)
    torch.testing.assert_close(loss, expected.detach())
    assert not loss.requires_grad
    assert not terms("F0").requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["F1", "F1-literal"]), st.floats(0.3, 3))
def test_gradient_of_the_expected_cost_is_the_formula_and_sums_to_zero(seed, family, temperature):
    logits, labels, log_odds = random_case(seed)
    wanted, cost = supervised_verbs(log_odds, labels), costs(ItmConfig(family), log_odds.sigmoid(), labels)
    loss = expected_cost(logits, cost, wanted, temperature)
    loss.sum().backward()
    choice = torch.softmax(torch.where(wanted, logits.detach() / temperature, -torch.inf), 1).nan_to_num(0)
    formula = torch.where(wanted, choice * (cost - loss.detach()[:, None]), 0) / temperature
    torch.testing.assert_close(logits.grad, formula, atol=1e-12, rtol=1e-9)
    assert logits.grad.sum(1).abs().max() < 1e-12
    varied = (wanted.sum(1) > 1) & (torch.where(wanted, cost, 0).amax(1) > torch.where(wanted, cost, 9).amin(1) + 1e-6)
    assert (logits.grad[varied].abs().amax(1) > 0).all()


@pytest.mark.parametrize("family", ["F1", "F1-literal", "F2", "F3", "F4"])
def test_autograd_agrees_with_finite_differences(family):
    logits, labels, log_odds = random_case(3)
    wanted, config = supervised_verbs(log_odds, labels), ItmConfig(family)

    def loss(z: torch.Tensor) -> torch.Tensor:
        if family == "F2":
            return soft_targets(z, labels, log_odds.sigmoid(), wanted, mixing=0.3, gamma=2.0)
        if family == "F3":
            return margins(z, labels, log_odds, wanted)
        if family == "F4":
            return listwise(z, labels, log_odds, wanted, mixing=0.3, temperature=1.5, tau=2.0)
        return expected_cost(z, costs(config, log_odds.sigmoid(), labels), wanted, 0.7)

    assert torch.autograd.gradcheck(loss, (logits,))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-100, 100))
def test_lowering_all_verbs_changes_nothing_in_f1_f3_f4(seed, shift):
    logits, labels, log_odds = random_case(seed)
    wanted, cost = supervised_verbs(log_odds, labels), costs(ItmConfig(), log_odds.sigmoid(), labels)
    for loss in (
        lambda z: expected_cost(z, cost, wanted),
        lambda z: margins(z, labels, log_odds, wanted),
        lambda z: listwise(z, labels, log_odds, wanted, mixing=0.3),
    ):
        (before,) = torch.autograd.grad(loss(logits).sum(), logits)
        (after,) = torch.autograd.grad(loss(logits + shift).sum(), logits)
        torch.testing.assert_close(loss(logits + shift), loss(logits), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)


def test_lowering_all_verbs_by_100_changes_no_term_in_float32():
    _, logits, *_ = queries((RIDE,), (HOLD, WALK), (HOLD,))
    for family in ("F1", "F1-literal", "F3", "F4"):
        torch.testing.assert_close(terms(family, logits - 100), terms(family, logits), atol=1e-4, rtol=0)
    assert (terms("F2", logits - 100, gamma=0) - terms("F2", logits, gamma=0)).abs().max() > 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_corrected_costs_never_favour_a_verb_that_is_not_annotated(beta, part, annotated, other):
    config = ItmConfig(alpha=part * (1 - beta), beta=beta)
    cost = costs(config, torch.tensor([annotated, other]).double(), torch.tensor([1.0, 0.0]))
    assert cost[0] <= cost[1] + 1e-12


def descend(loss, *tensors: torch.Tensor, rate: float = 0.1) -> None:
    optimizer = torch.optim.Adam(tensors, rate)
    for _ in range(250):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_eq_4_gives_everything_to_the_absurd_verb_and_the_corrected_costs_to_the_annotated_one():
    """Scores t: annotated .55, plausible .80, absurd .01. With alpha .9 Eq. 4 charges .35, .80, .01."""
    soft, labels = torch.tensor([[0.55, 0.80, 0.01]]), torch.tensor([[1.0, 0, 0]])
    wanted = torch.ones(1, 3, dtype=torch.bool)
    ends = {}
    for family, alpha in (("F1-literal", 0.9), ("F1", 0.5)):
        logits = torch.zeros(1, 3, requires_grad=True)
        cost = costs(ItmConfig(family, alpha=alpha, beta=0.5), soft, labels)
        descend(lambda z=logits, c=cost: expected_cost(z, c, wanted).sum(), logits)
        ends[family] = logits.detach().softmax(1)[0]
    assert ends["F1-literal"][2] > 0.998
    assert ends["F1"][0] > 0.998


def test_unnormalised_products_are_best_at_nothing_which_is_why_objects_are_normalised():
    cost = torch.tensor([[[0.1, 0.6, 0.9], [0.7, 0.9, 0.8]]])  # of two objects (then "no object") and three verbs
    verbs, objects = (torch.zeros(1, 3, requires_grad=True) for _ in range(2))

    def products() -> torch.Tensor:
        return verbs.sigmoid()[:, None] * objects.softmax(1)[:, :2, None]

    descend(lambda: (products() * cost).sum(), verbs, objects)
    assert products().max() < 0.01

    verbs, objects = (torch.zeros(1, 3, requires_grad=True) for _ in range(2))
    wanted = torch.ones(1, 2, 3, dtype=torch.bool)
    descend(lambda: expected_cost_of_objects(objects, verbs, cost, wanted).sum(), verbs, objects)
    assert verbs.softmax(1)[0, 0] > 0.99
    assert objects[0, 0] > objects[0, 1] + 4
    assert objects[0, 2] == 0


def test_gradient_on_predicted_objects_is_the_formula_and_nothing_for_no_object():
    generator = torch.Generator().manual_seed(1)
    objects = torch.randn(2, 4, generator=generator, dtype=torch.double).requires_grad_()
    verbs = torch.randn(2, 5, generator=generator, dtype=torch.double)
    cost = torch.rand(2, 3, 5, generator=generator, dtype=torch.double)
    wanted = torch.ones(2, 3, 5, dtype=torch.bool)
    wanted[0, 1] = False  # an object that no verb was asked about
    cost[0, 1] = torch.nan
    loss = expected_cost_of_objects(objects, verbs, cost, wanted)
    loss.sum().backward()
    share = torch.where(wanted.any(2), objects.detach()[:, :3], -torch.inf).softmax(1)
    by_object = torch.where(wanted, verbs.softmax(1)[:, None] * cost, 0).sum(2)
    torch.testing.assert_close(loss.detach(), (share * by_object).sum(1))
    expected = torch.cat([share * (by_object - loss.detach()[:, None]), torch.zeros(2, 1)], 1)
    torch.testing.assert_close(objects.grad, expected)
    assert objects.grad[0, 1] == 0


def test_soft_targets_are_the_optimum_and_p_minus_target_the_gradient():
    labels, soft = torch.tensor([[1.0, 0, 0, 0]]).double(), torch.tensor([[0.2, 0.9, 0.1, torch.nan]]).double()
    wanted = supervised_verbs(soft, labels)
    logits = torch.tensor([[0.3, 1.0, -2.0, 5.0]], dtype=torch.double, requires_grad=True)
    soft_targets(logits, labels, soft, wanted, mixing=0.3).sum().backward()
    target = torch.tensor([[1, 0.27, 0.03]]).double()
    torch.testing.assert_close(logits.grad[:, :3], logits.detach().sigmoid()[:, :3] - target)
    assert logits.grad[0, 3] == 0
    for gamma in (0.0, 2.0):
        best = torch.zeros(1, 4, dtype=torch.double, requires_grad=True)
        loss = partial(soft_targets, best, labels, soft, wanted, mixing=0.3, gamma=gamma)
        descend(lambda loss=loss: loss().sum(), best, rate=0.3)
        torch.testing.assert_close(best.detach().sigmoid()[:, :3], target, atol=0.05, rtol=0)


def test_gradients_of_margins_count_the_pairs_that_fall_short():
    labels, wanted = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[True, True, True, False]])
    logits = torch.tensor([[0.0, 0.1, -9.0, 9.0]], requires_grad=True)
    log_odds = torch.tensor([[4.0, 0.0, 6.0, torch.nan]])
    loss = margins(logits, labels, log_odds, wanted, least=0.2, slope=0.5, limit=1.0)
    assert loss.item() == pytest.approx(0.2 + 1.0 + 0.1)  # 0.5 * (4 - 0), limited to 1
    loss.sum().backward()
    assert logits.grad.tolist() == [[-1, 1, 0, 0]]


def test_gradient_of_the_listwise_loss_is_choice_minus_the_mixed_distribution():
    logits, labels, log_odds = random_case(5)
    wanted = supervised_verbs(log_odds, labels)
    loss = listwise(logits, labels, log_odds, wanted, mixing=0.4, temperature=1.7, tau=2.0)
    loss.sum().backward()
    inside = wanted.any(1)
    masked = torch.where(wanted, 0.0, -torch.inf)[inside]
    known = labels[inside] * wanted[inside]
    teacher = (log_odds[inside].nan_to_num(0) / 2 + masked).softmax(1)
    rho = 0.6 * known / known.sum(1, keepdim=True) + 0.4 * teacher
    choice = (logits.detach()[inside] / 1.7 + masked).softmax(1)
    torch.testing.assert_close(logits.grad[inside], 1.7 * (choice - rho))
    assert (loss >= 0).all()


def test_softer_negatives_touch_only_known_verbs_that_are_not_annotated():
    soft, labels = torch.tensor([[0.8, 0.5, torch.nan, 0.1]]), torch.tensor([[1.0, 0, 0, 0]])
    config = ItmConfig("F2n", mixing=0.5)
    torch.testing.assert_close(negative_weights(config, soft, labels), torch.tensor([[1, 0.75, 1, 0.95]]))
    torch.testing.assert_close(negative_weights(config, soft, labels, 0.5), torch.tensor([[1, 0.875, 1, 0.975]]))
    assert negative_weights(config, soft, labels, 0.0) is None
    assert negative_weights(ItmConfig("F1"), soft, labels) is None
    assert negative_weights(ItmConfig("F2n", weight=0), soft, labels) is None
    assert (terms("F2n") == 0).all()


def test_each_family_is_given_the_quantity_it_is_defined_on():
    scores = batch()
    image, logits, verbs, things, _ = queries((RIDE,), (HOLD, WALK), (HOLD,))
    here = scores.of_verbs(image, things, HOI_ID)
    wanted = supervised_verbs(here.soft, verbs)
    expected = {
        "F0": cost_of_argmax(logits, costs(ItmConfig("F0"), here.soft, verbs), wanted),
        "F1": expected_cost(logits, costs(ItmConfig("F1"), here.soft, verbs), wanted),
        "F1-literal": expected_cost(logits, costs(ItmConfig("F1-literal"), here.soft, verbs), wanted),
        "F2": soft_targets(logits, verbs, here.soft, wanted, mixing=0.3, gamma=2.0),
        "F3": margins(logits, verbs, here.log_odds, wanted, least=0.2, slope=0.1, limit=2.0),
        "F4": listwise(logits, verbs, here.centred, wanted, mixing=0.3, temperature=1.0, tau=1.0),
    }
    for family, loss in expected.items():
        torch.testing.assert_close(terms(family), loss)


def test_a_verb_is_annotated_with_its_own_object_only():
    """Holding a bicycle is annotated: holding a dog costs what any other verb does."""
    scores = batch()
    image, logits, verbs, things, objects = queries((HOLD,))
    matched = MatchedQueries(image, logits, verbs, things, objects)
    loss = itm_terms(ItmConfig(object="predicted"), scores, HOI_ID, matched)
    t, choices = scores.soft[0], {BICYCLE: (HOLD, RIDE), DOG: (HOLD, WALK)}
    by_object = []
    for thing, (first, second) in choices.items():
        pi = logits[0, [first, second]].softmax(0)
        cost = [1 - 0.5 * t[HOI_ID[verb, thing]] for verb in (first, second)]
        if thing == BICYCLE:
            cost[0] = (0.5 - t[HOI_ID[HOLD, BICYCLE]]).clamp(min=0)
        by_object.append((pi * torch.stack(cost)).sum())
    share = objects[0, list(choices)].softmax(0)
    torch.testing.assert_close(loss[0], (share * torch.stack(by_object)).sum())


@pytest.mark.parametrize("family", MATCHED)
def test_a_query_of_no_interaction_only_is_left_alone(family):
    image, logits, verbs, things, objects = queries((RIDE,), (NONE,), (HOLD, NONE))
    loss = itm_terms(ItmConfig(family), batch(), HOI_ID, MatchedQueries(image, logits, verbs, things, objects))
    assert loss[1] == 0
    if family != "F0":
        loss.sum().backward()
        assert (logits.grad[1] == 0).all()
        assert (logits.grad[:, NONE] == 0).all()
        assert (logits.grad[0, [HOLD, RIDE]] != 0).any()
        assert logits.grad[0, WALK] == 0  # nobody walks a bicycle in this vocabulary


@pytest.mark.parametrize(
    ("family", "which"), [*((family, "gt") for family in MATCHED), ("F1", "predicted"), ("F1-literal", "predicted")]
)
def test_what_is_not_asked_takes_no_part_and_leaves_no_nan(family, which):
    scores = batch()
    for field in (scores.log_odds, scores.soft, scores.centred):
        field[0, HOI_ID[HOLD, BICYCLE]] = torch.nan
        field[1] = torch.nan
    image, logits, verbs, things, objects = queries((RIDE,), (WALK,), (HOLD,))
    matched = MatchedQueries(image, logits, verbs, things, objects)
    loss = itm_terms(ItmConfig(family, object=which), scores, HOI_ID, matched)
    assert torch.isfinite(loss).all()
    assert loss[1] == 0 == loss[2]  # nothing asked; the annotated verb not asked
    if loss.requires_grad:
        loss.sum().backward()
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[1:] == 0).all()
        assert objects.grad is None or torch.isfinite(objects.grad).all()


@pytest.mark.parametrize("family", MATCHED)
def test_no_query_and_half_precision_are_no_special_cases(family):
    config = ItmConfig(family)
    empty = torch.zeros(0, dtype=torch.int64)
    none = torch.zeros(0, VERBS, requires_grad=True)
    matched = MatchedQueries(empty, none, torch.zeros(0, VERBS), empty)
    assert itm_terms(config, batch(), HOI_ID, matched).shape == (0,)
    image, logits, verbs, things, _ = queries((RIDE,), (HOLD, WALK), (HOLD,))
    half = (logits.detach() * 2e4).half().requires_grad_()
    loss = itm_terms(config, batch(), HOI_ID, MatchedQueries(image, half, verbs, things))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    if loss.requires_grad:
        loss.sum().backward()
        assert torch.isfinite(half.grad).all()


@pytest.mark.parametrize("family", [*MATCHED, "F2n", "F7"])
def test_lambda_0_is_the_baseline_bit_for_bit(family):
    """Loss and gradients of every output, switched off as well as at the start of the ramp; and not once it counts."""
    generator = torch.Generator().manual_seed(4)
    sizes = {"human_boxes": 4, "object_boxes": 4, "object_logits": OBJECTS + 1, "verb_logits": VERBS}
    drawn = [torch.randn(2, 2, 6, size, generator=generator) for size in sizes.values()]
    boxes = torch.full((2, 4), 0.3)
    targets = [
        Targets(boxes, boxes, torch.tensor([BICYCLE, DOG]), torch.eye(VERBS)[[RIDE, WALK]]),
        Targets(boxes, boxes, torch.tensor([BICYCLE, DOG]), torch.eye(VERBS)[[HOLD, NONE]]),
    ]
    tables = ItmTables(HOI_ID, HOIS)

    def loss_and_gradients(itm: ItmConfig, scores: ItmScores | None, epoch: float) -> list[torch.Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in drawn]
        output = MurenOutput(leaves[0].sigmoid(), leaves[1].sigmoid(), leaves[2], leaves[3])
        nothing = torch.zeros(0)
        given_ = ImageBatch(nothing, nothing, nothing, targets, scores, None)
        loss, _ = batch_loss(output, given_, VlmHoiConfig(itm=itm), (tables, None), epoch)
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    baseline = loss_and_gradients(ItmConfig(weight=0), None, 3)
    for itm, scores, epoch in [(ItmConfig(family, weight=0), batch(), 3), (ItmConfig(family), batch(), 0)]:
        found = loss_and_gradients(itm, scores, epoch)
        assert all(torch.equal(a, b) for a, b in zip(baseline, found, strict=True))
    later = loss_and_gradients(ItmConfig(family), batch(), 3)
    assert not torch.equal(later[0], baseline[0])
    assert torch.equal(later[4], baseline[4]) == (family == "F0")  # verb logits


def test_the_weight_ramps_and_layers_are_chosen():
    config = ItmConfig(weight=2, ramp=5)
    assert [config.weight_at(epoch) for epoch in (0, 2.5, 5, 50)] == [0, 1, 2, 2]
    assert ItmConfig(ramp=0).weight_at(0) == 1
    assert list(config.learning_layers(6)) == [5]
    assert list(ItmConfig(layers="all").learning_layers(6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"alpha": 0.9, "beta": 0.5}, r"itm\.alpha: 0\.9 is above 1 - beta = 0\.5"),
        ({"family": "F2", "mixing": 0.5}, r"itm\.mixing"),
        ({"family": "F3", "object": "predicted"}, r"itm\.object"),
        ({"family": "F7", "prompt": "verb"}, r"itm\.prompt"),
        ({"temperature": 0}, r"itm\.temperature"),
        ({"weight": -1}, r"itm\.weight"),
        ({"beta": 2}, r"itm\.beta"),
    ],
)
def test_impossible_settings_are_refused(options, why):
    with pytest.raises(UserError, match=why):
        read_section({"method": "vlm_hoi", "labelled": None, "itm": options}, "student.")


def test_the_gradient_ratio_is_that_of_the_norms_at_the_logits():
    body = torch.ones(3, requires_grad=True)
    logits = body * torch.tensor([1.0, 2, 3])
    assert gradient_ratio((3 * logits).sum(), (4 * logits).sum(), [logits]) == pytest.approx(0.75)
    assert gradient_ratio(terms("F0").sum(), logits.sum(), [logits]) == 0
    logits.sum().backward()  # the graph is still there
    assert body.grad.tolist() == [1, 2, 3]


def test_a_image_with_one_query_is_cross_entropy_of_the_product():
    _, verbs, _, _, objects = queries((RIDE,))
    soft = torch.full((1, CLASSES), torch.nan)
    ride_bicycle = int(HOI_ID[RIDE, BICYCLE])
    soft[0, ride_bicycle] = 0.3
    loss = image_terms(verbs[None], objects[None], soft, HOIS, gamma=0)
    p = objects.softmax(1)[0, BICYCLE] * verbs.sigmoid()[0, RIDE]
    torch.testing.assert_close(loss[0], F.binary_cross_entropy(p, torch.tensor(0.3)))


def few_images(seed: int, images: int = 2, count: int = 4):
    generator = torch.Generator().manual_seed(seed)
    verbs = torch.randn(images, count, VERBS, generator=generator, dtype=torch.double)
    objects = torch.randn(images, count, OBJECTS + 1, generator=generator, dtype=torch.double)
    return verbs.requires_grad_(), objects.requires_grad_(), batch(seed, images).soft.double()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_image_gradients_agree_with_finite_differences(gamma):
    verbs, objects, soft = few_images(2)
    loss = partial(image_terms, soft=soft, hois=HOIS, smoothing=0.3, gamma=gamma)
    assert torch.autograd.gradcheck(loss, (verbs, objects))


def test_a_image_is_judged_by_its_best_query():
    """The one that is sure hears nearly everything; more of the hopeless change nothing."""
    verbs, objects = torch.full((1, 3, VERBS), -6.0), torch.zeros(1, 3, OBJECTS + 1)
    objects[..., BICYCLE] = 9
    verbs[0, 1, RIDE] = 1.0
    verbs.requires_grad_()
    soft = torch.full((1, CLASSES), torch.nan)
    soft[0, HOI_ID[RIDE, BICYCLE]] = 1
    loss = image_terms(verbs, objects, soft, HOIS)
    loss.sum().backward()
    rise = -verbs.grad[0, :, RIDE]
    assert rise[1] > 100 * rise[[0, 2]].abs().max()
    more = image_terms(*(torch.cat([x, x[:, :1].expand(-1, 60, -1)], 1) for x in (verbs, objects)), soft, HOIS)
    torch.testing.assert_close(more, loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_images_are_finite_at_the_extremes(dtype, gamma):
    """Saturated both ways, certain teacher both ways, ties; and images without queries or without scores."""
    extremes = torch.tensor([-60_000.0, -120, -30, 0, 30, 120, 60_000])
    generator = torch.Generator().manual_seed(0)
    shape = (40, 3)
    verbs = extremes[torch.randint(7, (*shape, VERBS), generator=generator)].to(dtype).requires_grad_()
    objects = extremes[torch.randint(7, (*shape, OBJECTS + 1), generator=generator)].to(dtype)
    verbs.data[:4], objects[:4], objects[:4, :, BICYCLE] = 60_000, -60_000, 60_000  # as sure as can be: S = -0
    objects.requires_grad_()
    soft = torch.tensor([0.0, 1.0, 0.5, torch.nan])[torch.randint(4, (40, CLASSES), generator=generator)]
    loss = image_terms(verbs, objects, soft, HOIS, gamma=gamma)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    (loss.sum() / 100).backward()
    assert torch.isfinite(verbs.grad).all()
    assert torch.isfinite(objects.grad).all()
    assert (image_terms(verbs, objects, torch.full_like(soft, torch.nan), HOIS) == 0).all()
    assert (image_terms(verbs[:, :0], objects[:, :0], soft, HOIS) == 0).all()
    assert image_terms(verbs[:0], objects[:0], soft[:0], HOIS).shape == (0,)


def test_a_sure_wrong_query_is_still_pulled_back():
    verbs = torch.full((1, 1, VERBS), 40.0, requires_grad=True)
    objects = torch.zeros(1, 1, OBJECTS + 1)
    objects[..., BICYCLE] = 200
    soft = torch.full((1, CLASSES), torch.nan)
    soft[0, HOI_ID[RIDE, BICYCLE]] = 0.0
    image_terms(verbs, objects, soft, HOIS, gamma=0).sum().backward()
    assert verbs.grad[0, 0, RIDE] == pytest.approx(1, abs=1e-3)
