"""Requests to an object store or a server of pages, repeated while it is away or cuts them off.

obstore repeats a request, or a part of an upload, a few times at once. What is left over is repeated here with growing waits.
Nobody else has to know that answers get lost: a request that may have been carried out before is asked again so that its
answer is the same.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files.drafts import Hashing

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds for which a store may be away before work stops."""
OPENING = 10.0
"""Seconds for which it may be away when a cache is opened."""
PART = 16 << 20
"""Bytes of a part of an upload."""
_PARTS_AT_ONCE = 4
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds
_RETRIES = {
    "max_retries": 3,
    "backoff": {
        "init_backoff": timedelta(milliseconds=50),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=10),
}
_TIMEOUTS = {"connect_timeout": "10s", "timeout": "120s"}
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
_STATUS = re.compile(r"status code: (\d+ ?[A-Za-z ]*)")
_WHY = re.compile(r"HTTP error: ([^\n]*)")
_PASSING = (408, 409, 425, 429)
_REFUSED = (401, 403)
_BEYOND = 416  # a range that begins behind the end


class Bucket:
    """The objects of one bucket. Keys are whole: they hold the prefix.

    Args:
        url: ``s3://bucket``, or ``https://host``, which can only be read.
        pid: the process that used obstore first. Its threads do not live on in a forked one, which would wait for ever.
    """

    def __init__(self, url: str, pid: int) -> None:
        import obstore
        import obstore.store

        self.url, self.pid, self._obstore = url, pid, obstore
        config: Any = {"checksum_algorithm": "SHA256"} if url.startswith("s3://") else None
        endpoints = [url, *(os.environ.get(name, "") for name in ENDPOINTS)]
        plain = any(endpoint.startswith("http://") for endpoint in endpoints)
        client: Any = {**_TIMEOUTS, "allow_http": plain}
        retries: Any = _RETRIES
        try:
            self._store = obstore.store.from_url(url, config=config, client_options=client, retry_config=retries)
        except obstore.exceptions.BaseError as error:
            raise UserError(f"{url}: {_reason(error)}; see docs/cluster.md for the environment's variables") from None

    def head(self, key: str) -> Mapping[str, Any]:
        """Size and time of an object. Raises ``FileNotFoundError``."""
        return self._ask(key, lambda: self._obstore.head(self._store, key))

    def get(self, key: str) -> bytes:
        """An object's bytes. Raises ``FileNotFoundError``."""
        return self._ask(key, lambda: bytes(self._obstore.get(self._store, key).bytes()))

    def get_stamped(self, key: str) -> tuple[bytes, Mapping[str, Any]]:
        """An object's bytes, and what is known of it: size, time, etag. Raises ``FileNotFoundError``."""

        def attempt() -> tuple[bytes, Mapping[str, Any]]:
            found = self._obstore.get(self._store, key)
            return bytes(found.bytes()), found.meta

        return self._ask(key, attempt)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Some of an object's bytes; those that there are, where it ends before. Raises ``FileNotFoundError``."""

        def attempt() -> bytes:
            try:
                return bytes(self._obstore.get_range(self._store, key, start=start, length=length))
            except self._obstore.exceptions.BaseError as error:
                if _status(error) == _BEYOND or "larger than length" in str(error):
                    return b""
                raise

        return self._ask(key, attempt) if length else b""

    def download(self, key: str, target: Path) -> str:
        """Write an object to a file. A connection that is cut off goes on where it was.

        Returns:
            The checksum of what was written, 32 hex digits.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the file cannot be written, or the store does not answer.
        """
        with open(target, "wb", buffering=0) as file:
            sink = Hashing(file)

            def rest() -> None:
                if sink.bytes and sink.bytes == self._obstore.head(self._store, key)["size"]:
                    return
                options: Any = {"range": {"offset": sink.bytes}} if sink.bytes else None
                for part in self._obstore.get(self._store, key, options=options).stream(min_chunk_size=1 << 20):
                    sink.write(part)

            self._ask(key, rest)
        return sink.state.hexdigest()

    def put(self, key: str, data: bytes) -> None:
        """Write an object, over what was there."""
        self._ask(key, lambda: self._obstore.put(self._store, key, data, use_multipart=False))

    def put_new(self, key: str, data: bytes, patience: float = PATIENCE) -> bool:
        """Write an object unless there is one; False where there is.

        An answer may get lost after the object was written. So whoever finds one there that holds its own bytes wrote it.

        Args:
            key: the object's.
            data: its bytes.
            patience: seconds for which the store may be away.
        """

        def attempt() -> bool:
            try:
                self._obstore.put(self._store, key, data, mode="create")
            except self._obstore.exceptions.AlreadyExistsError:
                try:
                    return bytes(self._obstore.get(self._store, key).bytes()) == data
                except FileNotFoundError:  # it was there, and somebody has moved it since
                    return False
            return True

        return self._ask(key, attempt, patience)

    def upload(self, key: str, file: Path) -> None:
        """Write a file as an object, in parts, each with a checksum where the store takes one. The object is whole or not
        there."""
        self._ask(
            key,
            lambda: self._obstore.put(
                self._store,
                key,
                file,
                use_multipart=file.stat().st_size > PART,
                chunk_size=PART,
                max_concurrency=_PARTS_AT_ONCE,
            ),
        )

    def objects(self, prefix: str) -> list[Mapping[str, Any]]:
        """What is known of every object below a prefix, in folders of folders too: path, size, time, etag."""
        return self._ask(prefix, lambda: [entry for part in self._obstore.list(self._store, prefix) for entry in part])

    def scan(self, prefix: str, take: Callable[[Mapping[str, Any]], None]) -> None:
        """Hand over what is known of every object below a prefix, as it is listed: a thousand a request, none twice, by name.
        A listing that is cut off goes on where it was."""
        last: str | None = None

        def attempt() -> None:
            nonlocal last
            for part in self._obstore.list(self._store, prefix or None, offset=last):
                for entry in part:
                    take(entry)
                    last = entry["path"]

        self._ask(prefix, attempt)

    def children(self, prefix: str) -> tuple[list[str], list[Mapping[str, Any]]]:
        """The prefixes and the objects right below a prefix."""
        found = self._ask(prefix, lambda: self._obstore.list_with_delimiter(self._store, prefix))
        return list(found["common_prefixes"]), list(found["objects"])

    def any_below(self, prefix: str) -> bool:
        """Whether there is an object below a prefix."""
        return self._ask(
            prefix, lambda: any(len(part) for part in self._obstore.list(self._store, prefix, chunk_size=1))
        )

    def copy(self, key: str, target: str) -> None:
        """Copy an object inside the bucket. Raises ``FileNotFoundError``."""
        self._ask(key, lambda: self._obstore.copy(self._store, key, target))

    def delete(self, keys: list[str]) -> None:
        """Remove objects, those that are there."""

        def attempt() -> None:
            try:
                self._obstore.delete(self._store, keys)
            except FileNotFoundError:  # a store that says so
                for key in keys:
                    try:
                        self._obstore.delete(self._store, key)
                    except FileNotFoundError:
                        continue

        if keys:
            self._ask(keys[0], attempt)

    def _ask(self, key: str, action: Callable[[], T], patience: float = PATIENCE) -> T:
        """What an action gives. It is repeated for as long as there is patience where the store fails in passing."""
        if os.getpid() != self.pid:
            raise StorageError(
                f"{self.url}/{key}: this process was forked from one that had used the object store, whose client does not "
                "survive that; start it with forkserver or spawn"
            )
        until = time.monotonic() + patience
        for wait in _waits():
            try:
                return action()
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.url}/{key}") from None
            except PermissionError as error:
                raise PermissionError(errno.EACCES, _reason(error), f"{self.url}/{key}") from None
            except self._obstore.exceptions.BaseError as error:
                number = _number(error)
                if number is not None:
                    raise OSError(number, _reason(error), f"{self.url}/{key}") from error
                if time.monotonic() + wait > until:
                    line = f"the object store does not answer ({_reason(error)})"
                    raise OSError(errno.EHOSTUNREACH, line, f"{self.url}/{key}") from error
            time.sleep(wait)
        raise AssertionError("waits have no end")


