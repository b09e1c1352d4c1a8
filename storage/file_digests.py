"""Digests of files, remembered, so that planning over a million images reads none of them twice.

A file is known by its path and its stamp (:mod:`hoi_distill.storage.files.stamps`). The memory is one file
(:mod:`hoi_distill.storage.files.memory_file`). It holds a folder as a few packed segments, not as a row for each file. A
look-up compares a folder's names as one string and its stamps as one array. So little is done for each file beside the stat.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import stat
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.memory_file import MemoryFile
from hoi_distill.storage.files.stamps import Stamp, is_settled, stamp_of

_STAMP = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("inode", "<u8")])
_ENTRY = np.dtype([*_STAMP.descr, ("digest", "V16")])
_ABSENT = (-1, 0, 0, 0)
_BATCH = 8192  # files hashed between two writes: what a kill costs
_THREADS = 8  # hashing waits for the disk more than for the processor
_PROBE = 256  # files of a folder whose look-ups tell whether the disk lets us wait
_PART = 1024  # files that one thread looks up
_WAIT = 50e-6  # seconds for a look-up, from which threads look files up side by side


@dataclass(frozen=True)
class _Folder:
    """Those of the paths that lie in one folder.

    Attributes:
        path: the folder's, absolute.
        positions: ``int64 [n]``, of its n files among all paths.
        names: of its n files.
    """

    path: str
    positions: np.ndarray
    names: list[str]


class DigestMemory:
    """Remembers digests of local files. Uris of object stores are not supported."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def digests(
        self, paths: Sequence[str | os.PathLike[str]], rehash: bool = False, missing: str = "raise"
    ) -> np.ndarray:
        """``V16 [N]`` digests of N files' bytes.

        Args:
            paths: N of them.
            rehash: read every file again, whatever is remembered.
            missing: what to do with a path that is not a readable file: ``"raise"`` a ``UserError`` naming the first
                and their count, or give it the ``"zero"`` digest (16 zero bytes), for callers that drop such entries.
        """
        found = np.zeros(len(paths), "V16")
        reasons: dict[int, OSError] = {}
        with self._connect() as file, ThreadPoolExecutor(_THREADS) as pool:
            for folder in _folders(paths):
                now = None if rehash else _stamps(folder, pool)
                found[folder.positions], unread = _digests_in(file, pool, folder, now)
                reasons.update({int(folder.positions[i]): error for i, error in unread.items()})
        if reasons and missing == "raise":
            first = min(reasons)
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            why = f"cannot be read: {reasons[first].strerror}{others}"
            raise UserError(f"{os.fspath(paths[first])}: {why}; restore it or drop its entry")
        return found

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
        keys = [f"{digest.tobytes().hex()} {name}" for digest in digests]
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


def _folders(paths: Sequence[str | os.PathLike[str]]) -> list[_Folder]:
    """The paths by folder."""
    files: defaultdict[str, tuple[array[int], list[str]]] = defaultdict(lambda: (array("q"), []))
    for position, path in enumerate(paths):
        folder, slash, name = os.fspath(path).rpartition("/")
        positions, names = files[folder or slash or "."]
        positions.append(position)
        names.append(name)
    return [
        _Folder(os.path.abspath(folder), np.frombuffer(positions, np.int64), names)
        for folder, (positions, names) in files.items()
    ]


def _digests_in(
    file: MemoryFile, pool: ThreadPoolExecutor, folder: _Folder, now: np.ndarray | None
) -> tuple[np.ndarray, dict[int, OSError]]:
    """The digests of n files of one folder. Those of other stamps than remembered are read and remembered.

    Args:
        file: the memory.
        pool: reads files.
        folder: the n files.
        now: their stamps, ``int64 [n, 4]``. None: read all of them, whatever is remembered.

    Returns:
        ``V16 [n]`` digests, and by position why a file could not be read (its digest is zero).
    """
    found = np.zeros(len(folder.names), "V16")
    errors: dict[int, OSError] = {}
    unknown = np.arange(len(folder.names))
    if now is not None:
        entries, known = _remembered(file, folder)
        same = known & (entries.view("<i8").reshape(-1, 6)[:, :4] == now).all(axis=1)
        found[same] = entries["digest"][same]
        unknown = np.flatnonzero(~same)
    for start in range(0, len(unknown), _BATCH):
        part = unknown[start : start + _BATCH].tolist()
        fresh: dict[str, np.void] = {}
        hashed = pool.map(lambda i: _hash(os.path.join(folder.path, folder.names[i])), part, chunksize=16)
        for i, result in zip(part, hashed, strict=True):
            if isinstance(result, OSError):
                errors[i] = result
                continue
            entry, settled = result
            found[i] = entry["digest"]
            if settled:
                fresh[folder.names[i]] = entry
        if fresh:
            _remember(file, folder.path, list(fresh), np.array(list(fresh.values()), _ENTRY))
    return found, errors


