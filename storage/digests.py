"""Names by content: digests of bytes, of records, of stored cells.

Rows are named by the 16-byte blake2b digest of the input's bytes (numpy dtype ``V16``); values and inputs of cells by
``uint64`` digests that mix vectorised. Files' digests are remembered by :mod:`hoi_distill.storage.file_digests`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

ROW = np.dtype("V16")


def digest_bytes(data: bytes) -> bytes:
    """The 16-byte name of an input: blake2b of its bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


def digest_of_file(path: str | os.PathLike[str]) -> bytes:
    """:func:`digest_bytes` of a file, which is never whole in memory. Raises ``OSError``."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def digest64(data: bytes | memoryview) -> int:
    """A 64-bit blake2b digest, never 0 (0 means "never recorded")."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


FAILURE_DIGEST = digest64(b"failure")
"""The value digest of every failure cell: what lies below does not depend on how an input failed."""
_NULL = np.uint64(digest64(b"null"))
_PHI = np.uint64(0x9E3779B97F4A7C15)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8. NaN and infinities raise ``ValueError``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def content_name(data: bytes, size: int = 16) -> str:
    """The name of some bytes: their blake2b digest in hex.

    Names are stored, so what spells a value as bytes must go on spelling it so. New names are of :func:`canonical_json`; some
    stored ones are of ``json.dumps`` with or without sorted keys.

    Args:
        data: what is named.
        size: bytes of the digest; the name has twice as many digits.
    """
    return content_name_of((data,), size)


def content_name_of(parts: Iterable[bytes | memoryview], size: int = 16) -> str:
    """:func:`content_name` of parts one after another, which are never joined in memory."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def fingerprint(record: Mapping[str, Any]) -> str:
    """32 hex digits that name a canonical record."""
    return digest_bytes(canonical_json(record)).hex()


def as_rows(digests: Sequence[bytes]) -> np.ndarray:
    """``V16 [N]`` of N 16-byte digests."""
    return np.frombuffer(b"".join(digests), ROW)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64 whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def combine64(*arrays: np.ndarray | int) -> np.ndarray:
    """Mix uint64 arrays element by element (they broadcast). Depends on their order; never 0."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(_PHI * np.uint64(len(arrays) + 1))
        for array in arrays:
            mixed = _mix((mixed ^ np.asarray(array, np.uint64)) + _PHI)
    return np.where(mixed == 0, np.uint64(1), mixed)


def _sequence(elements: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Digests of the lists ``elements[offsets[i]:offsets[i + 1]]``, each depending on length and order."""
    lengths = np.diff(offsets)
    position = np.arange(len(elements), dtype=np.uint64) - np.repeat(
        (offsets[:-1] - offsets[0]).astype(np.uint64), lengths
    )
    with np.errstate(over="ignore"):
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(elements + (position + np.uint64(1)) * _PHI))])
        sums = total[offsets[1:] - offsets[0]] - total[offsets[:-1] - offsets[0]]
    return combine64(sums, lengths.astype(np.uint64))


def arrow_digests(array: pa.Array) -> np.ndarray:
    """``uint64 [N]``: a digest of each of the N values, of any nested Arrow type. Equal values have equal digests."""
    kind = array.type
    count = len(array)
    if pa.types.is_null(kind):
        return np.full(count, _NULL)
    if pa.types.is_dictionary(kind):
        return arrow_digests(array.dictionary_decode())
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    if pa.types.is_struct(kind):
        digests = combine64(*(arrow_digests(child) for child in array.flatten()))
        digests = np.broadcast_to(digests, (count,))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        digests = _sequence(arrow_digests(array.values.slice(offsets[0], offsets[-1] - offsets[0])), offsets)
    elif pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        children = arrow_digests(array.values.slice(array.offset * size, count * size))
        digests = _sequence(children, np.arange(count + 1, dtype=np.int64) * size)
    elif pa.types.is_primitive(array.type):
        width = array.type.bit_width // 8
        values = np.frombuffer(array.buffers()[1] or b"", f"<u{width}", count=count, offset=array.offset * width)
        digests = combine64(values.astype(np.uint64))
    else:
        cells = (
            value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in array.to_pylist()
        )
        digests = np.fromiter((digest64(cell or b"") for cell in cells), np.uint64, count)
    if array.null_count:
        digests = np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, digests)
    return digests


def tensor_digests(encoded: np.ndarray) -> np.ndarray:
    """``uint64 [B]`` digests of encoded tensor cells, ``uint8 [B, bytes]``."""
    return np.fromiter((digest64(memoryview(cell)) for cell in np.ascontiguousarray(encoded)), np.uint64, len(encoded))
