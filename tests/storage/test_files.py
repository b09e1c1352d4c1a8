"""A file is whole, or as it was."""

from __future__ import annotations

import os
import signal

import pytest

from storage.files import atomic_write, write_atomically


def test_text_and_bytes_take_their_place_whole(tmp_path):
    place = tmp_path / "page.html"
    write_atomically(place, "Straße, 自転車")
    assert place.read_bytes() == "Straße, 自転車".encode()
    write_atomically(place, b"\x00\xff")
    assert place.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [place]


def test_an_error_leaves_the_last_good_file_and_no_draft(tmp_path):
    place = tmp_path / "page.html"
    write_atomically(place, "good")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(place, "half\ud800")
    with pytest.raises(UnicodeEncodeError), atomic_write(place) as file:
        file.write(b"half" + "\ud800".encode())
    assert place.read_text() == "good"
    assert list(tmp_path.iterdir()) == [place]


def test_a_kill_in_mid_write_leaves_the_last_good_file(tmp_path):
    place = tmp_path / "note.json"
    write_atomically(place, "good")
    child = os.fork()
    if child == 0:
        with atomic_write(place) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert place.read_text() == "good"


def test_a_link_is_written_through_and_a_pipe_as_it_stands(tmp_path):
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(real)
    write_atomically(link, "through")
    assert link.is_symlink()
    assert real.read_text() == "through"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"flows")
    assert os.read(reader, 10) == b"flows"
    os.close(reader)


def test_a_folder_in_the_place_is_an_error_and_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
