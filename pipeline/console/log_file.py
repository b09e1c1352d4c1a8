"""A run's log: what it prints, with the time, also goes to a file in its folder."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class _Twice:
    """A stream that also writes each whole line to a file, with the time before it."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self.stream, self.file, self.begun = stream, file, ""

    def write(self, text: str) -> int:
        """Write to both."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            self._log(line)
        return self.stream.write(text)

    def end(self) -> None:
        """Log the last line, which has no end."""
        if self.begun:
            self._log(self.begun)

    def _log(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextlib.contextmanager
def kept_log(path: Path, *, written: bool = True) -> Iterator[None]:
    """Append what this process prints, to standard output and standard error, to a file as well.

    Args:
        path: the file. One that cannot be written is not: a log is no reason to stop a training.
        written: whether it is written at all.
    """
    if not written:
        yield
        return
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError:
        yield
        return
    out, error = _Twice(sys.stdout, file), _Twice(sys.stderr, file)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):  # type: ignore[type-var]
            yield
    finally:
        out.end()
        error.end()
        with contextlib.suppress(OSError):
            file.close()
