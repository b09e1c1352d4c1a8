"""Which images are there: in one folder, by the names that annotations give them, or everywhere below a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from hoi_distill.storage.errors import UserError

_log = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""By these a file that no annotation names is taken for an image. One that is named may have any."""
_UNREAD = frozenset({".heic", ".heif", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".tga", ".psd"})


class Listing:
    """The images of one folder, as ``name in listing``.

    The folder is listed once, which answers for nearly all names. The disk is asked for the others: they may lead into a
    sub-folder, or be written ``./x.jpg`` or absolute.

    Args:
        folder: The folder.
        belongs: What should be in it, for the error.

    Raises:
        UserError: If there is no such folder.
    """

    def __init__(self, folder: Path, belongs: str) -> None:
        self._folder = folder
        try:
            with os.scandir(folder) as entries:
                self._names = {entry.name for entry in entries}
        except OSError:
            raise UserError(f"{folder}: no such folder; {belongs} belong there") from None

    @override
    def __str__(self) -> str:
        return str(self._folder)

    def __contains__(self, name: object) -> bool:
        return name in self._names or os.path.isfile(os.path.join(self._folder, str(name)))

    def path(self, name: str) -> str:
        """The path of an image of this folder."""
        return os.path.join(self._folder, name)


def images_below(root: Path) -> dict[str, str]:
    """``{image id: path below the folder}`` of all images below a folder, sorted by path.

    Links to folders are followed. A folder that is reached twice gives its images once, by the way without links if there
    is one. The id is the path. Bytes of a file name that are no UTF-8 are escaped in it (``Mu\\xf1oz.jpg``), so that it can
    be written to any file.

    Raises:
        UserError: If there is no such folder, or if two files have one id.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images")
    found: list[str] = []
    unread: Counter[str] = Counter()
    for path in _files_below(root):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in SUFFIXES:
            found.append(Path(path).relative_to(root).as_posix())
        elif suffix in _UNREAD:
            unread[suffix] += 1
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        _log.warning("%s: images of kinds that are not read are passed over (%s); convert them to JPEG", root, kinds)
    named: dict[str, str] = {}
    for path in sorted(found):
        if named.setdefault(readable(path), path) != path:
            raise UserError(f"{root}: two files go by the name {readable(path)}; rename one")
    return named


def _files_below(root: Path) -> Iterator[str]:
    """The files of every folder below a folder, each folder once, those behind links last."""
    seen: set[tuple[int, int]] = set()
    links = [str(root)]
    while links:
        top = links.pop(0)
        if _identity(top) in seen:
            continue
        for folder, inner, names in os.walk(top):
            seen.add(_identity(folder))
            links += sorted(path for name in inner if os.path.islink(path := os.path.join(folder, name)))
            inner[:] = [name for name in inner if _identity(os.path.join(folder, name)) not in seen]
            yield from (os.path.join(folder, name) for name in names)


def below(root: Path, name: str) -> str:
    """The path below a folder of a name that annotations give an image in it, for comparing: without ``./``, not absolute."""
    path = os.path.relpath(name, os.path.abspath(root)) if os.path.isabs(name) else os.path.normpath(name)
    return Path(path).as_posix()


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError:  # a link to nothing
        return (0, 0)
    return found.st_dev, found.st_ino


def readable(path: str) -> str:
    """A path with bytes that are no UTF-8 escaped: what an image is called in files."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    return path
