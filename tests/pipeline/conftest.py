"""Configurations may name the toys."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.pipeline.graph import registry
from tests.fixtures import toy_stages as toy_stages
from tests.fixtures.toy_stages import Album


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, where in toy_stages.TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)
    toy_stages.KILL_AFTER.clear()


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return Album(tmp_path)
