"""The best boxes that overlap no better one, found without suppressing all of them."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.ops import boxes as box_ops


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_those_of_suppression_within_each_label(seed):
    random = np.random.default_rng(seed)
    corners = random.integers(0, 12, (200, 2))
    boxes = np.concatenate([corners, corners + random.integers(1, 8, (200, 2))], axis=1).astype(np.float32)
    scores = random.integers(0, 40, 200).astype(np.float32) / 40  # ties
    labels = random.integers(0, 4, 200)
    every = box_ops.batched_nms(boxes, scores, labels, 0.4)
    assert box_ops.best_apart(boxes, scores, labels, 0.4, 30).tolist() == every[:30].tolist()
    assert box_ops.best_apart(boxes, scores, labels, 0.4, 500).tolist() == every.tolist()