def _hash(path: str) -> tuple[np.void, bool] | OSError:
    """The entry of a file just read, and whether its stamp can be trusted to change when the file does."""
    try:
        with open(path, "rb", buffering=0) as file:
            started = time.time_ns()
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                return OSError(0, "not a regular file")
            state = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 20):
                state.update(block)
            after = os.fstat(file.fileno())
    except OSError as error:
        return error
    entry = np.array([(*stamp_of(after), np.void(state.digest()))], _ENTRY)[0]
    return entry, stamp_of(before) == stamp_of(after) and is_settled(after.st_ctime_ns, started)


def _stamps(folder: _Folder, pool: ThreadPoolExecutor) -> np.ndarray:
    """``int64 [n, 4]``: the stamps of n files of one folder as they are now; size -1 where there is none.

    A disk that answers at once is asked by this thread alone: several would wait for each other's turn in Python, which costs
    more than the look-ups. Where every answer takes its time, as on a network, the pool's threads ask side by side.
    """
    try:
        descriptor = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return np.full((len(folder.names), 4), _ABSENT)
    try:
        first, rest = folder.names[:_PROBE], range(_PROBE, len(folder.names), _PART)
        began = time.perf_counter()
        found = [_looked_up(first, descriptor)]
        waits = time.perf_counter() - began > _WAIT * len(first)
        parts = (folder.names[start : start + _PART] for start in rest)
        found += (pool.map if waits else map)(functools.partial(_looked_up, descriptor=descriptor), parts)
        return np.concatenate(found)
    finally:
        os.close(descriptor)


def _looked_up(names: Sequence[str], descriptor: int) -> np.ndarray:
    """``int64 [n, 4]``: the stamps of n files of an open folder; size -1 where there is none."""
    look_up = functools.partial(os.stat, dir_fd=descriptor)
    count = len(names)
    try:
        stamps = itertools.chain.from_iterable(map(stamp_of, map(look_up, names)))
        return np.fromiter(stamps, np.int64, 4 * count).reshape(count, 4)
    except (OSError, OverflowError):  # a file is absent, or an inode has all 64 bits: slower
        each = np.fromiter((_stamp_or_absent(look_up, name) for name in names), _STAMP, count)
        return each.view(np.int64).reshape(count, 4)


def _stamp_or_absent(look_up: Callable[[str], os.stat_result], name: str) -> Stamp:
    try:
        return stamp_of(look_up(name))
    except OSError:
        return _ABSENT


def _remembered(file: MemoryFile, folder: _Folder) -> tuple[np.ndarray, np.ndarray]:
    """What is remembered of n files of one folder.

    Returns:
        ``_ENTRY [n]``, and ``bool [n]``: where there is one. Another file's stands where there is none.
    """
    segments = file.segments(folder.path)
    names = b"\0".join(names for names, _ in segments)
    entries = np.frombuffer(b"".join(packed for _, packed in segments) or bytes(_ENTRY.itemsize), _ENTRY)
    if names == os.fsencode("\0".join(folder.names)):  # the usual case, and much quicker
        return entries, np.ones(len(entries), bool)
    places = {name: place for place, name in enumerate(os.fsdecode(names).split("\0"))} if segments else {}
    where = np.fromiter((places.get(name, -1) for name in folder.names), np.int64, len(folder.names))
    return entries[where], where >= 0


def _remember(file: MemoryFile, folder: str, names: Sequence[str], entries: np.ndarray) -> None:
    file.add(folder, os.fsencode("\0".join(names)), entries.tobytes())
