"""Attention of each image by itself."""

from __future__ import annotations

import pytest
import torch

from hoi_distill.stages.student.pairs.layers.attention import Padding, SelfAttention, attend, concat_heads


def test_rows_return_from_where_they_were_laid():
    padding = Padding(torch.tensor([0, 0, 2, 2, 2, 4]), [2, 0, 3, 0, 1])
    rows = torch.randn(6, 3)
    padded = padding.pad(rows)
    assert padded.shape == (5, 3, 3)
    assert torch.equal(padding.rows(padded), rows)
    assert torch.equal(padded[2], rows[2:5])
    assert not padded[1].any()
    assert padding.mask[:, 0, 0].tolist() == [
        [True, True, False], [True, False, False], [True, True, True], [True, False, False], [True, False, False],
    ]  # fmt: skip


@pytest.mark.parametrize("image", [[0, 0, 2, 2, 2, 4], []], ids=["some", "none"])
@pytest.mark.parametrize("among", [True, False])
def test_images_in_turn_attend_as_padded_ones_do(image, among):
    """The loop of the CPU against the one padded call of a GPU, values and gradients."""
    padding = Padding(torch.tensor(image, dtype=torch.int64), [image.count(each) for each in range(5)])
    rows, heads = len(image), 2
    sizes = [(rows, 8), (rows, 8), (rows, 4)] if among else [(rows, 8), (5, 7, 8), (5, 7, 4)]
    given = [torch.randn(size, requires_grad=True) for size in sizes]

    def padded(query, key, value):
        if among:
            key, value = padding.pad(key), padding.pad(value)
        return padding.rows(attend(padding.pad(query), key, value, heads, padding.mask if among else None))

    weight = torch.randn(rows, 4)
    values, gradients = [], []
    for way in (lambda *each: padding.attend(*each, heads), padded):
        values.append(way(*given))
        gradients.append(torch.autograd.grad((values[-1] * weight).sum(), given))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_content_and_position_add_up_in_each_head():
    q, k, qp, kp, v = (torch.randn(2, n, 8) for n in (3, 4, 3, 4, 4))
    heads = 2
    seen = attend(concat_heads(q, qp, heads), concat_heads(k, kp, heads), v, heads)
    for head in range(heads):
        own = slice(4 * head, 4 * head + 4)
        logits = (q[..., own] @ k[..., own].mT + qp[..., own] @ kp[..., own].mT) / 8**0.5
        torch.testing.assert_close(seen[..., own], logits.softmax(-1) @ v[..., own])


def test_rows_see_those_of_their_image_only():
    attention = SelfAttention(8, 2, 0.0)
    padding = Padding(torch.tensor([0, 0, 1, 1, 1]), [2, 3])
    rows = torch.randn(5, 8)
    before = attention(rows, padding)
    rows[4] += 1
    after = attention(rows, padding)
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2:4], after[2:4])
