"""Areas under ROC curves of scores of pairs, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.evaluate.metrics.localisation import area, calibration_error, localisation_area


def test_an_area_counts_ties_by_halves():
    assert area(np.array([3.0, 1.0, 2.0]), np.array([True, False, False])) == 1.0
    assert area(np.array([1.0, 1.0, 2.0]), np.array([True, False, False])) == 0.25
    assert area(np.ones(4), np.array([True, False, True, False])) == 0.5
    assert area(np.ones(2), np.ones(2, bool)) is None


def test_localisation_compares_within_groups_alone_and_an_answer_about_the_image_gets_a_half():
    group = np.array([5, 9, 5, 9, 5, 7])
    positive = np.array([1, 1, 0, 0, 0, 1], bool)
    assert localisation_area(np.array([2.0, 0.0, 1.0, 9.0, 3.0, 4.0]), positive, group) == (pytest.approx(1 / 3), 3)
    assert localisation_area(group.astype(float), positive, group) == (0.5, 3)
    assert localisation_area(np.arange(3.0), np.ones(3, bool), np.arange(3)) == (None, 0)
    assert localisation_area(np.empty(0), np.empty(0, bool), np.empty(0, int)) == (None, 0)


def test_calibration_error_is_the_gap_by_bin():
    assert calibration_error(np.array([0.05, 0.05, 0.95, 1.0]), np.array([0, 0, 1, 1], bool)) == pytest.approx(0.0375)
    assert calibration_error(np.array([0.9, 0.9]), np.array([0, 0], bool)) == pytest.approx(0.9)
    assert calibration_error(np.empty(0), np.empty(0, bool)) is None
