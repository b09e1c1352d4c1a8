"""Distillation is nothing between equals, pulls the student alone, and means what its formulas say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.pairs.regions import Regions, candidates_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation_losses import (
    Answered,
    TeacherOutputs,
    bernoulli_divergence,
    distillation_losses,
    divergence,
    matched,
)
from hoi_distill.stages.student.pairs.terms import PairOutput
from hoi_distill.storage.errors import UserError

CLASSES, ENCODER, DECODER, WIDTH, PAIR_WIDTH, GRID = 6, 2, 3, 8, 12, (4, 5)
VALID = torch.tensor([[1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
ALL = KdConfig(("pairs",), ("maps",), logit=1, query=1, map=1)
SEEN = torch.ones(CLASSES, dtype=torch.bool)


def batch_of(humans=(2, 1), things=(1, 2)) -> Regions:
    """Images with so many people and things, every person paired with everything else."""
    image, labels, pairs = [], [], []
    for number, (people, others) in enumerate(zip(humans, things, strict=True)):
        first = len(labels)
        labels += [0] * people + [1] * others
        image += [number] * (people + others)
        pairs += [(first + i, first + j) for i in range(people) for j in range(people + others) if i != j]
    count = len(labels)
    return Regions(
        maps=torch.zeros(len(humans), 3, *GRID),
        size=torch.full((len(humans), 2), 64.0),
        image=torch.tensor(image, dtype=torch.int64),
        boxes=torch.rand(count, 4, generator=torch.Generator().manual_seed(0)),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.linspace(1.3, 0.3, count).clamp(max=1),  # some are certain, so P reaches 1
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
    )


def output_of(regions: Regions, seed: int, spread: float = 3.0) -> PairOutput:
    draw = torch.Generator().manual_seed(seed)
    images, count = len(regions.maps), len(regions.pairs)
    shapes = ((DECODER, count, CLASSES), (ENCODER, len(regions.image), WIDTH), (DECODER, count, PAIR_WIDTH))
    tensors = [torch.randn(shape, generator=draw) * spread for shape in (*shapes, (images, WIDTH, *GRID))]
    return PairOutput(*(tensor.requires_grad_() for tensor in tensors))


def taught_by(output: PairOutput, pair, hoi) -> TeacherOutputs:
    has = torch.ones(len(output.latent), dtype=torch.bool)
    return TeacherOutputs(has, output.logits[-1][pair, hoi], output.unary, output.pairs, output.latent)


def terms_of(student, teachers, regions, config=ALL, seen=SEEN):
    candidates = candidates_of(regions, VALID)
    taught = [
        one if isinstance(one, TeacherOutputs) else taught_by(one, candidates.pair, candidates.hoi) for one in teachers
    ]
    answered = [Answered.of(one.has, regions, candidates, seen) for one in taught]
    return distillation_losses(student, taught, answered, candidates, config=config)


@pytest.mark.parametrize("form", ["bernoulli", "softmax"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("spread", [3.0, 1000.0])
def test_is_exactly_zero_between_equals(form, temperature, spread):
    regions = batch_of()
    student = output_of(regions, 0, spread)
    config = replace(ALL, logit_form=form, temperature=temperature)
    terms = terms_of(student, [student, student], regions, config)
    assert set(terms) == {"logit", "query", "map"}
    assert all(term.item() == 0.0 and term.dtype == torch.float32 for term in terms.values())
    other = terms_of(student, [output_of(regions, 1)], regions, config)
    assert all(term.item() > 0 for term in other.values())


@pytest.mark.parametrize("form", ["bernoulli", "softmax"])
def test_gradients_are_finite_and_reach_the_student_only(form):
    regions = batch_of()
    student, teacher = output_of(regions, 0, 100.0), output_of(regions, 1, 100.0)
    sum(terms_of(student, [teacher], regions, replace(ALL, logit_form=form)).values()).backward()
    assert all(value.grad is None for value in teacher[:4])
    assert all(value.grad.isfinite().all() and value.grad.abs().sum() > 0 for value in student[:4])
    assert not student.logits.grad[:-1].any()  # logits are distilled from the last layer, the answer


def test_logits_are_compared_as_final_probabilities():
    """Bernoulli(P sigmoid(O_t)) against Bernoulli(P sigmoid(O_s)), a mean over the entries with P > 0."""
    regions = batch_of()
    student, teacher = output_of(regions, 0, 1.0), output_of(regions, 1, 1.0)
    candidates = candidates_of(regions, VALID)
    pair, hoi, prior = candidates.pair, candidates.hoi, candidates.prior
    s, t = (prior.double() * out.logits[-1][pair, hoi].double().sigmoid() for out in (student, teacher))
    expected = (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).mean()
    assert terms_of(student, [teacher], regions)["logit"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_softmax_form_is_over_the_classes_that_the_pair_allows():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    candidates = candidates_of(regions, VALID)
    pair, hoi, prior = candidates.pair, candidates.hoi, candidates.prior
    psi = [final_logit(out.logits[-1][pair, hoi], prior) / 2 for out in (student, teacher)]
    expected = []
    for one in pair.unique():
        s, t = (values[pair == one].log_softmax(0) for values in psi)
        expected.append((t.exp() * (t - s)).sum())
    config = replace(ALL, logit_form="softmax", temperature=2.0)
    found = terms_of(student, [teacher], regions, config)["logit"]
    assert found.item() == pytest.approx(4 * torch.stack(expected).mean().item(), rel=1e-5)  # tau squared


def test_queries_are_compared_token_by_token_in_encoder_and_decoder():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    expected = 0.0
    for s, t in ((student.unary, teacher.unary), (student.pairs, teacher.pairs)):
        tokens = s.shape[0] * s.shape[1]
        expected += F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="sum").item() / tokens
    assert terms_of(student, [teacher], regions)["query"].item() == pytest.approx(expected, rel=1e-5)


def test_maps_are_compared_cell_by_cell_over_channels():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    s, t = (out.latent.movedim(1, -1).reshape(-1, WIDTH) for out in (student, teacher))
    expected = F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean").item()
    assert terms_of(student, [teacher], regions)["map"].item() == pytest.approx(expected, rel=1e-5)


def test_temperature_squared_can_be_left_out():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    with_it = terms_of(student, [teacher], regions, replace(ALL, temperature=3.0))
    without = terms_of(student, [teacher], regions, replace(ALL, temperature=3.0, tau_squared=False))
    for name, term in with_it.items():
        assert term.item() == pytest.approx(9 * without[name].item(), rel=1e-6)


@pytest.mark.parametrize("form", ["bernoulli", "softmax"])
def test_unseen_classes_teach_nothing(form):
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    candidates = candidates_of(regions, VALID)
    pair, hoi = candidates.pair, candidates.hoi
    unseen = torch.tensor([1, 2])
    seen = SEEN.clone()
    seen[unseen] = False
    config = replace(ALL, query=0, map=0, logit_form=form)
    taught = taught_by(teacher, pair, hoi)
    first = terms_of(student, [taught], regions, config, seen)["logit"]
    first.backward()
    assert not student.logits.grad[..., unseen].any()
    louder = replace(taught, logits=taught.logits.detach() + 5 * torch.isin(hoi, unseen))
    assert terms_of(student, [louder], regions, config, seen)["logit"].item() == first.item()
    assert terms_of(student, [louder], regions, config)["logit"].item() != first.item()


def test_images_without_an_answer_teach_nothing():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    candidates = candidates_of(regions, VALID)
    pair, hoi = candidates.pair, candidates.hoi
    has = torch.tensor([False, True])
    found = terms_of(student, [replace(taught_by(teacher, pair, hoi), has=has)], regions)
    sum(found.values()).backward()
    assert not student.latent.grad[0].any()
    assert student.latent.grad[1].any()
    assert not student.unary.grad[:, regions.image == 0].any()
    assert not student.pairs.grad[:, regions.pair_image == 0].any()
    assert not student.logits.grad[:, regions.pair_image == 0].any()
    alone = batch_of((1,), (2,))  # the second image by itself
    alone.scores = regions.scores[regions.image == 1]
    cut = [out.logits[:, regions.pair_image == 1].detach() for out in (student, teacher)]
    rest = [
        PairOutput(
            logits,
            out.unary[:, regions.image == 1].detach(),
            out.pairs[:, regions.pair_image == 1].detach(),
            out.latent[1:].detach(),
        )
        for out, logits in zip((student, teacher), cut, strict=True)
    ]
    for name, term in terms_of(rest[0], [rest[1]], alone).items():
        assert found[name].item() == pytest.approx(term.item(), rel=1e-6)


@pytest.mark.parametrize("form", ["bernoulli", "softmax"])
@pytest.mark.parametrize(("humans", "things"), [((0, 0), (2, 0)), ((1, 0), (0, 3)), ((1, 1), (1, 0))])
def test_zero_humans_and_single_instances_give_finite_terms(humans, things, form):
    regions = batch_of(humans, things)
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    terms = terms_of(student, [teacher], regions, replace(ALL, logit_form=form))
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in student[:4])
    candidates = candidates_of(regions, VALID)
    nobody = replace(taught_by(teacher, candidates.pair, candidates.hoi), has=torch.zeros(2, dtype=torch.bool))
    assert all(term.item() == 0 for term in terms_of(student, [nobody], regions).values())


def test_teachers_are_averaged():
    regions = batch_of()
    student, first, second = (output_of(regions, seed) for seed in range(3))
    both = terms_of(student, [first, second], regions)
    each = [terms_of(student, [one], regions) for one in (first, second)]
    for name, term in both.items():
        assert term.item() == pytest.approx((each[0][name] + each[1][name]).item() / 2, rel=1e-6)


def test_only_terms_with_a_weight_are_worked_out():
    regions = batch_of()
    student, teacher = output_of(regions, 0), output_of(regions, 1)
    maps_only = TeacherOutputs(torch.ones(2, dtype=torch.bool), latent=teacher.latent)
    assert set(terms_of(student, [maps_only], regions, replace(ALL, logit=0, query=0))) == {"map"}
    assert terms_of(student, [], regions, KdConfig()) == {}


def test_another_backbone_is_resized_linearly_with_half_pixel_centres():
    teacher = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 6, 6) * 10
    fewer = matched(teacher, (2, 3, 3))
    assert fewer.shape == (1, 2, 3, 3)
    assert torch.allclose(fewer[0, :, 0, 0], torch.tensor([5.0, 25.0]))
    more = matched(teacher, (8, 6, 6))[0, :, 2, 2].numpy()
    at = (np.arange(8) + 0.5) * 4 / 8 - 0.5
    np.testing.assert_allclose(more, np.interp(at, np.arange(4), np.arange(4) * 10.0), atol=1e-6)
    layers = torch.stack([torch.zeros(5, 3), torch.ones(5, 3)])
    assert torch.allclose(matched(layers[None], (1, 5, 3)), torch.full((1, 1, 5, 3), 0.5))


def test_a_wider_deeper_finer_teacher_teaches():
    regions = batch_of()
    student = output_of(regions, 0)
    pair = candidates_of(regions, VALID).pair
    draw = torch.Generator().manual_seed(1)
    taught = TeacherOutputs(
        torch.ones(2, dtype=torch.bool),
        torch.randn(len(pair), generator=draw).half(),
        torch.randn(4, len(regions.image), 16, generator=draw).half(),
        torch.randn(1, len(regions.pairs), 20, generator=draw).half(),
        torch.randn(2, 16, 9, 9, generator=draw).half(),
    )
    terms = terms_of(student, [taught], regions)
    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_divergences_are_never_negative_and_stay_finite_at_the_extremes():
    extremes = torch.tensor([-60000.0, -50.0, -1.0, 0.0, 1.0, 50.0, 60000.0])
    teacher, student = (values.flatten() for values in torch.meshgrid(extremes, extremes, indexing="ij"))
    for found in (bernoulli_divergence(teacher, student), divergence(extremes[None], extremes[:, None] + extremes)):
        assert found.isfinite().all()
        assert (found >= -1e-6).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"logit": -1.0}, "student.kd.logit"),
        ({"query": float("nan")}, "student.kd.query"),
        ({"temperature": 0.0}, "student.kd.temperature"),
        ({"logit": 1.0}, "student.kd.pairs"),
        ({"map": 1.0, "pairs": ("a",)}, "student.kd.maps"),
        ({"map": 1.0, "query": 1.0, "pairs": ("a", "b"), "maps": ("c",)}, "student.kd.maps: 1 tables for 2"),
        ({"logit_form": "sigmoid"}, "student.kd.logit_form"),
    ],
)
def test_impossible_settings_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        read_section({"method": "link", "labelled": None, "kd": wrong}, "student.")
