"""A made-up world of 60 images, with failures, written once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.viewer_world import default_plot, write_world
from hoi_distill.pipeline.viewer.library import Library
from tests.fixtures.viewed import Served, library_of, served


@pytest.fixture(scope="session")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the world."""
    return write_world(tmp_path_factory.mktemp("viewed"), replace(default_plot(60), fails=20))


@pytest.fixture(scope="session")
def library(viewed: Path) -> Library:
    return library_of(viewed)


@pytest.fixture(scope="session")
def server(library: Library) -> Iterator[Served]:
    with served(library) as running:
        yield running
