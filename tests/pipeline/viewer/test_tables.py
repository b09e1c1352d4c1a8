"""Every answer of an image: filled, failed, stale, lost or empty, with who computed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from bench.viewer_world import default_plot, write_world
from tests.fixtures.viewed import library_of


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path / "world", default_plot(10))


def answers(path: Path, table: str, entry: int):
    return {answer.column: answer for answer in library_of(path).tables[table].answers(entry)}


def test_a_filled_cell_names_its_record_and_the_value_that_the_table_reads(library):
    table = library.tables["captions"]
    for entry in (1, 47, 59):
        (caption, _) = table.answers(entry)
        assert caption.state == "filled"
        assert caption.value == table.column("a photo of")[entry].as_py()
        assert caption.origin.provenance["task"] == "captions:0"
        assert (table.table.dir / "commits" / caption.origin.record).exists()


def test_a_failed_cell_tells_its_reason(library):
    caption, other = library.tables["captions"].answers(20)
    assert (caption.state, caption.why) == ("failed", "the image <b>could not</b> be decoded")
    assert other.state == "filled"


def test_a_cell_whose_shard_is_gone_is_lost(world):
    table = library_of(world).tables["itm"].table
    for shard in (table.dir / "shards").iterdir():
        shard.unlink()
    found = answers(world, "itm", 3)
    assert {answer.state for answer in found.values()} == {"lost"}
    assert "its shard is missing" in next(iter(found.values())).why


def test_a_cell_of_an_edited_annotation_is_stale_and_says_from_what(world):
    file = world.parent / "annotations.json"
    document = json.loads(file.read_text())
    document["pictures"][2]["pairs"][0]["human_box"] = [1, 1, 20, 60]
    file.write_text(json.dumps(document))
    changed, same = answers(world, "detections", 2)["value"], answers(world, "detections", 3)["value"]
    assert changed.state == "stale"
    assert "the line of its input file" in changed.why
    assert "hoi-distill run" in changed.why
    assert changed.origin.state == "stale"
    assert same.state == "filled"
    library = library_of(world)
    assert library.tables["detections"].lacks["stale"].tolist() == [i == 2 for i in range(10)]


def test_a_table_that_is_not_there_says_what_fills_it(world):
    for folder in (world.parent / "cache" / "tables").glob("captions-*"):
        shutil.rmtree(folder)
    found = answers(world, "captions", 0)
    assert {answer.state for answer in found.values()} == {"empty"}
    assert "hoi-distill run" in next(iter(found.values())).why
    assert library_of(world).tables["captions"].lacks["empty"].all()


def test_a_table_of_another_configuration_is_shown_beside(world):
    config = yaml.safe_load(world.read_text())
    prompts = answers(world, "itm", 4)
    del config["tables"]["itm"]
    world.write_text(yaml.safe_dump(config))
    (other,) = (table for table in library_of(world).tables.values() if table.plan is None)
    assert other.name.startswith("itm-")
    assert {each.column: each.value for each in other.answers(4)} == {
        each.column: each.value for each in prompts.values()
    }
