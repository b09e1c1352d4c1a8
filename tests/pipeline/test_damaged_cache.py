"""A damaged or unwritable cache, as a user meets it: one line, nothing wrong committed, and `check` and a run get out of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.pipeline.filling.garbage import collect, register, registered
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.check import check_cache
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files import stamps
from tests.fixtures.command import ROOT, hoi_distill
from tests.fixtures.small_tables import mounted
from tests.fixtures.toy_stages import Album, computed, flip_byte, paint, plan_of, run


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    monkeypatch.setattr(stamps, "_sound", {})


def folder(album: Album, table: str) -> Path:
    (found,) = (album.root / "cache" / "tables").glob(f"{table}-*")
    return found


def cells(album: Album, table: str) -> dict[str, list]:
    workspace = album.workspace()
    table_plan = plan_of(workspace)[table]
    values = table_plan.table.read(table_plan.cells)
    return {column: array.to_pylist() for column, array in values.items()}


def test_a_flipped_bit_above_reaches_nothing_below(album, monkeypatch):
    run(album.workspace())
    right = cells(album, "signs")
    for seed in range(6):
        shutil.rmtree(folder(album, "signs"))
        shard = sorted((folder(album, "scores") / "shards").iterdir())[seed % 2]
        flip_byte(shard, int(np.random.default_rng(seed).integers(shard.stat().st_size)))
        monkeypatch.setattr(stamps, "_sound", {})
        with pytest.raises(StorageError, match=rf"{shard.name}: its bytes differ .*`hoi-distill check`"):
            run(album.workspace())
        (found,) = check_cache(album.workspace().cache)
        assert found.shard == shard.name
        assert set(computed(album.workspace())) == {"scores", "signs"}
        assert cells(album, "signs") == right
        assert check_cache(album.workspace().cache) == []
        assert computed(album.workspace()) == {}


def test_the_planner_reads_no_flipped_bit_either(album):
    """A stage that chooses its cells by the values above is planned from them."""
    album.config["tables"]["signs"]["stage"] = "toy_chosen"
    album.write()
    run(album.workspace())
    flip_byte(next((folder(album, "scores") / "shards").iterdir()))
    for command in ("plan", "run"):
        done = hoi_distill(command, album.path)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("hoi-distill: shard ")
        assert line.endswith("its bytes differ from the checksum in its name; `hoi-distill check` sets it aside")
    assert hoi_distill("check", "--cache", album.root / "cache").returncode == 3
    assert hoi_distill("run", album.path).returncode == 0


@pytest.mark.slow
def test_a_record_with_failures_of_flipped_bits_kills_neither_run_nor_check(album):
    (album.folder / "zero.png").write_bytes(b"")
    run(album.workspace())
    record = max((folder(album, "scores") / "commits").iterdir(), key=lambda file: file.stat().st_size)
    intact = record.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(intact), 4).tolist():
        record.write_bytes(intact)
        flip_byte(record, place)
        ran = hoi_distill("run", album.path)
        checked = hoi_distill("check", "--cache", album.root / "cache")
        again = hoi_distill("run", album.path)
        assert ran.returncode in (0, 1)
        assert checked.returncode in (0, 3)
        assert again.returncode == 0, again.stderr
        assert "Traceback" not in ran.stderr + checked.stderr + again.stderr
        if not record.exists():
            break


@pytest.mark.parametrize("pictures", [0, 2])
def test_a_stage_that_chooses_is_planned_where_no_row_of_it_is_filled_above(album, pictures):
    """The wanted rows are none of those that are filled: all of the pictures are new ones."""
    album.config["tables"]["signs"]["stage"] = "toy_chosen"
    album.write()
    for picture in sorted(album.folder.iterdir())[pictures:]:
        picture.unlink()
    if pictures:
        run(album.workspace())
        for number, picture in enumerate(sorted(album.folder.iterdir())):
            paint(picture, 100 + number)
    else:
        paint(album.folder / "only.png", 3)
    table_plan = plan_of(album.workspace())["signs"]
    assert table_plan.counts["unknown"] == 3 * max(pictures, 1)
    run(album.workspace())
    assert all(table_plan.complete() for table_plan in plan_of(album.workspace()).values())


def test_one_broken_picture_and_one_new_question_are_filled(album):
    album.config["tables"] = {"scores": album.config["tables"]["scores"], "maps": {"stage": "toy_maps"}}
    (album.folder / "zero.png").write_bytes(b"")
    album.write()
    run(album.workspace())
    album.config["tables"]["scores"]["columns"] = ["a", "b", "c", "new"]
    album.write()
    run(album.workspace())
    assert all(table_plan.complete() for table_plan in plan_of(album.workspace()).values())


NOTES = {
    "empty": lambda note: note.write_bytes(b""),
    "list": lambda note: note.write_bytes(b"[]"),
    "flipped": lambda note: note.write_bytes(note.read_bytes().replace(b"scores-", b"scorfs-")),
    "folder": lambda note: (note.unlink(), note.mkdir()),
    "dangling": lambda note: (note.unlink(), note.symlink_to("gone")),
}


@pytest.mark.parametrize("damage", NOTES)
def test_a_damaged_note_of_what_a_setup_wants_throws_nothing_away(album, damage):
    run(album.workspace())
    register(album.workspace(), plan_of(album.workspace()))
    workspace = album.workspace()
    (note,) = (album.root / "cache" / "registered").glob("*.json")
    NOTES[damage](note)
    outcome = collect(workspace.cache, True, 0, [])
    assert outcome["unreadable"] == [note.stem]
    assert {row["trashed"] for row in outcome["unwanted"]} == {False}
    (found,) = check_cache(workspace.cache)
    assert found.line().startswith(f"registered/{note.name}: ")
    assert "gc moves nothing until its configuration has run again" in found.line()
    assert check_cache(workspace.cache) == []
    assert collect(workspace.cache, True, 0, [])["unreadable"] == [note.stem], "set aside, it still guards"
    register(workspace, plan_of(workspace))
    outcome = collect(workspace.cache, True, 0, [])
    assert (outcome["unreadable"], outcome["unwanted"]) == ([], [])
    assert list(registered(workspace.cache)[0]) == [note.stem]


def test_a_damaged_note_is_forgotten_when_told(album):
    run(album.workspace())
    register(album.workspace(), plan_of(album.workspace()))
    (note,) = (album.root / "cache" / "registered").glob("*.json")
    note.write_bytes(b"{")
    listed = hoi_distill("gc", "--cache", album.root / "cache")
    assert f"what {note.stem} wants, whose note is damaged" in listed.stdout
    done = hoi_distill("gc", "--cache", album.root / "cache", "--yes", "--forget", "album", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["trashed"] for row in json.loads(done.stdout)["unwanted"]} == {True}


@pytest.mark.slow
def test_a_life_with_every_note_damaged(album):
    """run, damage of all that is no cell, run, check, run: nothing is computed twice and nothing stops."""
    assert hoi_distill("run", album.path).returncode == 0
    cache = album.root / "cache"
    for note in (*cache.glob("tables/*/table.json"), *cache.glob("registered/*.json"), cache / "digests.sqlite"):
        note.write_bytes(b"damaged " * 1000)
    (cache / "leases" / "0123456789ab-77-x.json").write_bytes(b"{")
    stray = cache / "tables" / ("gone-" + "0" * 16)
    stray.mkdir()
    (stray / "table.json").write_bytes(b"{")
    again = hoi_distill("run", album.path)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do: all 36 wanted cells" in again.stdout
    assert [line.partition(";")[0].rpartition(" ")[2] != "" for line in again.stderr.splitlines()] == [True] * 3
    checked = hoi_distill("check", "--cache", cache)
    assert checked.returncode == 3
    assert len(checked.stdout.splitlines()) == 3, checked.stdout  # the stray table, the note of use, the sum
    assert hoi_distill("check", "--cache", cache).returncode == 0
    collected = hoi_distill("gc", "--cache", cache, "--yes", "--json")
    assert [row["table"] for row in json.loads(collected.stdout)["unwanted"]] == [stray.name]
    assert hoi_distill("run", album.path).returncode == 0


def test_a_picture_overwritten_in_place_under_its_old_time_is_computed_again(album):
    time.sleep(0.03)
    run(album.workspace())
    picture = album.folder / "003.png"
    before, data = picture.stat(), picture.read_bytes()
    paint(album.root / "other.png", 9)
    other = (album.root / "other.png").read_bytes()
    assert len(other) == len(data)
    with open(picture, "r+b") as file:
        file.write(other)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (picture.stat().st_size, picture.stat().st_ino) == (before.st_size, before.st_ino)
    assert computed(album.workspace()) == {"scores": 3, "signs": 3}


def test_a_read_only_cache_is_planned_verified_checked_and_refused_before_work(tmp_path):
    script = f"""
