"""Whether a result can be put where a user wants it, asked before the work, and said in one line where it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from hoi_distill.storage.errors import UserError

PROBE = bytes(64 << 10)
"""Written and removed again: less than any page, more than a full disk takes."""
PLAIN = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file would be larger than is allowed here",
}
"""Where the operating system's words are not a user's."""


def reason(error: OSError) -> str:
    """Why a file cannot be written or read, in plain words."""
    return PLAIN.get(error.errno or 0) or error.strerror or str(error)


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Raises UserError, one line with the place, for an OSError of the block.

    Args:
        place: the path, after the option that gave it: ``--out page.html``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {reason(error)}; give another place") from None


def refuse_unwritable(option: str, path: Path, folder: bool = False) -> None:
    """Raises UserError where ``path`` could not be written: of a wrong kind, below something that is no folder, read-only, on
    a full disk. Tried by writing beside it, in the nearest folder that exists; nothing is left behind.

    Args:
        option: what named the path, such as ``--out``.
        path: the place.
        folder: files are to be written into ``path``; otherwise it is a file.
    """
    with writing(f"{option} {path}"):
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a name that is too long, a link to itself
        if path.is_dir() and not folder:
            raise UserError(f"{option} {path}: a folder; name the file to write")
        if folder and path.exists() and not path.is_dir():
            raise UserError(f"{option} {path}: a file; name a folder to write into")
        if not folder and path.exists() and not path.is_file():  # a device, such as /dev/null
            path.open("wb").close()
            return
        near = path if folder else path.parent
        while not near.exists() and near != near.parent:
            near = near.parent
        probe = near / f".{uuid.uuid4().hex}.probe"
        try:
            with probe.open("xb") as file:
                file.write(PROBE)
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
