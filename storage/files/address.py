"""Where something lies: a path of this machine's file systems, or the address of an object in a store."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from hoi_distill.storage.errors import UserError

SCHEMES = ("s3://", "gs://", "az://")
"""How the address of an object begins: Amazon's S3 and what speaks like it, Google's and Microsoft's stores."""
_COLLAPSED = tuple(scheme[:-1] for scheme in SCHEMES)  # what a Path makes of them
_ADDRESS = re.compile(r"(?:s3|gs|az)://[^/]+(?:/+[^/]+)*/*")


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The address of an object, or of all objects below a prefix, as ``pathlib.Path`` is of a file or a folder.

    Attributes:
        url: ``s3://bucket/key``.
    """

    url: str

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name}")

    @override
    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """The address without its last part."""
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def bucket(self) -> str:
        """``s3://bucket``."""
        return "/".join(self.url.split("/", 3)[:3])

    @property
    def key(self) -> str:
        """What follows the bucket."""
        return self.url[len(self.bucket) + 1 :]


Place = Path | ObjectPath


def place_at(given: str | os.PathLike[str] | ObjectPath) -> Place:
    """The place of a path, or of an address that begins with one of :data:`SCHEMES`.

    Raises:
        UserError: the address names no bucket.
    """
    if isinstance(given, ObjectPath):
        return given
    text = os.fspath(given)
    if not text.startswith(SCHEMES):
        if text.startswith(_COLLAPSED):
            raise UserError(
                f"{text}: an address of an object store that was taken for a path; write it with two slashes"
            )
        return Path(text)
    if _ADDRESS.fullmatch(text) is None:
        raise UserError(f"{text}: names no bucket; write {text[:5]}bucket/folder")
    scheme, _, rest = text.partition("://")
    return ObjectPath(f"{scheme}://{'/'.join(part for part in rest.split('/') if part)}")
