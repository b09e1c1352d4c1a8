"""Fixtures of the students' tests."""

from __future__ import annotations

import pytest

from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from tests.fixtures.toy_student import Toy


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(40, 0)


@pytest.fixture
def config() -> PairClassifierConfig:
    return PairClassifierConfig(
        width=32, steps=12, labelled_per_step=6, unlabelled_per_step=8, warmup_steps=2, save_every=4, log_every=3
    )
