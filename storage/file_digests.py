"""Digests of files, remembered, so that planning over a million images reads none of them twice.

A file is known by its path and its stamp (:mod:`hoi_distill.storage.files.stamps`). The memory is one file
(:mod:`hoi_distill.storage.files.memory_file`); what is known of a directory is a few packed segments rather than a row per
file, which makes a warm look-up of a million paths quick.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.memory_file import MemoryFile
from hoi_distill.storage.files.stamps import is_settled, stamp_of

_STAMP = ("size", "mtime_ns", "ctime_ns", "inode")
_ENTRY = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("inode", "<u8"), ("digest", "V16")])
_BATCH = 8192  # files hashed between two writes: what a kill costs
_THREADS = 8  # hashing waits for the disk more than for the processor


class _Known(NamedTuple):
    places: dict[str, int]  # file name -> position in entries
    entries: np.ndarray  # _ENTRY [n]


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
        folders: dict[str, list[int]] = {}
        names: list[str] = []
        for position, path in enumerate(paths):
            folder, _, name = os.fspath(path).rpartition("/")
            names.append(name)
            folders.setdefault(folder, []).append(position)
        with self._connect() as file, ThreadPoolExecutor(_THREADS) as pool:
            for folder, positions in folders.items():
                base = os.path.abspath(folder or ("/" if os.fspath(paths[positions[0]]).startswith("/") else "."))
                own = [names[position] for position in positions]
                found[positions], unread = _digests_in(file, pool, base, own, rehash=rehash)
                reasons.update({positions[i]: error for i, error in unread.items()})
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
        """:meth:`derived` of N files at once, by ``V16 [N]`` digests of their bytes: ``make(i)`` of those not remembered. An
        empty answer is not remembered."""
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


def _digests_in(
    file: MemoryFile, pool: ThreadPoolExecutor, folder: str, names: list[str], *, rehash: bool
) -> tuple[np.ndarray, dict[int, OSError]]:
    """The digests of n files of one folder, ``V16 [n]``, and by position why one could not be read (its digest is zero)."""
    found = np.zeros(len(names), "V16")
    errors: dict[int, OSError] = {}
    known = _Known({}, np.zeros(0, _ENTRY)) if rehash else _read(file, folder)
    unknown = np.arange(len(names))
    if known.places:
        now = _stat(folder, names)
        where = np.fromiter((known.places.get(name, -1) for name in names), np.int64, len(names))
        entry = known.entries[where]
        same = (where >= 0) & (now["size"] >= 0)
        for field in _STAMP:
            same &= entry[field] == now[field]
        found[same] = entry["digest"][same]
        unknown = np.flatnonzero(~same)
    for start in range(0, len(unknown), _BATCH):
        part = unknown[start : start + _BATCH].tolist()
        fresh: dict[str, np.void] = {}
        hashed = pool.map(lambda i: _hash(os.path.join(folder, names[i])), part, chunksize=16)
        for i, result in zip(part, hashed, strict=True):
            if isinstance(result, OSError):
                errors[i] = result
                continue
            stamped, settled = result
            found[i] = stamped["digest"]
            if settled:
                fresh[names[i]] = stamped
        if fresh:
            _append(file, folder, fresh)
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
    entry = np.zeros(1, _ENTRY)[0]
    for field, value in zip(_STAMP, stamp_of(after), strict=True):
        entry[field] = value
    entry["digest"] = np.void(state.digest())
    return entry, stamp_of(before) == stamp_of(after) and is_settled(after.st_ctime_ns, started)


def _stat(folder: str, names: Sequence[str]) -> np.ndarray:
    """``_ENTRY [N]`` of the files as they are now, digests left zero; size -1 where there is none."""
    absent = (-1, 0, 0, 0)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        stamps = [absent] * len(names)
    else:
        stamps = []
        lookup = os.stat
        try:
            for name in names:
                try:
                    entry = lookup(name, dir_fd=descriptor)
                except OSError:
                    stamps.append(absent)
                else:
                    stamps.append(stamp_of(entry))
        finally:
            os.close(descriptor)
    packed = np.zeros(len(names), _ENTRY)
    if stamps:
        for field, values in zip(_STAMP, zip(*stamps, strict=True), strict=True):
            packed[field] = values
    return packed


def _read(file: MemoryFile, folder: str) -> _Known:
    """All that is known of a folder; later segments win."""
    segments = file.segments(folder)
    names: list[str] = []
    for blob, _ in segments:
        names += os.fsdecode(blob).split("\0")
    entries = np.concatenate([np.frombuffer(blob, _ENTRY) for _, blob in segments] or [np.zeros(0, _ENTRY)])
    return _Known(dict(zip(names, range(len(names)), strict=True)), entries)


def _append(file: MemoryFile, folder: str, fresh: dict[str, np.void]) -> None:
    file.add(folder, os.fsencode("\0".join(fresh)), np.array(list(fresh.values()), _ENTRY).tobytes())
