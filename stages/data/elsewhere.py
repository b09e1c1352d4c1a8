"""Images that lie away from their annotations: below an address, in tar files, or in another folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

from typing_extensions import override

from hoi_distill.stages.data.listing import SUFFIXES, Listing
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.uri import PAGES, Member, is_address
from hoi_distill.storage.hashed_files import Derivation

_TARS_AT_ONCE = 4  # that are read for the first time
_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")


class ImagesElsewhere:
    """The images of one place.

    Args:
        place: its address or path, for messages.
        uris: Uri of each image by its path below the place, or by its name in its tar file. None: nobody can list it, and a
            name is looked for when its image is read.
    """

    def __init__(self, place: str, uris: Mapping[str, str] | None) -> None:
        self.place, self._uris = place, uris
        self._held: frozenset[str] = frozenset()

    @property
    def is_listed(self) -> bool:
        """Whether somebody has listed them."""
        return self._uris is not None

    def all(self) -> dict[str, str]:
        """Uris of the images by id: those whose suffix says that they are images, in the place's order.

        Raises:
            UserError: there are none, or nobody can list them.
        """
        if self._uris is None:
            raise UserError(
                f"{self.place}: a server of pages cannot be listed; give annotations, which name the images, or tar files"
            )
        found = {name: uri for name, uri in self._uris.items() if is_image(name)}
        if not found:
            raise UserError(f"{self.place}: no images there ({', '.join(sorted(SUFFIXES))})")
        return found

    def find(self, name: str, folder: str = "") -> str | None:
        """The uri of an image that annotations name, in one of the place's folders or right in the place; None where there
        is none."""
        name = os.path.normpath(name)
        names = [f"{folder}/{name}", name] if folder else [name]
        if self._uris is not None:
            return next((self._uris[each] for each in names if each in self._uris), None)
        if is_address(self.place):
            return f"{self.place}/{names[0]}"
        return next((path for each in names if os.path.isfile(path := os.path.join(self.place, each))), None)

    def holds(self, uri: str) -> bool:
        """Whether a uri is one of :meth:`find`'s; True where nobody can list them."""
        if self._uris is None:
            return is_address(self.place) or os.path.isfile(uri)
        self._held = self._held or frozenset(self._uris.values())
        return uri in self._held


class Elsewhere:
    """One folder of a place, as :class:`hoi_distill.stages.data.listing.Listing` is of a folder on a disk."""

    def __init__(self, images: ImagesElsewhere, folder: str) -> None:
        self._images, self._folder = images, folder

    @override
    def __str__(self) -> str:
        return f"{self._images.place}/{self._folder}"

    def __contains__(self, name: object) -> bool:
        return self._images.find(str(name), self._folder) is not None

    def path(self, name: str) -> str:
        """The uri of an image of this folder; where it would lie, if it is not there."""
        return self._images.find(name, self._folder) or f"{self}/{name}"


def images_of(
    images: bool | ImagesElsewhere, folder: Path, belongs: str, other: str | None = None
) -> Listing | Elsewhere | None:
    """Which images of a split are there; None where they need not be.

    Args:
        images: what a loader was told.
        folder: where they lie beside their annotations.
        belongs: what should be there, for an error.
        other: name of the folder in a place elsewhere.
    """
    if isinstance(images, ImagesElsewhere):
        return Elsewhere(images, folder.name if other is None else other)
    return Listing(folder, belongs) if images else None


def open_elsewhere(place: Place, memory: DigestMemory, derive: Derivation | None = None) -> ImagesElsewhere:
    """The images of a place. An object store is listed, a tar file that is not known yet is read.

    Args:
        place: an address, a path, or either of tar files: ``shards/{0000..0099}.tar``, ``shards/*.tar``.
        memory: remembers what tar files hold.
        derive: as for :meth:`hoi_distill.storage.file_digests.DigestMemory.digests`.

    Raises:
        UserError: it cannot be listed or read.
    """
    text = str(place)
    if text.endswith(".tar"):
        tars = tar_files(text, memory)
        memory.list_shared(tars)
        with ThreadPoolExecutor(_TARS_AT_ONCE) as pool:
            members = pool.map(lambda tar: memory.members(tar, is_image, derive), tars)
            return ImagesElsewhere(text, _by_name(text, [member for some in members for member in some]))
    if not is_address(text):
        if not os.path.isdir(text):
            raise UserError(f"{text}: no such folder of images")
        return ImagesElsewhere(text, None)
    if text.startswith(PAGES):
        return ImagesElsewhere(text, None)
    return ImagesElsewhere(text, {uri[len(text) + 1 :]: uri for uri in memory.below(text)})


def is_image(name: str) -> bool:
    """Whether a name's suffix is an image's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def tar_files(pattern: str, memory: DigestMemory) -> list[str]:
    """The tar files of a pattern, in order: ``{0000..0099}`` counts, ``*`` stands for anything in a name.

    Raises:
        UserError: there are none, or ``*`` stands where nobody can list.
    """
    if (counted := _RANGE.search(pattern)) is not None:
        first, last = counted[1], counted[2]
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        parts = [
            tar_files(f"{pattern[: counted.start()]}{number}{pattern[counted.end() :]}", memory) for number in numbers
        ]
        return [tar for part in parts for tar in part]
    folder, _, name = pattern.rpartition("/")
    if "*" not in name:
        return [pattern]
    if folder.startswith(PAGES):
        raise UserError(f"{pattern}: a server of pages cannot be listed; count the tar files, as in {{0000..0099}}.tar")
    try:
        there = (
            memory.below(folder)
            if is_address(folder)
            else [f"{folder or '.'}/{each}" for each in os.listdir(folder or ".")]
        )
    except OSError as error:
        raise UserError(f"{pattern}: {error.strerror}; mend the pattern") from None
    found = sorted(
        tar for tar in there if tar.rpartition("/")[0] == (folder or ".") and fnmatchcase(os.path.basename(tar), name)
    )
    if not found:
        raise UserError(f"{pattern}: no such tar files; mend the pattern")
    return found


def _by_name(place: str, members: Iterable[Member]) -> dict[str, str]:
    """Uris by name; by the tar file's name and its own where several have one."""
    members = list(members)
    count = Counter(os.path.normpath(member.name) for member in members)
    uris: dict[str, str] = {}
    for member in members:
        name = os.path.normpath(member.name)
        name = name if count[name] == 1 else f"{os.path.basename(member.tar)}/{name}"
        if uris.setdefault(name, str(member)) != str(member):
            raise UserError(f"{place}: two images go by the name {name}; rename one")
    return uris
