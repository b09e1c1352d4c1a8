"""The errors that a user is meant to read: one line that names file, key and remedy."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user gave is wrong. ``str(error)`` is one line naming the file, the key or entry, and the remedy."""


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """What is said in a block of a section's own keys begins with ``where``: the file, the section and a dot, or a key.
    ``student.`` before a key, which a room that knows no file says of itself, gives way to it."""
    try:
        yield
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(where) else where + said.removeprefix("student.")) from None


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that is most like a wrong one; None where none is like it."""
    return next(iter(difflib.get_close_matches(name, list(allowed), n=1)), None)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the :func:`nearest` name; nothing where none is near."""
    near = nearest(name, allowed)
    return f" (did you mean {near}?)" if near else ""


class InputFailure(Exception):
    """A source input (an image, a text) cannot be processed. It becomes a failure cell with this reason; the run goes on."""


class WorkStopped(RuntimeError):
    """Work that cannot go on, for a reason that is in the data or the machine. One line says what and where."""


class StorageError(WorkStopped):
    """The cache cannot be written or read (disk full, read-only, gone). One line names the table and the shard."""


READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What an attempt to write ends with where this process may only read."""
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the file size limit",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable",
    errno.ENOENT: "see whether it was moved",
    errno.EHOSTUNREACH: "see whether it can be reached",
    errno.ENOTDIR: "`hoi-distill check` sets it aside",
    errno.EISDIR: "`hoi-distill check` sets it aside",
}
"""What helps where a file cannot be read or written."""


def remedy(error: OSError) -> str:
    """What helps against it, as a user would be told."""
    return REMEDIES.get(error.errno or 0, "check the disk")
