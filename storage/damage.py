"""Stored bytes that are not those that were written: one kind of error for all of them, and one remedy."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pyarrow as pa
from typing_extensions import override

from hoi_distill.storage.errors import StorageError

# Arrow raises an OSError without a number for contents that make no sense, and EINVAL for an empty file.
_LOST = (None, errno.EINVAL, errno.EIO, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


class Damaged(StorageError):
    """A stored file is gone, unreadable or not what was written. ``reason`` says in what; the line names file and remedy."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.args[0]}: {self.reason}; `hoi-distill check` sets it aside"


@contextlib.contextmanager
def damage(file: str) -> Iterator[None]:
    """What the block finds wrong with a file's contents is :class:`Damaged`. That this process cannot read it, or not for
    the moment (no permission, a stale handle, no memory), stays the ``OSError`` that it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LOST:
            raise
        raise Damaged(file, _line(error.strerror or str(error))) from error
    except (AttributeError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
        raise Damaged(file, f"its bytes have changed ({_line(str(error))})") from error


def _line(text: str) -> str:
    return " ".join(text.split())