_BUCKETS: dict[str, Bucket] = {}
_LOCK = threading.Lock()


def bucket(url: str) -> Bucket:
    """The bucket of this address. All that a process asks for are of the process that asked first: see :meth:`Bucket._ask`.

    Raises:
        UserError: obstore is not installed, or the environment lacks something.
    """
    with _LOCK:
        if url not in _BUCKETS:
            first = next((known.pid for known in _BUCKETS.values()), os.getpid())
            try:
                _BUCKETS[url] = Bucket(url, first)
            except ImportError as error:
                line = f"{url}: {error}; install what object stores need: pip install -e '.[cloud]'"
                raise UserError(line) from None
    return _BUCKETS[url]


def _waits() -> Iterator[float]:
    """Seconds between attempts: twice as long each time, and never the same for two processes."""
    wait = _FIRST_WAIT
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(2 * wait, _LONGEST_WAIT)


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1].split()[0]) if found else None


def _number(error: Exception) -> int | None:
    """The system's number of an error that does not pass; None of one that may."""
    status, name = _status(error), type(error).__name__
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in _REFUSED:
        return errno.EACCES
    if name in ("NotSupportedError", "UnknownConfigurationKeyError", "InvalidPathError"):
        return errno.EINVAL
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return errno.ENODEV if status == 404 else errno.EREMOTEIO
    return None


def _reason(error: Exception) -> str:
    """What a store said, in one line."""
    for pattern in (_STATUS, _WHY):
        if found := pattern.search(str(error)):
            return found[1].strip()
    return str(error).partition("\n")[0].strip()
