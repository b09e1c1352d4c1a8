"""Stamps and digests of files, whatever they lie in: a folder, an object store, a server of pages, a tar file.

A stamp is four integers that move when the bytes do. A file's are its size, times and inode
(:mod:`hoi_distill.storage.files.stamps`); an object's its size and a digest of its etag; a member's those of its tar file.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import itertools
import os
import stat
import tarfile
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.stamps import Stamp, is_settled, stamp_of
from hoi_distill.storage.files.uri import PAGES, Member, is_address, read_bytes, split

STAMP = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("inode", "<u8")])
ENTRY = np.dtype([*STAMP.descr, ("digest", "V16")])
"""What is remembered of a file."""
_ABSENT = (-1, 0, 0, 0)
_PROBE = 256  # files of a folder whose look-ups tell whether the disk lets us wait
_PART = 1024  # files that one thread looks up
_WAIT = 50e-6  # seconds for a look-up, from which threads look files up side by side
_ONE_BY_ONE = 64  # objects that are asked for one by one and not by a list of all
AT_ONCE = 32  # requests; they wait for the network
_RANGE = 16 << 20  # bytes of a tar file that are fetched together
_ANYTIME = 2.0  # seconds: a time in whole seconds may stand for two versions of this much


class Derivation(NamedTuple):
    """What is worked out of an image's bytes while they are at hand.

    Attributes:
        name: it is remembered under this name.
        make: makes it; "" is not remembered.
    """

    name: str
    make: Callable[[bytes], str]


@dataclass(frozen=True)
class Folder:
    """Those of the uris that lie in one folder or tar file.

    Attributes:
        path: a folder's absolute path or address; a tar file's as it is written.
        positions: ``int64 [n]``, of its n files among all uris.
        names: of its n files; of a tar file the tails of :class:`hoi_distill.storage.files.uri.Member`.
        is_tar: whether it is a tar file.
    """

    path: str
    positions: np.ndarray
    names: list[str]
    is_tar: bool = False

    def uri(self, i: int) -> str:
        """Where the i-th file lies."""
        if self.is_tar:
            return f"{self.path}#{self.names[i]}"
        return f"{self.path}/{self.names[i]}" if is_address(self.path) else os.path.join(self.path, self.names[i])


class Hashed(NamedTuple):
    """What was found out of a file's bytes.

    Attributes:
        entry: its stamp and its digest, of ``ENTRY``.
        settled: whether the stamp can be trusted to move when the bytes do.
        told: what was derived of the bytes; "" of a file on a disk.
    """

    entry: np.void
    settled: bool
    told: str = ""


def by_folder(uris: Sequence[str | os.PathLike[str]]) -> list[Folder]:
    """The uris by folder and tar file."""
    folders: dict[str, tuple[array[int], list[str]]] = {}
    tars: dict[str, tuple[array[int], list[str]]] = {}
    for position, given in enumerate(uris):  # planning goes through it a million times
        uri = os.fspath(given)
        member = Member.of(uri) if ".tar#" in uri else None
        if member is None:
            path, slash, name = uri.rpartition("/")
            found, path = folders, path or slash or "."
        else:
            found, path, name = tars, member.tar, member.tail
        try:
            positions, names = found[path]
        except KeyError:
            positions, names = found[path] = array("q"), []
        positions.append(position)
        names.append(name)
    return [
        Folder(
            path if is_tar or is_address(path) else os.path.abspath(path),
            np.frombuffer(positions, np.int64),
            names,
            is_tar,
        )
        for found, is_tar in ((folders, False), (tars, True))
        for path, (positions, names) in found.items()
    ]


# ---- stamps ----


class Listings:
    """What was listed below addresses. Whoever plans lists once, for the names and for the stamps."""

    def __init__(self) -> None:
        self._below: dict[str, dict[str, bytes]] = {}
        self._tars: dict[str, bytes | None] = {}

    def below(self, address: str) -> dict[str, bytes]:
        """The packed stamp of every object below an address, by its address.

        Raises:
            UserError: it cannot be listed.
        """
        if address not in self._below:
            bucket, key = split(address)
            found: dict[str, bytes] = {}

            def take(entry: Mapping[str, Any]) -> None:
                found[f"{bucket.url}/{entry['path']}"] = _pack(entry)

            try:
                bucket.scan(key, take)
            except OSError as error:
                raise UserError(f"{address}: cannot be listed: {error.strerror}; mend the address or access") from None
            self._below[address] = found
        return self._below[address]

    def list_shared(self, uris: Sequence[str]) -> None:
        """List what lies below the folder that all objects of a bucket share, where they are many."""
        keys: defaultdict[str, list[str]] = defaultdict(list)
        for uri in uris:
            if is_address(uri) and not uri.startswith(PAGES) and self._listed(uri) is None:
                place = ObjectPath(uri)
                keys[place.bucket].append(place.key)
        for bucket, some in keys.items():
            if len(some) > _ONE_BY_ONE:
                shared = os.path.commonpath([min(some), max(some)])
                self.below(f"{bucket}/{shared}".rstrip("/"))

    def tar(self, uri: str) -> bytes | None:
        """The packed stamp of a tar file; None where there is none. It is asked for once."""
        if uri not in self._tars:
            self._tars[uri] = self.stamps([uri])[0]
        return self._tars[uri]

    def stamps(self, uris: Sequence[str]) -> list[bytes | None]:
        """The packed stamps of objects and pages; None of one that is not there. What was not listed is asked for."""
        found = [(self._listed(uri) or {}).get(uri) for uri in uris]
        left = [i for i, uri in enumerate(uris) if self._listed(uri) is None]
        with ThreadPoolExecutor(min(AT_ONCE, len(left)) or 1) as pool:
            for i, stamp in zip(left, pool.map(_ask, [uris[i] for i in left]), strict=True):
                found[i] = stamp
        return found

    def _listed(self, uri: str) -> dict[str, bytes] | None:
        """What was listed below a folder of an object; None where nothing was."""
        return next((known for address, known in self._below.items() if uri.startswith(f"{address}/")), None)


def stamps_in(folder: Folder, listings: Listings, pool: ThreadPoolExecutor) -> np.ndarray:
    """``int64 [n, 4]``: the stamps of n files of one folder as they are now; size -1 where there is none.

    A disk that answers at once is asked by this thread alone: several would wait for each other's turn in Python, which costs
    more than the look-ups. Where every answer takes its time, as on a network, the pool's threads ask side by side.
    """
    if folder.is_tar:
        return np.tile(np.array([tar_stamp(folder.path, listings)], np.int64), (len(folder.names), 1))
    if not is_address(folder.path):
        return _stamps_on_disk(folder, pool)
    uris = [folder.uri(i) for i in range(len(folder.names))]
    absent = np.array(_ABSENT, np.int64).tobytes()
    return np.frombuffer(b"".join(stamp or absent for stamp in listings.stamps(uris)), np.int64).reshape(-1, 4)


def tar_stamp(tar: str, listings: Listings) -> Stamp:
    """The stamp of a tar file; size -1 where there is none."""
    if not is_address(tar):
        return _stamp_or_absent(os.stat, tar)
    packed = listings.tar(tar)
    if packed is None:
        return _ABSENT
    size, *told = np.frombuffer(packed, np.int64).tolist()
    return size, told[0], told[1], told[2]


def _ask(uri: str) -> bytes | None:
    bucket, key = split(uri)
    try:
        return _pack(bucket.head(key))
    except OSError as error:
        if error.errno == errno.EHOSTUNREACH:
            raise _away(uri, error) from None
        return None  # absent; or the server knows no HEAD, and reading will tell


def _pack(known: Mapping[str, Any]) -> bytes:
    version = f"{known['e_tag']} {'' if known['e_tag'] else known['last_modified']}"
    told = hashlib.blake2b(version.encode(), digest_size=24).digest()
    return int(known["size"]).to_bytes(8, "little") + told


def _stamps_on_disk(folder: Folder, pool: ThreadPoolExecutor) -> np.ndarray:
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
    count = len(names)
    try:
        found = [os.stat(name, dir_fd=descriptor) for name in names]  # to map a partial of it costs a sixth more
        stamps = itertools.chain.from_iterable(map(stamp_of, found))
        return np.fromiter(stamps, np.int64, 4 * count).reshape(count, 4)
    except (OSError, OverflowError):  # a file is absent, or an inode has all 64 bits: slower
        look_up = functools.partial(os.stat, dir_fd=descriptor)
        each = np.fromiter((_stamp_or_absent(look_up, name) for name in names), STAMP, count)
        return each.view(np.int64).reshape(count, 4)


def _stamp_or_absent(look_up: Callable[[str], os.stat_result], name: str) -> Stamp:
    try:
        return stamp_of(look_up(name))
    except OSError:
        return _ABSENT


# ---- digests ----


def hashed(folder: Folder, i: int, derive: Derivation | None) -> Hashed | OSError:
    """Read a folder's i-th file.

    Raises:
        UserError: the object store does not answer.
    """
    uri = folder.uri(i)
    if not (folder.is_tar or is_address(uri)):
        return _hash_on_disk(uri)
    try:
        if folder.is_tar:  # never settled: only who has read a whole tar file remembers its members
            return _hashed(read_bytes(uri), np.zeros(4, np.int64).tobytes(), derive, settled=False)
        bucket, key = split(uri)
        data, known = bucket.get_stamped(key)
    except OSError as error:
        if error.errno == errno.EHOSTUNREACH:
            raise _away(uri, error) from None
        return error
    changed = known["last_modified"]
    dated = changed is not None and 0 < changed.timestamp() < time.time() - _ANYTIME  # 1970: the server does not say
    settled = bool(known["e_tag"]) or dated
    return _hashed(data, _pack(known), derive, settled=settled)


def _hashed(data: bytes, stamp: bytes, derive: Derivation | None, *, settled: bool = True) -> Hashed:
    entry = np.frombuffer(stamp + digest_bytes(data), ENTRY)[0]
    return Hashed(entry, settled, derive.make(data) if derive else "")


def _hash_on_disk(path: str) -> Hashed | OSError:
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
    entry = np.array([(*stamp_of(after), np.void(state.digest()))], ENTRY)[0]
    return Hashed(entry, stamp_of(before) == stamp_of(after) and is_settled(after.st_ctime_ns, started))


class HashedMember(NamedTuple):
    """A file of a tar file, read."""

    member: Member
    found: Hashed


def members_of(
    tar: str, stamp: Stamp, wanted: Callable[[str], bool], derive: Derivation | None
) -> Iterator[HashedMember]:
    """The wanted files of a tar file, in its order. All of it is read.

    Raises:
        UserError: it cannot be read, or is no tar file.
    """
    packed = np.array([stamp], np.int64).tobytes()
    try:
        with _opened(tar, stamp[0]) as raw, tarfile.open(fileobj=io.BufferedReader(raw, 1 << 20), mode="r|") as file:
            for info in file:
                if info.isreg() and not info.issparse() and wanted(info.name):
                    content = file.extractfile(info)
                    assert content is not None, "a regular file"
                    found = _hashed(content.read(), packed, derive)
                    yield HashedMember(Member(tar, info.offset_data, info.size, info.name), found)
    except tarfile.TarError as error:
        raise UserError(f"{tar}: not a whole tar file without compression ({error}); make it again") from None
    except OSError as error:
        raise UserError(f"{tar}: cannot be read: {error.strerror or error}; restore it or mend the pattern") from None


def _opened(tar: str, size: int) -> io.RawIOBase:
    if not is_address(tar):
        return open(tar, "rb", buffering=0)
    return _Ranges(tar, size)


class _Ranges(io.RawIOBase):
    """An object as a file that is read from its beginning to its end."""

    def __init__(self, uri: str, size: int) -> None:
        super().__init__()
        self._bucket, self._key = split(uri)
        self._size, self._next, self._held = size, 0, memoryview(b"")

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        if not self._held and self._next < self._size:
            self._held = memoryview(self._bucket.get_range(self._key, self._next, min(_RANGE, self._size - self._next)))
            self._next += len(self._held)
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


def _away(uri: str, error: OSError) -> UserError:
    return UserError(f"{uri}: {error.strerror}; run again when it does")
