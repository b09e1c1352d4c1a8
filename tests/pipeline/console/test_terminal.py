"""No code from a name, a caption or a message reaches a terminal, whatever prints it; a reader that leaves is no error."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hoi_distill.pipeline.console.progress import Progress
from hoi_distill.pipeline.console.terminal import PrintableStream, one_line, printable, printable_streams
from hoi_distill.storage.errors import WorkStopped

ROOT = Path(__file__).parents[3]
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\x7f\u202egpj\udcf1"
DRIVE = [sys.executable, "-m", "tests.fixtures.drive"]


def test_codes_are_spelt_out_and_texts_stay():
    shown = printable(HOSTILE)
    assert shown == "\\u001b[31mred\\u001b]0;title\\u0007\\u009b2J\\u000d\\u007f\\u202egpj\\udcf1"
    assert json.loads(f'"{shown}"') == HOSTILE
    for text in ("plain", "a\tb\nc", "mAP ± 0.4 – käfer 犬 עברית", ""):
        assert printable(text) == text
    assert one_line("two\nlines\x1b") == "two\\nlines\\u001b"


@pytest.mark.parametrize("how", ["print", "error", "log", "writelines"])
def test_every_way_to_print_goes_through_it(monkeypatch, how):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with printable_streams():
        match how:
            case "print":
                print("class", HOSTILE)
            case "error":
                print(f"hoi-distill: {HOSTILE}", file=sys.stderr)
            case "log":
                logging.getLogger("storage.hostile").warning("%s: set aside", HOSTILE)
            case "writelines":
                sys.stdout.writelines([HOSTILE, "\n"])
    assert printable(HOSTILE) in out.getvalue()
    assert printable(out.getvalue()) == out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_librarys_last_reset_of_colours_is_not_spelt_out():
    for messages in (True, False):
        PrintableStream(shown := io.StringIO(), messages).write("\x1b[0m")
        assert shown.getvalue() == ""


def test_progress_bars_still_renew_their_lines_and_names_in_them_do_not():
    bars = io.StringIO()
    stream = PrintableStream(bars, messages=True)
    for written in ("\r 10%", "\n\n", "\x1b[A\x1b[A", "\x1b[2F\x1b[J"):
        stream.write(written)
    assert bars.getvalue() == "\r 10%\n\n\x1b[A\x1b[A\x1b[2F\x1b[J"
    PrintableStream(strict := io.StringIO()).write("\x1b[2F\r")
    assert strict.getvalue() == "\\u001b[2F\\u000d"

    screen = Terminal()
    progress = Progress({"\x1b[31mscores": 5}, out=PrintableStream(screen, messages=True))  # type: ignore[arg-type]
    progress.draw()
    progress.draw()
    assert re.search("\x1b\\[[0-9]+F\x1b\\[J", screen.getvalue())
    assert "\x1b[31m" not in screen.getvalue()
    assert screen.getvalue().count("\\u001b[31mscores") == 2


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_has_gone_loses_messages_and_no_run():
    messages = PrintableStream(Gone(), messages=True)
    with Progress({"itm": 100}, out=messages, every=60) as progress:  # type: ignore[arg-type]
        progress.say("to nobody")
        progress.draw()
    print("a warning", file=messages)
    with pytest.raises(WorkStopped, match="what is printed cannot be written"):
        PrintableStream(Gone()).write("a result")


def on_a_terminal(*arguments: str | Path) -> str:
    """What a command writes to a terminal on both of its streams."""
    master, slave = pty.openpty()
    with subprocess.Popen([*DRIVE, *map(str, arguments)], cwd=ROOT, stdout=slave, stderr=slave, stdin=slave) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        process.wait(120)
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


def test_a_run_of_hostile_names_on_a_terminal(album):
    """Broken images with codes in their names are recorded as failures, and told without the codes."""
    for name in ("\x1b[31mred.png", "\x1b]0;title\x07.png", "\x9b2J.png", "two\nlines.png", os.fsdecode(b"\xf1.png")):
        (album.folder / name).write_bytes(b"")
    album.config["tables"]["\x1b[5mblink"] = album.config["tables"].pop("scores")
    album.config["tables"] = {"\x1b[5mblink": album.config["tables"]["\x1b[5mblink"]}
    album.write()
    shown = on_a_terminal("run", album.path)
    assert "Computed cells" in shown
    drawn = re.sub("\x1b\\[[0-9]+F\x1b\\[J", "", shown)
    assert printable(drawn) == drawn
    assert "\\u001b[5mblink" in drawn


def test_an_error_is_one_line_whatever_is_in_it(tmp_path):
    shown = on_a_terminal("plan", tmp_path / "no\x1b[2J\nsuch.yaml")
    assert shown == f"hoi-distill: {tmp_path}/no\\u001b[2J\\nsuch.yaml: no such configuration\n"
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} teachers | head -1; exit ${{PIPESTATUS[0]}}", (0, 1), ""),
        ("{} teachers --json | true; exit ${{PIPESTATUS[0]}}", (0, 1), ""),
        ("PYTHONUNBUFFERED= {} teachers blip_itm | true; exit ${{PIPESTATUS[0]}}", (0, 1), ""),
        (
            "PYTHONUNBUFFERED= {} teachers > /dev/full",
            (1,),
            "hoi-distill: what is printed cannot be written: the disk is full\n",
        ),
        ("{} --help > /dev/full", (1,), "hoi-distill: what is printed cannot be written: the disk is full\n"),
        ("{} teachers >&-", (0,), ""),
        ("LC_ALL=C PYTHONIOENCODING=ascii {} teachers > /dev/null", (0,), ""),
    ],
)
def test_a_reader_that_left_a_full_disk_and_a_poor_encoding(shell, code, said):
    command = f"{sys.executable} -m hoi_distill"
    done = subprocess.run(["bash", "-c", shell.format(command)], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == said
    assert done.returncode in code