import os, subprocess, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
print("STARTED", flush=True)
from tests.fixtures import toy_stages as toys
from hoi_distill.pipeline.filling.garbage import collect, register
from hoi_distill.pipeline.filling.verify import verify_table
from hoi_distill.storage.check import check_cache
from hoi_distill.storage.errors import StorageError
toys.register()
mount = Path(os.environ["MOUNT"])
album = toys.Album(mount)
toys.run(album.workspace())
subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
workspace = album.workspace()
plans = toys.plan_of(workspace)
assert all(table_plan.complete() for table_plan in plans.values())
register(workspace, plans)
for table in ("scores", "signs"):
    assert verify_table(workspace, table, 5, 0).agrees
assert check_cache(workspace.cache) == []
assert collect(workspace.cache, False, 0, [])["unwanted"]
assert toys.computed(workspace) == {{}}
album.config["tables"]["scores"]["columns"].append("new")
album.path = Path({str(tmp_path / "album.yaml")!r})
album.write()
before = len(toys.COMPUTED)
try:
    toys.run(album.workspace())
except StorageError as error:
    assert "Read-only file system; make it writable or give another root" in str(error), error
else:
    raise AssertionError("it ran")
assert len(toys.COMPUTED) == before
"""
    mounted(tmp_path / "disk", "-o size=8m", script)


def test_check_names_what_it_cannot_open(album):
    run(album.workspace())
    records = folder(album, "scores") / "commits"
    shutil.rmtree(records)
    records.symlink_to("unmounted")
    done = hoi_distill("plan", album.path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    checked = hoi_distill("check", "--cache", album.root / "cache")
    assert "/commits: not a folder; set aside, its cells count as empty: run again" in checked.stdout
    assert hoi_distill("run", album.path).returncode == 0


@pytest.mark.slow
def test_a_student_is_trained_from_a_read_only_cache(pico_run):
    path, _ = pico_run
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(path), execute, threading.Event())
    cache = path.parent / "cache"
    before = sorted((file, file.lstat().st_mtime_ns) for file in cache.rglob("*"))
    mount = f"mount --bind {cache} {cache} && mount -o remount,ro,bind {cache} && echo STARTED"
    command = f"{mount} && exec {sys.executable} -m hoi_distill train {path} || exit 77"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    if "STARTED" not in done.stdout:
        pytest.skip(f"no mount: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (path.parent / "runs" / "latest" / "report.html").exists() or list(
        (path.parent / "runs").rglob("report.html")
    )
    assert sorted((file, file.lstat().st_mtime_ns) for file in cache.rglob("*")) == before
