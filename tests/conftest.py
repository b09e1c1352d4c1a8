"""Fixtures that tests of several folders use, and the time that a slow test may take."""

import pytest

pytest_plugins = [
    "tests.fixtures.tiny_blip",
    "tests.fixtures.published_names",
    "tests.fixtures.pico_run",
    "tests.fixtures.object_stores",
]

SLOW_LIMIT = 600
"""Seconds. Other tests have the limit of pyproject.toml, or of ``--timeout``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have a limit of their own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
