"""A file appears whole or not at all, and what stood there outlives a failure."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_write, write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing


def test_a_failure_leaves_the_last_good_file_and_no_draft(tmp_path):
    page = tmp_path / "page.html"
    write_atomically(page, "the last good page")
    with pytest.raises(UnicodeEncodeError), atomic_write(page, "w") as file:
        file.writelines(["half", "\udcf1"])
    assert page.read_text() == "the last good page"
    assert os.listdir(tmp_path) == ["page.html"]


def test_bytes_texts_links_and_modes(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    write_atomically(link, "ä")
    assert link.is_symlink()
    assert real.read_bytes() == "ä".encode()
    write_atomically(real, b"\xff")
    assert real.read_bytes() == b"\xff"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask


def test_a_device_stays_a_device():
    write_atomically(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(UserError, match=r"^--out /dev/full: cannot be written: the disk is full; "), \
            writing("--out /dev/full"):  # fmt: skip
        write_atomically(Path("/dev/full"), "much")


@pytest.mark.parametrize(
    ("place", "folder", "said"),
    [
        ("file/page.html", False, "Not a directory"),
        ("file/deep/er", True, "Not a directory"),
        ("file", True, "a file; name a folder"),
        (".", False, "a folder; name the file"),
        ("x" * 300, False, "File name too long"),
        ("loop", False, "symbolic links"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, place, folder, said):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=said) as caught:
        refuse_unwritable("--out", tmp_path / place, folder)
    assert str(caught.value).startswith("--out ")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "page.html").write_text("kept")
    refuse_unwritable("--out", tmp_path / "page.html")
    refuse_unwritable("--out", tmp_path / "new" / "deep" / "page.html")
    refuse_unwritable("--out", tmp_path / "new", folder=True)
    refuse_unwritable("--out", Path("/dev/null"))
    assert os.listdir(tmp_path) == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "kept"


def test_a_disk_without_room_is_found_by_trying(tmp_path):
    """A limit on the size of files stands for a full disk: both let an empty file be made."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from hoi_distill.storage.files.writable import refuse_unwritable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "refuse_unwritable('--out', Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "page.html")],
        cwd=Path(__file__).parents[3], capture_output=True, text=True,
    )  # fmt: skip
    assert "UserError: --out" in done.stderr
    assert "larger than is allowed" in done.stderr
    assert os.listdir(tmp_path) == []
