"""The user's page about evaluation says what the code does."""

from __future__ import annotations

from docs.evaluation_tables import PAGE, filled, tables
from hoi_distill.pipeline.cli.evaluate import evaluate
from hoi_distill.stages.evaluate.metrics.conventions import CONVENTIONS, NUMBERS, OFFICIAL, SWITCHES


def test_every_convention_switch_and_value_is_in_the_page():
    page = PAGE.read_text()
    assert set(OFFICIAL.switches()) == {*SWITCHES, *NUMBERS}
    for name in (*CONVENTIONS, *SWITCHES, *NUMBERS, *(value for values in SWITCHES.values() for value in values)):
        assert f"`{name}`" in page, name
    assert filled(page) == page, "run: python docs/evaluation_tables.py"
    assert all(table in page for table in tables().values())


def test_every_option_is_in_the_page():
    page = PAGE.read_text()
    for name in evaluate.__annotations__:
        if name != "return":
            assert f"`--{name.removeprefix('as_').removeprefix('detections_').replace('_', '-')}" in page, name
