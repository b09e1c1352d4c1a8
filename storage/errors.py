"""The errors that a user is meant to read: one line that names file, key and remedy."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong. ``str(error)`` is one line naming the file, the key or entry, and the remedy."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the allowed name nearest to a wrong one; nothing where none is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class InputFailure(Exception):
    """A source input (an image, a text) cannot be processed. It becomes a failure cell with this reason; the run goes on."""


class WorkStopped(RuntimeError):
    """Work that cannot go on, for a reason that is in the data or the machine. One line says what and where."""


class StorageError(WorkStopped):
    """The cache cannot be written or read (disk full, read-only, gone). One line names the table and the shard."""


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the file size limit",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable",
    errno.ENOENT: "see whether it was moved",
    errno.ENOTDIR: "`hoi-distill check` sets it aside",
    errno.EISDIR: "`hoi-distill check` sets it aside",
}


def remedy(error: OSError) -> str:
    """What helps against it, as a user would be told."""
    return _REMEDIES.get(error.errno or 0, "check the disk")
