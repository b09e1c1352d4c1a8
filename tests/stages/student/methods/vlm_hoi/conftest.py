"""Fixtures of VLM-HOI's tests."""

from __future__ import annotations

import pytest

from tests.fixtures.vlm_hoi_world import World


@pytest.fixture(scope="session")
def world() -> World:
    return World()
