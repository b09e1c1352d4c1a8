"""Drafts: whose they are, who removes them, and that nobody takes one for a finished file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hoi_distill.storage.files.atomic import atomic_path, atomic_write, link_atomically, write_atomically
from hoi_distill.storage.files.notes import notes_in, write_note

KILLED = """
import os, sys
from hoi_distill.storage.files.atomic import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page", b"good")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "page")], check=False).returncode == 9
    assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "page").read_bytes() == b"good"
    write_atomically(tmp_path / "other", "x")
    assert sorted(os.listdir(tmp_path)) == ["other", "page"]


def test_a_rivals_draft_and_notes_of_the_dead_are_left_alone(tmp_path: Path) -> None:
    host = "0" * 12
    kept = [f"{host}-7-{'a' * 12}-page.draft", f"{host}-7-{'a' * 12}.json"]  # of another host, just written
    for name in kept:
        (tmp_path / name).write_text("{}")
    with atomic_write(tmp_path / "page") as first:
        write_atomically(tmp_path / "page", b"second")
        first.write(b"first")
    assert (tmp_path / "page").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "page"])


def test_a_draft_of_a_note_is_no_note(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "one.json") as draft:
        draft.write_bytes(b"half")
        assert notes_in(tmp_path) == []
    write_note(tmp_path / "two.json", {"tables": []})
    assert [note.name for note in notes_in(tmp_path)] == ["one.json", "two.json"]


def test_a_long_name_has_a_draft(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 250), b"x")
    assert os.listdir(tmp_path) == ["n" * 250]


def test_a_link_takes_the_place_of_another_and_not_of_a_folder(tmp_path: Path) -> None:
    for target in ("one", "two"):
        link_atomically(tmp_path / "latest", target)
        assert os.readlink(tmp_path / "latest") == target
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        link_atomically(tmp_path / "folder", "one")
    assert sorted(os.listdir(tmp_path)) == ["folder", "latest"]
