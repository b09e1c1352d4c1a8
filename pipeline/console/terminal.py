"""What reaches a terminal. Names of files and classes, captions and messages come from elsewhere and may hold codes that
move the cursor, recolour, retitle or answer for the user; every stream that we print to shows such codes instead."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

from hoi_distill.storage.errors import WorkStopped
from hoi_distill.storage.files.writable import reason

CODES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of writing, and bytes that are no text."""
MOVES = re.compile("(?:[\r\n]|\x1b\\[[0-9]*[AFJK])*")
"""What a progress bar writes by itself to renew its lines: return, line up, clear."""

RESET = "\x1b[0m"
"""What libraries leave a terminal with."""

BEGUN = re.compile("\r?")
"""How it begins a line that it renews."""


def printable(text: str) -> str:
    """The text with every code as ``\\u001b``, which is also how JSON spells it."""
    return CODES.sub(lambda code: f"\\u{ord(code[0]):04x}", text)


def one_line(text: str) -> str:
    """The same in one line, for messages."""
    return printable(text).replace("\n", "\\n")


class PrintableStream:
    """A text stream that passes on what is printable and is otherwise the stream that it wraps.

    Args:
        stream: the stream that is written to.
        messages: it carries progress and warnings, no results. Progress bars may move the cursor there: a write of nothing but
            moves, and a return that begins one, are theirs, since names stand inside of what is written. What cannot be
            written there (the terminal has gone, the disk under a log is full) is dropped: no run ends for it.
    """

    def __init__(self, stream: IO[str], messages: bool = False) -> None:
        self._stream, self._messages = stream, messages

    def write(self, text: str) -> int:
        """Write the printable text; returns the number of characters given.

        Raises:
            WorkStopped: a result cannot be written.
            BrokenPipeError: the reader of the results has left.
        """
        if text == RESET:
            return len(text)  # no colour ever reaches the stream
        kept = MOVES.fullmatch(text) or BEGUN.match(text) if self._messages else None
        start = kept[0] if kept else ""
        try:
            self._stream.write(start + printable(text[len(start) :]))
        except OSError as error:
            if self._messages:
                return len(text)
            if isinstance(error, BrokenPipeError):
                raise
            raise WorkStopped(f"what is printed cannot be written: {reason(error)}") from None
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line as :meth:`write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Within the block, ``sys.stdout`` and ``sys.stderr`` are printable, and a character that the terminal's encoding lacks is
    spelt out."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (
        stream and PrintableStream(stream, messages) for stream, messages in zip(before, (False, True), strict=True)
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush_output() -> None:
    """Write out what was printed. A reader that has left (``| head``) is no error.

    Raises:
        WorkStopped: it cannot be written; the rest is dropped.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        if not isinstance(error, BrokenPipeError):
            raise WorkStopped(f"what is printed cannot be written: {reason(error)}") from None
