"""Stage 1's losses of the CL-HOI style: by hand, and what they promise of any batch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from hoi_distill.stages.student.methods.cl_hoi.losses import context_loss, late_similarity, same_sets, symmetric_nce


def test_symmetric_nce_by_hand():
    similarity = tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = [2 - math.log(math.e**2 + 1), 3 - math.log(math.e + math.e**3)]
    columns = [2 - math.log(math.e**2 + math.e), 3 - math.log(1 + math.e**3)]
    found = symmetric_nce(similarity, torch.zeros(2, 2, dtype=torch.bool))
    assert found.item() == pytest.approx(-0.5 * (sum(rows) + sum(columns)) / 2, abs=1e-6)


def test_symmetric_nce_does_not_care_which_side_is_text():
    similarity, same = torch.randn(5, 5), torch.rand(5, 5) < 0.3
    same |= same.T.clone()
    torch.testing.assert_close(symmetric_nce(similarity, same), symmetric_nce(similarity.T, same.T))


def test_false_negatives_are_as_if_they_were_not_there():
    similarity = torch.randn(3, 3, requires_grad=True)
    same = tensor([[False, True, False], [True, False, False], [False, False, False]])
    symmetric_nce(similarity, same).backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == similarity.grad[1, 0] == 0
    assert (similarity.grad[[0, 1], [2, 2]] > 0).all()
    assert (similarity.grad.diagonal() < 0).all()


def test_a_queue_is_contrasted_with_images_alone():
    similarity = tensor([[2.0, 0.0, 5.0], [1.0, 3.0, -1.0]])
    without = symmetric_nce(similarity[:, :2], torch.zeros(2, 2, dtype=torch.bool))
    rows = [2 - math.log(math.e**2 + 1 + math.e**5), 3 - math.log(math.e + math.e**3 + math.e**-1)]
    columns = [2 - math.log(math.e**2 + math.e), 3 - math.log(1 + math.e**3)]
    found = symmetric_nce(similarity, torch.zeros(2, 3, dtype=torch.bool))
    assert found.item() == pytest.approx(-0.5 * (sum(rows) + sum(columns)) / 2, abs=1e-6)
    assert found > without


def test_same_sets_are_equal_and_not_empty():
    positive = tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[:2, :2] = expected[2, 2] = True
    assert torch.equal(same_sets(positive, positive), expected)


def test_late_similarity_by_hand():
    phrases = tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, 0.6]]])
    sentences, text = tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), tensor([0, 0, 1])
    expected = tensor([[(1 + 1) / 2, 0.0], [(0.8 + 0.8) / 2, -0.6]])
    torch.testing.assert_close(late_similarity(phrases, sentences, text, 2), expected)


def test_context_loss_falls_where_images_say_their_texts():
    sentences, text = F.normalize(torch.randn(6, 8), dim=1), tensor([0, 0, 1, 1, 2, 2])
    same = torch.zeros(3, 3, dtype=torch.bool)
    right = sentences.view(3, 2, 8)
    whole = F.normalize(right.sum(1), dim=1)
    loss = partial(context_loss, sentences=sentences, text=text, same=same, temperature=tensor(0.1))
    good, bad = loss(right, whole), loss(right.roll(1, 0), whole.roll(1, 0))
    assert all(g < b for g, b in zip(good, bad, strict=True))


@pytest.mark.parametrize("images", [0, 1])
def test_context_loss_is_finite_without_another_image(images):
    phrases = torch.randn(images, 2, 4, requires_grad=True)
    whole = torch.randn(images, 4, requires_grad=True)
    sentences, text = torch.randn(images, 4), torch.arange(images)
    same = torch.zeros(images, images, dtype=torch.bool)
    loss = sum(context_loss(phrases, whole, sentences, text, same=same, temperature=tensor(0.07)))
    assert loss == 0
    loss.backward()
    assert torch.isfinite(phrases.grad).all()
