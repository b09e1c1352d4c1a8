"""Digests of files, remembered, so that planning over a million images reads none of them twice.

A file is known by its uri and its stamp (:mod:`hoi_distill.storage.hashed_files`). The memory is one file
(:mod:`hoi_distill.storage.files.memory_file`). It holds a folder as a few packed segments, not as a row for each file. A
look-up compares a folder's names as one string and its stamps as one array. So little is done for each file beside the stat.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.memory_file import MemoryFile
from hoi_distill.storage.files.stamps import is_settled
from hoi_distill.storage.files.uri import Member, is_address
from hoi_distill.storage.hashed_files import (
    AT_ONCE,
    ENTRY,
    Derivation,
    Folder,
    Listings,
    by_folder,
    hashed,
    members_of,
    stamps_in,
    tar_stamp,
)

_BATCH = 8192  # files hashed between two writes: what a kill costs
_THREADS = 8  # hashing waits for the disk more than for the processor


class DigestMemory:
    """Remembers digests of files, of objects and pages, and of the members of tar files.

    What is listed below an address is listed once for each object of this class.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._listings = Listings()

    def digests(
        self,
        paths: Sequence[str | os.PathLike[str]],
        rehash: bool = False,
        missing: str = "raise",
        derive: Derivation | None = None,
    ) -> np.ndarray:
        """``V16 [N]`` digests of N files' bytes.

        Args:
            paths: N uris of any kind (:mod:`hoi_distill.storage.files.uri`).
            rehash: read every file again, whatever is remembered.
            missing: what to do with a path that is not a readable file: ``"raise"`` a ``UserError`` naming the first
                and their count, or give it the ``"zero"`` digest (16 zero bytes), for callers that drop such entries.
            derive: what :meth:`derived_all` will be asked of those that are no files on a disk: it is worked out when they
                are fetched, so that nobody fetches them again for it.
        """
        found = np.zeros(len(paths), "V16")
        reasons: dict[int, OSError] = {}
        folders = by_folder(paths)
        if not rehash:
            away = [folder for folder in folders if is_address(folder.path) and not folder.is_tar]
            self._listings.list_shared([folder.uri(i) for folder in away for i in range(len(folder.names))])
        with self._connect() as file, ThreadPoolExecutor(_threads(folders)) as pool:
            for folder in folders:
                now = None if rehash else stamps_in(folder, self._listings, pool)
                found[folder.positions], unread = _digests_in(file, pool, folder, now, derive)
                reasons.update({int(folder.positions[i]): error for i, error in unread.items()})
        if reasons and missing == "raise":
            first = min(reasons)
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            why = f"cannot be read: {reasons[first].strerror}{others}"
            raise UserError(f"{os.fspath(paths[first])}: {why}; restore it or drop its entry")
        return found

    def below(self, address: str) -> list[str]:
        """The addresses of all objects below one, by name. Raises ``UserError``: it cannot be listed."""
        return list(self._listings.below(address))

    def list_shared(self, uris: Sequence[str]) -> None:
        """Where many objects will be asked for, list what lies below the folder that they share, instead of asking for each.

        Raises:
            UserError: it cannot be listed.
        """
        self._listings.list_shared(uris)

    def members(self, tar: str, wanted: Callable[[str], bool], derive: Derivation | None = None) -> list[Member]:
        """The wanted files of a tar file, in its order. A tar file that was not read before, or has changed, is read whole.

        Args:
            tar: its path or address.
            wanted: says of a name whether it is wanted. All that ask of one tar file want the same.
            derive: as for :meth:`digests`.

        Raises:
            UserError: it cannot be read, is no tar file, or changes meanwhile.
        """
        stamp = tar_stamp(tar, self._listings)
        with self._connect() as file:
            names, entries = _all_remembered(file, tar)
            same = (entries.view("<i8").reshape(-1, 6)[: len(names), :4] == np.array(stamp)).all(axis=1)
            if same.any():  # two first readings may both have remembered it
                tails = {names[i] for i in np.flatnonzero(same).tolist()}
                return sorted((_member(tar, tail) for tail in tails), key=lambda member: member.offset)
            began = time.time_ns()
            found = list(members_of(tar, stamp, wanted, derive))
            if tar_stamp(tar, Listings()) != stamp:
                raise UserError(f"{tar}: has changed while it was read; run again")
            if derive:
                told = {_key(each.found.entry["digest"], derive.name): each.found.told for each in found}
                file.keep({key: value for key, value in told.items() if value})
            if found and (is_address(tar) or is_settled(stamp[2], began)):
                packed = np.array([each.found.entry for each in found], ENTRY)
                _remember(file, tar, [each.member.tail for each in found], packed)
        return [each.member for each in found]

    def derived(self, path: str | os.PathLike[str], name: str, make: Callable[[], str]) -> str:
        """``make()``, which must follow from the bytes of one file and from ``name`` alone; remembered under the file's
        digest, so that it is worked out once for all copies of a file."""
        return self.derived_all(self.digests([path]), name, lambda _: make())[0]

    def derived_all(self, digests: np.ndarray, name: str, make: Callable[[int], str]) -> list[str]:
        """What follows from bytes alone, remembered under their digests.

        Args:
            digests: ``V16 [N]``, of the bytes of N files, say.
            name: what is derived from them.
            make: works it out for the bytes at a position. Its answer is remembered unless it is empty.
        """
        keys = [_key(digest, name) for digest in digests]
        with self._connect() as file:
            known = file.values(keys)
            for start in range(0, len(keys), _BATCH):
                part = range(start, min(start + _BATCH, len(keys)))
                fresh = {keys[i]: make(i) for i in part if keys[i] not in known}
                if kept := {key: value for key, value in fresh.items() if value}:
                    file.keep(kept)
                known |= fresh
        return [known[key] for key in keys]

    def _connect(self) -> MemoryFile:
        return MemoryFile(self.path)


