"""Where the bytes of one image lie: a path, the address of an object or of a page, or a place in a tar file that is either.

Texts say it, so that a task carries it and a message shows it: ``/photos/1.jpg``, ``s3://bucket/photos/1.jpg``,
``https://host/photos/1.jpg``, ``s3://bucket/shards/0001.tar#1536+20481=photos/1.jpg``. The numbers are where the member's bytes
begin in the tar file and how many they are.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import SCHEMES, ObjectPath, Place, place_at

if TYPE_CHECKING:
    from hoi_distill.storage.files.bucket import Bucket

PAGES = ("https://", "http://")
"""How the address of a page begins. A server of pages shows no listing."""
ADDRESSES = (*SCHEMES, *PAGES)
_MEMBER = re.compile(r"(.+\.tar)#([0-9]+)\+([0-9]+)=(.+)", re.DOTALL)
_PAGE = re.compile(r"https?://[^/?#]+(?:/[^?#]*)?")


@dataclass(frozen=True)
class Member:
    """One file in a tar file.

    Attributes:
        tar: the tar file's path or address.
        offset: where the member's bytes begin.
        size: how many they are.
        name: the member's.
    """

    tar: str
    offset: int
    size: int
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.tar}#{self.tail}"

    @property
    def tail(self) -> str:
        """What follows the tar file's name."""
        return f"{self.offset}+{self.size}={self.name}"

    @classmethod
    def of(cls, uri: str) -> Member | None:
        """The member that a uri names; None where it names a whole file."""
        found = _MEMBER.fullmatch(uri)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]), found[4])


def is_address(uri: str) -> bool:
    """Whether a uri, or the tar file of one, is no path."""
    return uri.startswith(ADDRESSES)


def is_elsewhere(uri: str) -> bool:
    """Whether a uri names no file of a folder."""
    return is_address(uri) or (".tar#" in uri and Member.of(uri) is not None)


def image_place(given: str | os.PathLike[str] | ObjectPath) -> Place:
    """The place of a dataset's images: a path or an address, of a folder or of tar files.

    Raises:
        UserError: an address names no bucket or host, or has a query.
    """
    text = given.url if isinstance(given, ObjectPath) else os.fspath(given)
    if not text.startswith(PAGES):
        return place_at(given)
    if _PAGE.fullmatch(text) is None:
        raise UserError(f"{text}: names no host, or has a query; write {text.partition('//')[0]}//host/folder")
    return ObjectPath(text.rstrip("/"))


def split(address: str) -> tuple[Bucket, str]:
    """The bucket or host of an address, and its key there."""
    from hoi_distill.storage.files.bucket import bucket

    place = ObjectPath(address)
    return bucket(place.bucket), place.key


def read_bytes(uri: str) -> bytes:
    """The bytes as they are now. Those of a tar file that has become shorter are fewer.

    Raises:
        FileNotFoundError: nothing lies there.
        OSError: it cannot be read.
    """
    member = Member.of(uri)
    if member is None:
        if not is_address(uri):
            return Path(uri).read_bytes()
        bucket, key = split(uri)
        return bucket.get(key)
    if is_address(member.tar):
        bucket, key = split(member.tar)
        return bucket.get_range(key, member.offset, member.size)
    with open(member.tar, "rb", buffering=0) as file:
        return os.pread(file.fileno(), member.size, member.offset)


def can_read(uri: str) -> bool:
    """Whether this process can read the bytes now."""
    if not is_elsewhere(uri):
        return os.access(uri, os.R_OK)
    try:
        read_bytes(uri)
    except (OSError, UserError):
        return False
    return True
