"""The probe of the linking decoder: what it averages, and what it measures of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.probe_linking import averaged, between

COUNTS = [2, 0, 3]


def test_a_blinded_branch_tells_pairs_of_an_image_or_of_the_batch_their_mean_and_the_other_one_is_left_alone():
    seen = [torch.randn(5, 4), torch.randn(5, 3)]
    context: Any = SimpleNamespace(padding=SimpleNamespace(counts=COUNTS))
    for whole, groups in ((False, [slice(0, 2), slice(2, 5)]), (True, [slice(0, 5)])):
        spatial, semantic = averaged(lambda *_: list(seen), 1, whole)(torch.empty(5, 1), context)
        torch.testing.assert_close(spatial, seen[0])
        for group in groups:
            torch.testing.assert_close(semantic[group], seen[1][group].mean(0).expand_as(seen[1][group]))


def test_pairs_that_are_told_the_same_differ_between_images_alone():
    alike = torch.tensor([[1.0], [1.0], [3.0], [3.0], [3.0]])
    apart = torch.tensor([[-1.0], [1.0], [-2.0], [0.0], [2.0]])
    assert between(alike, COUNTS) == 0
    assert between(apart, COUNTS) == pytest.approx(1)
