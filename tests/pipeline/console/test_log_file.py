"""A run's log holds what was printed, and stops nothing."""

from __future__ import annotations

import errno
from pathlib import Path

from hoi_distill.pipeline.console.log_file import kept_log


def test_every_line_is_kept_with_the_time_also_the_last_without_an_end(tmp_path, capsys):
    with kept_log(tmp_path / "log.txt"):
        print("one")
        print("two", end="")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "two"]
    assert capsys.readouterr().out == "one\ntwo"


def test_a_full_disk_stops_no_training(tmp_path, capsys, monkeypatch):
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with kept_log(tmp_path / "log.txt"):
        print("it goes on")
    assert capsys.readouterr().out == "it goes on\n"
