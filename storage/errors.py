"""The errors that a user is meant to read: one line that names file, key and remedy."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave is wrong. ``str(error)`` is one line naming the file, the key or entry, and the remedy."""


class InputFailure(Exception):
    """A source input (an image, a text) cannot be processed. It becomes a failure cell with this reason; the run goes on."""


class StorageError(RuntimeError):
    """The cache cannot be written or read (disk full, read-only, gone). One line names the table and the shard."""