def _digests_in(
    file: MemoryFile, pool: ThreadPoolExecutor, folder: Folder, now: np.ndarray | None, derive: Derivation | None
) -> tuple[np.ndarray, dict[int, OSError]]:
    """The digests of n files of one folder. Those of other stamps than remembered are read and remembered.

    Args:
        file: the memory.
        pool: reads files.
        folder: the n files.
        now: their stamps, ``int64 [n, 4]``. None: read all of them, whatever is remembered.
        derive: what to work out of bytes that are fetched.

    Returns:
        ``V16 [n]`` digests, and by position why a file could not be read (its digest is zero).
    """
    found = np.zeros(len(folder.names), "V16")
    errors: dict[int, OSError] = {}
    unknown = np.arange(len(folder.names))
    if now is not None:
        entries, known = _remembered(file, folder)
        same = known & (entries.view("<i8").reshape(-1, 6)[:, :4] == now).all(axis=1)
        if same.all():  # the usual case
            return entries["digest"], errors
        found[same] = entries["digest"][same]
        unknown = np.flatnonzero(~same)
    for start in range(0, len(unknown), _BATCH):
        part = unknown[start : start + _BATCH].tolist()
        fresh: dict[str, np.void] = {}
        told: dict[str, str] = {}
        for i, result in zip(part, pool.map(lambda i: hashed(folder, i, derive), part, chunksize=16), strict=True):
            if isinstance(result, OSError):
                errors[i] = result
                continue
            found[i] = result.entry["digest"]
            if result.settled:
                fresh[folder.names[i]] = result.entry
            if derive and result.told:
                told[_key(found[i], derive.name)] = result.told
        if told:
            file.keep(told)
        if fresh:
            _remember(file, folder.path, list(fresh), np.array(list(fresh.values()), ENTRY))
    return found, errors


def _remembered(file: MemoryFile, folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """What is remembered of n files of one folder.

    Returns:
        ``ENTRY [n]``, and ``bool [n]``: where there is one. Another file's stands where there is none.
    """
    segments = file.segments(folder.path)
    names = b"\0".join(names for names, _ in segments)
    entries = np.frombuffer(b"".join(packed for _, packed in segments) or bytes(ENTRY.itemsize), ENTRY)
    if names == os.fsencode("\0".join(folder.names)):  # the usual case, and much quicker
        return entries, np.ones(len(entries), bool)
    places = {name: place for place, name in enumerate(os.fsdecode(names).split("\0"))} if segments else {}
    where = np.fromiter((places.get(name, -1) for name in folder.names), np.int64, len(folder.names))
    return entries[where], where >= 0


def _all_remembered(file: MemoryFile, folder: str) -> tuple[list[str], np.ndarray]:
    """The names that are remembered of a folder, and their entries."""
    segments = file.segments(folder)
    names = [name for some, _ in segments for name in os.fsdecode(some).split("\0")]
    return names, np.frombuffer(b"".join(packed for _, packed in segments), ENTRY)


def _member(tar: str, tail: str) -> Member:
    found = Member.of(f"{tar}#{tail}")
    assert found is not None, "it was remembered as one"
    return found


def _threads(folders: Sequence[Folder]) -> int:
    return AT_ONCE if any(is_address(folder.path) for folder in folders) else _THREADS


def _key(digest: np.void, name: str) -> str:
    return f"{digest.tobytes().hex()} {name}"


def _remember(file: MemoryFile, folder: str, names: Sequence[str], entries: np.ndarray) -> None:
    file.add(folder, os.fsencode("\0".join(names)), entries.tobytes())
