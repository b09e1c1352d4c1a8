"""Only what carries the tag of a dead process is ever swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hoi_distill.storage.files import owner

OLD = 10 * owner.STALE_SECONDS


def test_names_without_a_tag_are_never_dead():
    for name in ("main", "hoi-distill-main", "0123456789ab", "0123456789ab-x-1", "notes.json"):
        assert not owner.is_dead(name, OLD)
    assert not owner.is_dead(f"{owner.tag()}-x", OLD)
    assert owner.is_dead("0123456789ab-1-x", OLD)


def test_sweeping_leaves_the_files_of_others(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "from hoi_distill.storage.files import owner; print(owner.tag())"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    mine, theirs, left = (tmp_path / name for name in (f"{owner.tag()}-a", "main", f"{dead}-b"))
    for file in (mine, theirs, left):
        file.touch()
        os.utime(file, (0, 0))
    assert owner.sweep(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([mine, theirs])
