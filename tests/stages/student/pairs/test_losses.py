"""The losses: exact at the extremes, and what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.calibration import fit_platt, match_log_odds, shuffled_images
from hoi_distill.stages.student.pairs.losses import final_logit
from hoi_distill.stages.student.pairs.supervision.soft_labels import image_terms
from hoi_distill.stages.student.training.focal import upt_focal_terms


@pytest.mark.parametrize("prior", [1e-6, 0.3, 1 - 1e-6, 1.0])
def test_final_logit_is_that_of_prior_times_interaction(prior):
    logit = torch.tensor([-50.0, -11.5, -1.0, 0.0, 2.0, 50.0])
    final = final_logit(logit, torch.full_like(logit, prior))
    torch.testing.assert_close(final.double().sigmoid(), prior * logit.double().sigmoid(), rtol=0, atol=1e-6)
    assert torch.isfinite(final).all()


def test_final_logit_has_finite_gradients_at_the_extremes():
    logit = torch.tensor([-300.0, -50.0, 50.0, 300.0], requires_grad=True)
    upt_focal_terms(
        final_logit(logit, torch.tensor([1.0, 0.5, 0.5, 1.0])), torch.tensor([1.0, 0.0, 1.0, 0.0])
    ).sum().backward()
    assert torch.isfinite(logit.grad).all()


def test_focal_term_of_one_entry_worked_out_by_hand():
    term = upt_focal_terms(torch.tensor([0.0]), torch.tensor([1.0]), alpha=0.5, gamma=0.2)
    assert term.item() == pytest.approx(0.5 * (0.5 + 1e-6) ** 0.2 * np.log(2), rel=1e-5)


def test_image_loss_is_the_pair_loss_against_each_pairs_share():
    """The gradient on psi_p is s_p - t * s_p / S: image-level and pair-level supervision are the same thing."""
    logit = torch.tensor([-2.0, 0.5, 1.0, -3.0], requires_grad=True)
    group, soft = torch.tensor([0, 0, 1, 0]), torch.tensor([0.7, 0.2])
    image_terms(logit, group, soft).sum().backward()
    s = logit.detach().sigmoid()
    some = torch.stack([1 - (1 - s[group == image]).prod() for image in (0, 1)])
    torch.testing.assert_close(logit.grad, s - soft[group] * s / some[group])


def test_image_loss_is_zero_at_the_teachers_certainty_and_finite_when_far_from_it():
    sure = image_terms(torch.tensor([40.0, -40.0, -40.0]), torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0]))
    assert sure.abs().max() < 1e-6
    logit = torch.tensor([-200.0, -60.0, 60.0], requires_grad=True)
    loss = image_terms(logit, torch.tensor([0, 1, 2]), torch.tensor([1.0, 1.0, 0.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logit.grad).all()
    assert logit.grad[1] < -0.9


def test_calibration_recovers_the_scale_it_was_made_with():
    rng = np.random.default_rng(0)
    m = rng.normal(0, 4, 20_000)
    present = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * m - 2)))
    platt = fit_platt(m, present)
    assert platt.slope == pytest.approx(0.5, abs=0.03)
    assert platt.bias == pytest.approx(-2, abs=0.1)


def test_calibration_of_separable_scores_is_finite_and_of_one_sided_ones_refused():
    platt = fit_platt(np.array([-1.0, 1.0, -2.0, 2.0]), np.array([False, True, False, True]))
    assert np.isfinite([platt.slope, platt.bias]).all()
    with pytest.raises(ValueError, match="present and absent"):
        fit_platt(np.array([1.0]), np.array([True]))


def test_match_is_the_second_logit():
    assert match_log_odds(np.array([[1.0, 3.5]], np.float16)).tolist() == [2.5]


def test_shuffling_gives_every_image_anothers_answers():
    images = np.arange(10, 60)
    taken = shuffled_images(images, 3)
    assert sorted(taken) == sorted(images)
    assert (taken != images).all()
