"""Writes an LMDB file in one pass from its first byte to its last, in the format of LMDB 0.9 (``lmdb.h``, ``mdb.c``).

LMDB itself writes pages through a file that it maps as well, which not every file system allows, and whoever wants the file's
checksum has to read it again. Here all sizes are known before the first byte, so every page has its place: two meta pages,
the leaves, the branches above them, then the large values in key order. Any LMDB opens the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

PAGE = 4096
_HEADER = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
_LARGE_HEADER = struct.Struct("<QHHI")  # number, pad, flags, pages
_NODE = struct.Struct("<HHHH")  # size or page number (low, high), flags or its rest, key size
_META = struct.Struct("<IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, pages of branches, leaves and large values, entries, root
_BRANCH, _LEAF, _LARGE, _META_PAGE = 1, 2, 4, 8
_BIG_DATA, _INTEGER_KEY = 1, 8
_MAGIC, _VERSION, _NOWHERE = 0xBEEFC0DE, 1, 2**64 - 1
_NUMBER = 8  # bytes of the page number of a large value
_LARGEST_NODE = (PAGE - _HEADER.size) // 2 - 2
"""Bytes of a node, its key and its value; a larger value has pages of its own."""


@dataclass(frozen=True)
class _Child:
    """A page below a branch: its number and its first key."""

    page: int
    key: bytes


def write_lmdb(sink: BinaryIO, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
    """Write a file whose one tree holds these entries.

    Args:
        sink: the file, at its start.
        keys: N >= 1 distinct ones in ascending order, each of 1 to 511 bytes.
        values: N runs of bytes.

    Raises:
        OSError: it cannot be written.
    """
    pages = [_large_pages(key, value) for key, value in zip(keys, values, strict=True)]
    spans = _spans(
        [
            _NODE.size + len(key) + (_NUMBER if count else value.nbytes)
            for key, value, count in zip(keys, values, pages, strict=True)
        ]
    )
    level = [_Child(2 + number, keys[start]) for number, (start, _) in enumerate(spans)]
    branches: list[bytes] = []
    depth = 1
    while len(level) > 1:
        first = 2 + len(spans) + len(branches)
        groups = _spans([_NODE.size + len(child.key) for child in level])
        branches += [_branch(first + number, level[start:stop]) for number, (start, stop) in enumerate(groups)]
        level = [_Child(first + number, level[start].key) for number, (start, _) in enumerate(groups)]
        depth += 1
    page = 2 + len(spans) + len(branches)
    tree = _TREE.pack(0, 0, depth, len(branches), len(spans), sum(pages), len(keys), level[0].page)
    for number in (0, 1):
        sink.write(_meta(number, tree, page + sum(pages)))
    places = [page + before for before in accumulate(pages, initial=0)]
    for number, (start, stop) in enumerate(spans):
        nodes = []
        for index in range(start, stop):
            key, value = keys[index], values[index]
            apart = pages[index] > 0
            head = _NODE.pack(value.nbytes & 0xFFFF, value.nbytes >> 16, _BIG_DATA if apart else 0, len(key))
            nodes.append(head + key + (places[index].to_bytes(_NUMBER, "little") if apart else value.tobytes()))
        sink.write(_page(2 + number, _LEAF, nodes))
    for branch in branches:
        sink.write(branch)
    for place, value, count in zip(places, values, pages, strict=False):
        if count:
            sink.write(_LARGE_HEADER.pack(place, 0, _LARGE, count))
            sink.write(value)
            sink.write(bytes(count * PAGE - _LARGE_HEADER.size - value.nbytes))


def _large_pages(key: bytes, value: memoryview) -> int:
    """How many pages of its own a value has; 0 for one that lies beside its key."""
    if _NODE.size + len(key) + value.nbytes <= _LARGEST_NODE:
        return 0
    return -(-(_LARGE_HEADER.size + value.nbytes) // PAGE)


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """``(start, stop)`` of the nodes of each page: as many as it holds, in order.

    Args:
        sizes: bytes of the nodes.
    """
    starts, used = [0], 0
    for index, size in enumerate(sizes):
        taken = 2 + size + size % 2
        if used + taken > PAGE - _HEADER.size:
            starts.append(index)
            used = 0
        used += taken
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def _page(number: int, flags: int, nodes: Sequence[bytes]) -> bytes:
    """A page of nodes. They lie from its end downwards; where each begins stands after the header."""
    packed = [node + bytes(len(node) % 2) for node in nodes]
    offsets = [PAGE - used for used in accumulate(map(len, packed))]
    upper = offsets[-1]
    lower = _HEADER.size + 2 * len(nodes)
    head = _HEADER.pack(number, 0, flags, lower, upper) + struct.pack(f"<{len(offsets)}H", *offsets)
    return head + bytes(upper - lower) + b"".join(reversed(packed))


def _branch(number: int, children: Sequence[_Child]) -> bytes:
    """A page that leads to others. The first of them needs no key: whatever is smaller than the second is there."""
    nodes = []
    for index, child in enumerate(children):
        key = child.key if index else b""
        nodes.append(_NODE.pack(child.page & 0xFFFF, child.page >> 16 & 0xFFFF, child.page >> 32, len(key)) + key)
    return _page(number, _BRANCH, nodes)


def _meta(number: int, tree: bytes, pages: int) -> bytes:
    """One of the two pages by which a file is opened. They are equal but for their numbers.

    Args:
        number: 0 or 1.
        tree: packed.
        pages: of the whole file.
    """
    free = _TREE.pack(PAGE, _INTEGER_KEY, 0, 0, 0, 0, 0, _NOWHERE)
    meta = _META.pack(_MAGIC, _VERSION, 0, pages * PAGE) + free + tree + struct.pack("<QQ", pages - 1, 1)
    return (_HEADER.pack(number, 0, _META_PAGE, 0, 0) + meta).ljust(PAGE, b"\0")
