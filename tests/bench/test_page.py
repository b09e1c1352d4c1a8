"""The page of measurements: what is shown is what was measured, and nothing that was measured is missing."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import __main__ as command
from bench.page import CHART, chart, page
from bench.table import Heading, Table, cell, found
from bench.tables import TABLES

ROOT = Path(command.__file__).parent.parent
ENTRIES = {path.stem: json.loads(path.read_text()) for path in (ROOT / command.RESULTS).glob("*.json")}


def test_a_cell_has_a_readable_number_and_its_unit():
    assert cell(7.8211, "s") == "7.82 s"
    assert cell(965800, "") == "965,800"
    assert cell(2**31, "GiB") == "2 GiB"
    assert cell(1_184_205, "MB") == "1.18 MB"
    assert cell(0.8086, "%") == "80.9 %"
    assert cell([1.06, 1.08, 1.07], "") == "1.06 to 1.08"
    assert (cell(True, ""), cell(None, "s"), cell("CPU", "")) == ("yes", "", "CPU")


def test_a_table_reads_the_place_that_row_and_column_name_together():
    table = Table((Heading("time", "{}/seconds/0", "s"),), (Heading("a", "a"), Heading("b", "b")), "x")
    assert table.markdown({"a": {"seconds": [1.5]}, "b": {"seconds": [2.5]}}) == [
        "| x | a | b |",
        "|---|---:|---:|",
        "| time | 1.5 s | 2.5 s |",
    ]
    assert found({"a": {"b": 1}}, "a/c/d") is None


def test_every_measurement_has_a_table():
    assert command.BENCHES.keys() <= TABLES.keys()


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_row_of_a_table_was_measured(name):
    result = ENTRIES[name]["result"]
    for table in TABLES[name](result):
        for row in table.rows:
            assert any(found(result, row.key.format(column.key)) is not None for column in table.columns), row


def test_the_page_and_the_chart_are_those_of_the_json_files():
    titles = {name: bench.words for name, bench in command.BENCHES.items()}
    assert (ROOT / command.PAGE).read_text() == page(ENTRIES, titles), "run `python -m bench page`"
    drawn = chart(ENTRIES["peers"]["result"])
    assert (ROOT / "docs" / CHART).read_text() == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
