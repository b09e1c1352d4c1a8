"""Offsets of sentences: found where the teacher is biased, shrunk where little is known, never fitted on their own image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.sentence_calibration import SentenceCalibration, fit_offsets
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import itm_supervision
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.vlm_hoi_world import World, tiny_config

TRUE = np.array([2.0, -2.0, 0.0, 0.0])


def drawn(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds and labels ``[N, 4]`` of which ``sigmoid(m / 2 - 0.5 + offset)`` is the probability."""
    rng = np.random.default_rng(seed)
    m = rng.normal(0, 3, (images, len(TRUE)))
    return m.astype(np.float32), rng.random(m.shape) < expit(m / 2 - 0.5 + TRUE)


def test_offsets_are_found_with_many_images_and_shrunk_with_few():
    sentence = np.tile(np.arange(4), 4000)
    m, present = drawn(4000)
    slope, bias, offset = fit_offsets(m.ravel(), present.ravel(), sentence, 5)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert np.allclose(bias + offset[:4], -0.5 + TRUE, atol=0.2)
    assert offset[4] == pytest.approx(0, abs=1e-3), "a sentence without an entry"
    few = fit_offsets(m[:4].ravel(), present[:4].ravel(), sentence[:16], 5)[2]
    assert np.abs(few).max() < np.abs(offset).max()


def test_what_calibrates_an_image_has_not_seen_its_annotations():
    m, present = drawn(50)
    column, known = np.arange(4), np.arange(40)
    fitted = SentenceCalibration.fit(m, known, column, present[known], candidate=None)
    for row in (0, 7, 39):
        other = present[known].copy()
        other[row] = ~other[row]
        again = SentenceCalibration.fit(m, known, column, other, candidate=None)
        assert np.array_equal(again(m[[row]], np.array([row])), fitted(m[[row]], np.array([row])))
        beside = np.array([(row + 1) % 40])
        assert not np.array_equal(again(m[beside], beside), fitted(m[beside], beside))
    unlabelled = np.array([45])
    x = fitted.slope[-1] * m[45] + fitted.bias[-1] + fitted.offset[-1]
    assert np.allclose(fitted(m[unlabelled], unlabelled)[0], expit(x), atol=1e-6)


def test_the_key_calibrates_each_sentence(tmp_path):
    data, rows = World(40).training_set(32), np.arange(40)
    plain, own = (
        itm_supervision(tiny_config(itm=ItmConfig(calibration=name)), data, tmp_path) for name in ("platt", "sentence")
    )
    assert any("offsets of" in line for line in own.lines)
    assert not any("offsets of" in line for line in plain.lines)
    one, other = plain.labelled(rows), own.labelled(rows)
    assert np.array_equal(one.log_odds, other.log_odds, equal_nan=True)
    assert np.nanmax(np.abs(one.soft - other.soft)) > 0.01
    assert own.labelled.by_sentence.offset.shape == (6, len(columns_for(VOCABULARY).prompts))
