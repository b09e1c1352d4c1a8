"""Filtering, pairs, geometry, prior and association, against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import torch

from hoi_distill.stages.ops.instances import associate, filter_detections, ordered_pairs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.pairs.candidates import pair_geometry, pair_prior
from hoi_distill.stages.student.pairs.instances import image_of


def spread(count: int) -> np.ndarray:
    """Boxes that do not overlap."""
    x = np.arange(count, dtype=np.float32) * 10
    return np.stack((x, x * 0, x + 8, x * 0 + 8), 1)


def test_too_few_confident_instances_are_topped_up_whatever_they_score():
    scores = np.array([0.9, 0.05, 0.01, 0.5, 0.1, 0.04, 0.03], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 2, 3])
    assert filter_detections(spread(7), scores, labels).tolist() == [0, 1, 2, 3, 4, 5]


def test_too_many_instances_are_cut_to_the_best_of_each_group():
    scores = np.linspace(0.99, 0.5, 40).astype(np.float32)
    kept = filter_detections(spread(40), scores, np.arange(40) % 2)
    assert kept.tolist() == [*range(0, 30, 2), *range(1, 31, 2)]


def test_duplicates_of_a_class_are_suppressed_but_not_across_classes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    kept = filter_detections(boxes, np.array([0.5, 0.9, 0.8], np.float32), np.array([1, 1, 2]))
    assert kept.tolist() == [1, 2]


def test_pairs_are_every_human_with_every_other_instance():
    assert ordered_pairs(2, 3).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]
    for humans, instances in ((0, 0), (0, 3), (1, 1)):
        assert ordered_pairs(humans, instances).shape == (0, 2)
    assert len(ordered_pairs(15, 30)) == 435


def test_geometry_of_a_pair_worked_out_by_hand():
    human, thing = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[20.0, 40, 40, 60]])
    f = pair_geometry(human, thing, torch.tensor([[100.0, 80]]))[0]
    expected = [
        0.2, 0.5, 0.3, 0.625, 0.2, 0.5, 0.2, 0.25, 0.1, 0.05, 0.5, 0.5, 1.0, 200 / 1000, 0.5, 0.0, 0.25, 0.0,
    ]  # fmt: skip
    torch.testing.assert_close(f[:18], torch.tensor(expected))
    torch.testing.assert_close(f[18:], torch.log(torch.tensor(expected) + 1e-10))


def test_geometry_of_degenerate_and_outlying_boxes_is_finite_and_bounded():
    boxes = torch.tensor([[50.0, 50, 50, 50], [-1e4, -1e4, 1e4, 1e4], [300, 300, 400, 400], [0, 0, 1e-9, 1e-9]])
    f = pair_geometry(boxes, boxes.flip(0), torch.full((4, 2), 100.0))
    assert torch.isfinite(f).all()
    assert f.abs().max() <= 1e4


def test_prior_is_the_product_of_scores_where_the_object_allows_the_class():
    valid = torch.tensor([[False, False, False], [True, False, True]])
    prior = pair_prior(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 1.0]), torch.tensor([1, 0]), valid)
    assert prior.tolist() == [[0.25, 0.0, 0.25], [0.0, 0.0, 0.0]]


def test_association_needs_both_boxes_and_gives_every_class():
    human = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 4]], np.float32)
    thing = np.array([[20, 0, 30, 10], [50, 0, 60, 10], [20, 0, 30, 10]], np.float32)
    true_human = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]], np.float32)
    true_thing = np.array([[20, 0, 30, 10], [20, 0, 30, 10], [20, 0, 30, 10]], np.float32)
    # Pair 0 overlaps truth 1's person by exactly one half, which counts; pair 1's object is elsewhere; pair 2's person
    # covers .4 of truths 0 and 2, and .8 of truth 1.
    found = associate(human, thing, true_human, true_thing, np.array([4, 5, 7]))
    assert found.tolist() == [[0, 4], [0, 5], [0, 7], [2, 5]]
    nothing = np.empty((0, 4), np.float32)
    assert associate(human, thing, nothing, nothing, np.empty(0, np.int64)).shape == (0, 2)
    assert associate(nothing, nothing, true_human, true_thing, np.array([4, 5, 7])).shape == (0, 2)


def test_detections_of_a_image_come_out_humans_first_and_inside():
    cell = {
        "boxes": [[-5, 0, 20, 30], [10, 10, 90, 40]],
        "scores": [0.6, 0.9],
        "labels": [0, 1],
        "width": 64,
        "height": 48,
    }
    image = image_of(cell, PairClassifierConfig())
    assert image.humans == 1
    assert image.boxes.tolist() == [[0, 0, 20, 30], [10, 10, 64, 40]]
    assert image.pairs.tolist() == [[0, 1]]
    assert math.isclose(image.scores[0], 0.6, rel_tol=1e-6)
