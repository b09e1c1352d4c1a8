"""Large nested structs out of MATLAB 5 files (``save -v6`` and ``-v7``), as columns.

``scipy.io.loadmat`` makes a Python object of every number in every struct; an ``anno_bbox.mat`` holds two million. Here one
walk notes where each matrix begins, and numbers are then taken from all of them at once. Layout: MathWorks, "MAT-File
Format", the chapters on version 5. Little-endian files; no sparse, complex or cell arrays.
"""

from __future__ import annotations

import io
import zlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi_distill.storage.errors import UserError

_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_NUMERIC = range(6, 16)
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
MAX_BYTES = 1 << 30
"""Variables that say they are larger than this when inflated are refused before they are: a few KB can hold any number of
zeros. The boxes of the pico world's 4,000 training pictures take 10 MB."""
_HEADER = 40  # of an unnamed two-dimensional matrix: flags 16, dimensions 16, empty name 8


def read_matrix(file: Path, variable: str) -> Matrices:
    """One variable of a file.

    Raises UserError for a file that is not there, of another kind, damaged, or without that variable.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if data[:10] == b"MATLAB 7.3":
        raise UserError(f"{file}: saved as MATLAB 7.3; save it again with -v7")
    if data[126:128] != b"IM":
        raise UserError(f"{file}: not a readable MATLAB file (no header of a little-endian version 5 file)")
    try:
        for body in _variables(data):
            if _name(body) == variable:
                inflated = _inflated(body)
                return Matrices(file, inflated.ljust(-(-len(inflated) // 8) * 8, b"\0"), np.zeros(1, np.int64))
    except (IndexError, ValueError, zlib.error) as error:
        raise UserError(f"{file}: damaged or cut short ({error}); get it again") from None
    raise UserError(f"{file}: no variable {variable}; is it HICO-DET's file?")


def without_compression(file: Path, variables: Collection[str]) -> io.BytesIO:
    """A copy of a file with these of its variables alone, inflated within :data:`MAX_BYTES`, for ``scipy.io.loadmat``, which
    knows no bound. A file of another kind is passed on as it is.

    Raises OSError where it cannot be read, and IndexError, ValueError or zlib.error where it is damaged or too large.
    """
    data = file.read_bytes()
    if data[126:128] == b"MI":
        raise ValueError("a big-endian file; save it again on a little-endian machine")
    if data[126:128] != b"IM":
        return io.BytesIO(data)
    chosen = [_inflated(body) for body in _variables(data) if _name(body) in variables]
    if (total := sum(map(len, chosen))) > MAX_BYTES:
        raise ValueError(f"{total} bytes when inflated; at most {MAX_BYTES} are read")
    return io.BytesIO(data[:128] + b"".join(chosen))


@dataclass
class _Packed:
    """A compressed variable, of which only the beginning is needed to know its name."""

    data: memoryview

    def __getitem__(self, part: slice) -> bytes:
        return zlib.decompressobj().decompress(self.data, part.stop)[part]

    def whole(self) -> bytes:
        size = 8 + int.from_bytes(self[0:8][4:], "little")  # as its own tag says
        if size > MAX_BYTES:
            raise ValueError(f"a variable of {size} bytes when inflated; at most {MAX_BYTES} are read")
        stream = zlib.decompressobj()
        inflated = stream.decompress(self.data, size + 1)  # one more, so that the end and its checksum are reached
        if not stream.eof:
            raise ValueError(f"a variable does not end after the {size} bytes that it says it has")
        return inflated


def _inflated(variable: bytes | _Packed) -> bytes:
    return variable if isinstance(variable, bytes) else variable.whole()


def _variables(data: bytes) -> Iterator[bytes | _Packed]:
    at = 128
    while at < len(data):
        kind, size = np.frombuffer(data, "<u4", 2, at).tolist() if at + 8 <= len(data) else (0, 0)
        if kind not in (_MATRIX, _COMPRESSED) or at + 8 + size > len(data):
            raise IndexError(f"the file ends within what begins at byte {at}")
        yield _Packed(memoryview(data)[at + 8 : at + 8 + size]) if kind == _COMPRESSED else data[at : at + 8 + size]
        at += 8 + size


def _name(variable: bytes | _Packed) -> str:
    words = np.frombuffer(variable[0:512].ljust(512, b"\0"), "<u4")
    tag = 8 + 16 + 8 + -(-int(words[7]) // 8) * 8  # after its own tag, the flags and the dimensions
    small, length = int(words[tag // 4]) >> 16, int(words[tag // 4 + 1])
    start, length = (tag + 4, small) if small else (tag + 8, min(length, 512))  # MATLAB's names have at most 63
    return bytes(variable[0 : start + length])[start:].decode("latin-1")


@dataclass(frozen=True)
class Matrices:
    """M matrices that stand in the same place of nested structs.

    file: for errors. data: everything, inflated. at: int64 [M], where each one's tag begins in `data`.
    """

    file: Path
    data: bytes
    at: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, rows: slice) -> Matrices:
        return Matrices(self.file, self.data, self.at[rows])

    def structs(self, *fields: str) -> tuple[np.ndarray, dict[str, Matrices]]:
        """Taken as struct arrays, which hold E elements together.

        Returns int64 [E], the matrix of each element, and the E matrices of each of `fields`, which must be there. An
        empty matrix of any class has no elements.
        """
        try:
            return self._structs(fields)
        except IndexError:
            raise UserError(f"{self.file}: damaged: a struct goes on beyond the end of its variable") from None

    def _structs(self, fields: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Matrices]]:
        words = memoryview(self.data).cast("I")
        sizes = np.zeros(len(self), np.int64)
        starts = array("q")
        orders: dict[bytes, list[int]] = {}  # columns of the wanted fields; structs need not agree on their order
        order, count = np.zeros((len(self), len(fields)), np.int64), len(fields)
        for m, at in enumerate(self.at.tolist()):
            word = at >> 2
            if not words[word + 1] or not (size := words[word + 8] * words[word + 9]):
                continue
            fields_at = at + 48 + (0 if words[word + 10] >> 16 else -(-words[word + 11] // 8) * 8)
            short = words[(fields_at >> 2) + 2] >> 16
            first = fields_at + 16 + (0 if short else -(-words[(fields_at >> 2) + 3] // 8) * 8)
            layout = self.data[fields_at:first]
            if layout not in orders:
                names = _field_names(layout) if words[word + 4] & 0xFF == _STRUCT and words[word + 7] == 8 else []
                if not names or (orders and len(names) != count):
                    raise self._unexpected(at, "struct array like the others")
                if missing := [field for field in fields if field not in names]:
                    raise UserError(f"{self.file}: a struct has the fields {', '.join(names)}, but no {missing[0]!r}")
                orders[layout], count = [names.index(field) for field in fields], len(names)
            sizes[m], order[m] = size, orders[layout]
            for _ in range(size * count):
                starts.append(first)
                first += 8 + words[(first >> 2) + 1]
            if first != at + 8 + words[word + 1]:
                raise self._unexpected(at, "whole struct array")
        owner = np.repeat(np.arange(len(self)), sizes)
        table = np.take_along_axis(np.frombuffer(starts, np.int64).reshape(-1, count), order[owner], axis=1)
        return owner, {field: Matrices(self.file, self.data, table[:, k]) for k, field in enumerate(fields)}

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """All values, float64, each matrix column by column, one matrix after the other, and int64 [M], how many each."""
        kind, size, start = self._payloads("numbers", _NUMERIC)
        out = np.zeros(len(self), np.int64)
        for code, width in _NUMBERS.items():
            out[kind == code] = size[kind == code] // np.dtype(width).itemsize
        values = np.empty(out.sum())
        matrix = np.repeat(np.arange(len(self)), out)
        within = np.arange(len(values)) - (np.cumsum(out) - out)[matrix]
        octets = np.frombuffer(self.data, np.uint8)
        for code in np.unique(kind[out > 0]).tolist():
            form = np.dtype(_NUMBERS[code])
            chosen = np.flatnonzero(kind[matrix] == code)
            first = start[matrix[chosen]] + within[chosen] * form.itemsize
            values[chosen] = octets[first[:, None] + np.arange(form.itemsize)].view(form)[:, 0]
        return values, out

    def scalars(self, empty: float = np.nan) -> np.ndarray:
        """float64 [M]: the first value of each; `empty` where there is none."""
        values, counts = self.numbers()
        out = np.full(len(self), empty)
        out[counts > 0] = values[(np.cumsum(counts) - counts)[counts > 0]]
        return out

    def texts(self) -> list[str]:
        """The characters of each."""
        columns = (column.tolist() for column in self._payloads("text", (_CHAR,)))
        return [
            self.data[start : start + size].decode(_TEXTS.get(kind, "ascii"), "replace")
            for kind, size, start in zip(*columns, strict=True)
        ]

    def _payloads(self, wanted: str, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [M] each: type, bytes and offset of the values of unnamed two-dimensional matrices; 0 bytes if empty."""
        words = np.frombuffer(self.data, "<u4")
        word = self.at >> 2
        there = words[word + 1] > 0
        tag = np.where(there, word + 12, word)
        plain = (words[tag - 6 * there + 1] == 8) & (words[tag - 2 * there] == 1) & (words[tag - 2 * there + 1] == 0)
        if not (plain | ~there).all():
            raise self._unexpected(int(self.at[~plain & there][0]), "two-dimensional matrix")
        small = words[tag] >> 16
        kind = np.where(small > 0, words[tag] & 0xFFFF, words[tag])
        size = np.where(there, np.where(small > 0, small, words[tag + 1]), 0)
        start = tag * 4 + np.where(small > 0, 4, 8)
        known = np.isin(kind, list(_NUMBERS if classes is _NUMERIC else _TEXTS))
        other = (size > 0) & ~(known & np.isin(words[tag - 8 * there] & 0xFF, classes))
        if other.any():
            raise self._unexpected(int(self.at[other][0]), wanted)
        if (start + size > len(self.data)).any():
            raise UserError(f"{self.file}: damaged: numbers go on beyond the end of their variable")
        return kind.astype(np.int64), size.astype(np.int64), start.astype(np.int64)

    def _unexpected(self, at: int, wanted: str) -> UserError:
        return UserError(f"{self.file}: not the structs of anno_bbox.mat: no {wanted} at byte {at} of the variable")


def _field_names(layout: bytes) -> list[str]:
    """From a struct's two elements: the length of a name, then all names, padded with zeros."""
    _, length, tag, total = np.frombuffer(layout, "<u4", 4).tolist()
    listed = layout[12 : 12 + (tag >> 16)] if tag >> 16 else layout[16 : 16 + total]
    return [listed[k : k + length].split(b"\0")[0].decode("latin-1") for k in range(0, len(listed), max(length, 1))]
