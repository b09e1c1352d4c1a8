"""What plan says: counts, and a reason for every empty cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.pipeline.planning import plan as planning
from hoi_distill.pipeline.planning.plan import estimate, ones, pack, unpack
from hoi_distill.storage.check import check_table
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.table import Table
from tests.fixtures.toy_stages import Album, computed, flip_byte, paint, plan_of, run, score_of


def reasons(album: Album, table: str) -> dict[str, int]:
    return {reason.text: reason.cells for reason in plan_of(album.workspace())[table].reasons}


def test_before_anything_ran(album):
    plans = plan_of(album.workspace())
    assert plans["scores"].as_json() == {
        "table": "scores",
        "stage": "scores",
        "fingerprint": plans["scores"].as_json()["fingerprint"],
        "rows": 6,
        "columns": 3,
        "wanted": 18,
        "filled": 0,
        "failed": 0,
        "empty": 18,
        "unknown": 0,
        "stale": 0,
        "unknown_until": [],
        "reasons": [{"reason": "no such table yet", "cells": 18}],
        "bytes_to_come": None,
        "seconds_to_come": None,
    }
    below = plans["signs"].as_json()
    assert (below["empty"], below["unknown"], below["unknown_until"]) == (0, 18, ["scores"])
    assert below["reasons"] == [{"reason": "unknown until scores", "cells": 18}]


def test_new_rows_and_new_columns_are_told_apart(album):
    run(album.workspace())
    paint(album.folder / "new.png", 99)
    album.ask("abcd")
    assert reasons(album, "scores") == {"new rows": 4, "new columns": 6}
    table_plan = plan_of(album.workspace())["scores"]
    assert table_plan.bytes_to_come > 0
    assert table_plan.seconds_to_come is not None
    # Below: what the upstream lacks is unknown, the rest is there.
    assert reasons(album, "signs") == {"unknown until scores": 10}


def test_fingerprint_names_field_and_values(album):
    run(album.workspace())
    album.config["tables"]["scores"]["weights"] = "b"
    album.write()
    (text,) = reasons(album, "scores")
    assert text.startswith("fingerprint differs from scores-")
    assert text.endswith("in weights: a -> b")


def test_new_weights_that_say_the_same_rerun_nothing_below(album):
    run(album.workspace())
    album.config["tables"]["scores"]["weights"] = "b"
    album.write()
    assert computed(album.workspace()) == {"scores": 18}


def test_lost_shard(album):
    run(album.workspace())
    table = plan_of(album.workspace())["scores"].table
    flip_byte(min((table.dir / "shards").iterdir()))
    (bad,) = check_table(table)
    assert reasons(album, "scores") == {"shard lost": bad.cells}
    assert reasons(album, "signs") == {}


def test_packed_masks():
    random = np.random.default_rng(0)
    for columns in (1, 7, 8, 13):
        mask = random.random((5, columns)) < 0.5
        assert np.array_equal(unpack(pack(mask), columns), mask)
        assert ones(pack(mask)) == mask.sum()
        every = np.packbits(np.ones((5, columns), bool), axis=1) & pack(mask[:, 0])
        assert np.array_equal(unpack(every, columns), np.repeat(mask[:, :1], columns, axis=1))


def test_counts_are_remembered_until_something_changes(album, monkeypatch):
    """A plan by remembered counts says what one says that merges, and merges nothing."""
    monkeypatch.setattr(planning, "MANY", 1 << 62)
    merges: list[Path] = []
    merge = Table.state
    monkeypatch.setattr(Table, "state", lambda table, cells: merges.append(table.dir) or merge(table, cells))

    def says(many: int) -> list[dict]:
        with monkeypatch.context() as patch:
            patch.setattr(planning, "MANY", many)
            return [made.as_json() for made in plan_of(album.workspace()).values()]

    def check(*changed: str) -> None:
        truth = says(1 << 62)
        merges.clear()
        assert says(0) == truth
        assert sorted(table.name.partition("-")[0] for table in merges) == sorted(changed)
        merges.clear()
        assert says(0) == truth
        assert merges == []

    run(album.workspace())
    check("scores", "signs")
    paint(album.folder / "new.png", 99)
    check("scores", "signs")
    run(album.workspace())
    check("scores", "signs")
    album.ask("abcd")
    check("scores", "signs")
    scores = plan_of(album.workspace())["scores"].table
    flip_byte(min((scores.dir / "shards").iterdir()))
    check("scores")
    check_table(scores)
    check("scores")
    run(album.workspace())
    check("scores", "signs")
    min((scores.dir / "shards").iterdir()).unlink()
    check("scores")


def test_counts_are_remembered_of_a_stage_that_wants_only_some_cells(album, monkeypatch):
    album.config["tables"]["signs"]["stage"] = "toy_chosen"
    album.ask("abcdefgh")
    run(album.workspace())
    truth = plan_of(album.workspace())["signs"].as_json()
    monkeypatch.setattr(planning, "MANY", 0)
    assert 0 < truth["wanted"] < 6 * 8
    assert [plan_of(album.workspace())["signs"].as_json() for _ in range(2)] == [truth, truth]


def test_counts_are_not_remembered_beside_a_record_that_cannot_be_read(album, monkeypatch, caplog):
    run(album.workspace())
    flip_byte(min((plan_of(album.workspace())["scores"].table.dir / "commits").iterdir()))
    monkeypatch.setattr(planning, "MANY", 0)
    for _ in range(2):
        caplog.clear()
        plan_of(album.workspace())
        assert "until then it counts as none" in caplog.text


@pytest.mark.parametrize("limit", [1, 4])
def test_limit(album, limit):
    assert computed(album.workspace(limit=limit)) == {"scores": 3 * limit, "signs": 3 * limit}
    assert computed(album.workspace()) == {"scores": 18 - 3 * limit, "signs": 18 - 3 * limit}


def test_equal_images_share_a_row(album):
    for copy in range(3):
        paint(album.folder / f"copy-{copy}.png", 0)
    workspace = album.workspace()
    assert len(workspace.sources["images"].ids) == 6
    assert len(workspace.sources["images"].splits["train"]) == 9
    assert computed(workspace) == {"scores": 18, "signs": 18}


def test_a_stage_that_wants_only_some_cells(album):
    """Unknown, with an upper bound, until the table above is filled; then exactly the wanted cells."""
    prompts = "abcdefgh"
    album.config["tables"]["signs"]["stage"] = "toy_chosen"
    album.ask(prompts)
    above = sum(score_of(prompt) > 500 for prompt in prompts)  # the images are nearly black: they add less than 20
    assert 0 < above < len(prompts)
    before = plan_of(album.workspace())["signs"].counts
    assert (before["wanted"], before["unknown"], before["empty"]) == (48, 48, 0)
    done = computed(album.workspace())
    table_plan = plan_of(album.workspace())["signs"]
    assert table_plan.complete()
    assert table_plan.counts["wanted"] == table_plan.counts["filled"] == done["signs"] == 6 * above
    assert computed(album.workspace()) == {}
    paint(album.folder / "new.png", 40)
    assert reasons(album, "signs") == {"unknown until scores": 8}
    assert computed(album.workspace()) == {"scores": 8, "signs": above}


def test_speed_is_told_only_of_the_same_teacher(album):
    """Another teacher's cells say how large such cells are, and nothing of how long they take."""
    run(album.workspace())
    table_plan = plan_of(album.workspace())["scores"]
    assert (table_plan.bytes_to_come, table_plan.seconds_to_come) == (0, 0.0)
    other = {**table_plan.table.record, "parameters.teacher": "another", "parameters.weights": "b"}

    class Stranger:
        record, records = other, staticmethod(table_plan.table.records)

    def to_come(*tables):
        empty = replace(table_plan, table=None, counts={"empty": 18, "unknown": 0})
        estimate(empty, tables)
        return empty.bytes_to_come, empty.seconds_to_come

    size, seconds = to_come(table_plan.table)
    assert size > 0
    assert seconds is not None
    assert to_come(Stranger) == (size, None)
    assert to_come(Stranger, table_plan.table)[1] == seconds
    assert to_come() == (None, None)


def test_a_world_that_is_drawn_for_a_plan_is_told_before(album, tmp_path, capsys):
    album.config["dataset"] = {"kind": "pico", "root": str(tmp_path / "world"), "train": 3, "test": 2}
    album.write()
    album.workspace()
    said = capsys.readouterr()
    assert said.err == f"Drawing the pico world into {tmp_path / 'world'} first: 5 images, about 70.0 kB.\n"
    assert said.out == ""
    album.workspace()
    assert capsys.readouterr().err == ""
    album.config["dataset"]["train"] = 4
    album.write()
    with pytest.raises(UserError, match="holds another pico world"):
        album.workspace()
    assert capsys.readouterr().err == ""
