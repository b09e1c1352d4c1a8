"""Fixtures that tests of several folders use."""

pytest_plugins = ["tests.fixtures.tiny_blip", "tests.fixtures.published_names", "tests.fixtures.pico_run"]
