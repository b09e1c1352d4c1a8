"""Large nested structs out of MATLAB 5 files (``save -v6`` and ``-v7``), as columns.

``scipy.io.loadmat`` makes a Python object of every number in every struct; an ``anno_bbox.mat`` holds two million. Here one
walk notes where each matrix begins, and numbers are then taken from all of them at once. Layout: MathWorks, "MAT-File
Format", the chapters on version 5. Little-endian files; no sparse or complex arrays.
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


class DamagedFile(UserError):
    """A file that ends too early or whose parts do not fit. No other reader should try it: SciPy's may end the process."""


_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_COMPLEX = 8
"""A bit of a matrix's flags, above its class."""
_NUMERIC = range(6, 16)
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
MAX_BYTES = 1 << 30
"""Variables that say they are larger than this when inflated are refused before they are: a few KB can hold any number of
zeros. The boxes of the pico world's 4,000 training images take 10 MB."""
_SIZE = 1
"""The word, of 32 bits, that says how many bytes an element has; its type stands in the word before."""
_FLAGS, _DIMENSIONS, _NAME, _VALUES = 2, 6, 10, 12
"""Where the parts of an unnamed two-dimensional matrix begin, each an element of its own, in words from the matrix's tag:
flags (the class is in their first byte), dimensions (rows, columns), the empty name, the values."""
_INT8 = 1
"""The type of a name's characters."""


def read_matrix(file: Path, variable: str) -> Matrices:
    """One variable of a file.

    Raises:
        UserError: If the file is not there, of another kind or damaged, or lacks the variable.
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
        raise DamagedFile(f"{file}: damaged or cut short ({error}); get it again") from None
    raise UserError(f"{file}: no variable {variable}; is it HICO-DET's file?")


def without_compression(file: Path, variables: Collection[str]) -> io.BytesIO:
    """A copy of a file with some of its variables, inflated, for ``scipy.io.loadmat``, which would inflate any size.

    A file of another kind is passed on as it is.

    Raises:
        OSError: If the file cannot be read.
        IndexError, ValueError, zlib.error: If it is damaged, or larger than :data:`MAX_BYTES`.
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

    Attributes:
        file: For errors.
        data: The whole variable, inflated.
        at: int64 ``[M]``, where the tag of each matrix begins in ``data``, in bytes.
    """

    file: Path
    data: bytes
    at: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, rows: slice) -> Matrices:
        return Matrices(self.file, self.data, self.at[rows])

    def structs(self, *fields: str) -> tuple[np.ndarray, dict[str, Matrices]]:
        """The matrices as struct arrays, which hold E elements together.

        Returns:
            int64 ``[E]``, the matrix of each element; and the E matrices of each of ``fields``. An empty matrix of any
            class has no elements.

        Raises:
            UserError: If a matrix is no struct array, or lacks a field.
        """
        try:
            return self._structs(fields)
        except IndexError:
            raise DamagedFile(f"{self.file}: damaged: a struct goes on beyond the end of its variable") from None

    def _structs(self, fields: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Matrices]]:
        words = memoryview(self.data).cast("I")
        sizes = np.zeros(len(self), np.int64)
        starts = array("q")
        orders: dict[bytes, list[int]] = {}  # columns of the wanted fields; structs need not agree on their order
        order, count = np.zeros((len(self), len(fields)), np.int64), len(fields)
        for m, at in enumerate(self.at.tolist()):
            word = at >> 2
            dimensions = word + _DIMENSIONS + _SIZE
            if not words[word + _SIZE] or not (size := words[dimensions + 1] * words[dimensions + 2]):
                continue
            named = 0 if words[word + _NAME] >> 16 else -(-words[word + _NAME + _SIZE] // 8) * 8
            fields_at = at + 4 * _VALUES + named
            short = words[(fields_at >> 2) + 2] >> 16
            first = fields_at + 16 + (0 if short else -(-words[(fields_at >> 2) + 3] // 8) * 8)
            layout = self.data[fields_at:first]
            if layout not in orders:
                struct = words[word + _FLAGS + _SIZE + 1] & 0xFF == _STRUCT and words[dimensions] == 8
                names = _field_names(layout) if struct else []
                if not names or (orders and len(names) != count):
                    raise self._unexpected(at, "struct array like the others")
                if missing := [field for field in fields if field not in names]:
                    raise UserError(f"{self.file}: a struct has the fields {', '.join(names)}, but no {missing[0]!r}")
                orders[layout], count = [names.index(field) for field in fields], len(names)
            sizes[m], order[m] = size, orders[layout]
            for _ in range(size * count):
                starts.append(first)
                first += 8 + words[(first >> 2) + _SIZE]
            if first != at + 8 + words[word + _SIZE]:
                raise self._unexpected(at, "whole struct array")
        owner = np.repeat(np.arange(len(self)), sizes)
        table = np.take_along_axis(np.frombuffer(starts, np.int64).reshape(-1, count), order[owner], axis=1)
        return owner, {field: Matrices(self.file, self.data, table[:, k]) for k, field in enumerate(fields)}

    def cells(self) -> Matrices:
        """The matrices in the cells of the one matrix that this is, column by column.

        Raises:
            UserError: If it is no two-dimensional cell array.
        """
        kind, rows, columns, first = self._only("cell array")
        if kind != _CELL:
            raise self._unexpected(0, "cell array")
        words, starts = memoryview(self.data).cast("I"), array("q")
        try:
            for _ in range(rows * columns):
                starts.append(first)
                first += 8 + words[(first >> 2) + _SIZE]
        except IndexError:
            raise DamagedFile(f"{self.file}: damaged: cells go on beyond the end of their variable") from None
        return Matrices(self.file, self.data, np.frombuffer(starts, np.int64))

    def table(self) -> np.ndarray:
        """The numbers of the one matrix that this is, ``[rows, columns]``, as they are stored.

        Raises:
            UserError: If it is no two-dimensional matrix of numbers.
        """
        kind, rows, columns, first = self._only("matrix of numbers")
        stored, size = np.frombuffer(self.data, "<u4", 2, first).tolist() if first + 8 <= len(self.data) else (0, 0)
        form = np.dtype(_NUMBERS.get(stored, "V1"))
        if kind not in _NUMERIC or form.kind == "V" or size != rows * columns * form.itemsize:
            raise self._unexpected(0, "matrix of numbers")
        if first + 8 + size > len(self.data):
            raise DamagedFile(f"{self.file}: damaged: numbers go on beyond the end of their variable")
        return np.frombuffer(self.data, form, rows * columns, first + 8).reshape(columns, rows).T

    def _only(self, wanted: str) -> tuple[int, int, int, int]:
        """Of the one matrix that this is, a variable: its class, rows and columns, and where what follows its name begins."""
        words = np.frombuffer(self.data, "<u4", min(len(self.data) // 4, _VALUES)).tolist()
        if len(words) < _VALUES or words[_DIMENSIONS + _SIZE] != 8 or words[_FLAGS + _SIZE + 1] >> 8 & _COMPLEX:
            raise self._unexpected(0, f"two-dimensional {wanted}")
        named = 0 if words[_NAME] >> 16 else -(-words[_NAME + _SIZE] // 8) * 8
        rows, columns = words[_DIMENSIONS + _SIZE + 1 : _NAME]
        return words[_FLAGS + _SIZE + 1] & 0xFF, rows, columns, 4 * _VALUES + named

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """All values, float64, one matrix after the other, each column by column; and int64 ``[M]``, how many of each."""
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
        """float64 ``[M]``: the first value of each matrix, or ``empty`` if it has none."""
        values, counts = self.numbers()
        out = np.full(len(self), empty)
        out[counts > 0] = values[(np.cumsum(counts) - counts)[counts > 0]]
        return out

    def texts(self) -> list[str]:
        """The characters of each matrix."""
        columns = (column.tolist() for column in self._payloads("text", (_CHAR,)))
        return [
            self.data[start : start + size].decode(_TEXTS.get(kind, "ascii"), "replace")
            for kind, size, start in zip(*columns, strict=True)
        ]

    def _payloads(self, wanted: str, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the values of unnamed two-dimensional matrices lie.

        Args:
            wanted: What the matrices should be, for errors.
            classes: The MATLAB classes that these have.

        Returns:
            int64 ``[M]`` each: the type, the number of bytes and the offset of the values; all 0 if a matrix is empty.
        """
        words = np.frombuffer(self.data, "<u4")
        kind, size, start = np.zeros((3, len(self)), np.int64)
        filled = np.flatnonzero(words[(self.at >> 2) + _SIZE] > 0)
        at, matrix = self.at[filled], self.at[filled] >> 2
        if (matrix + _VALUES + _SIZE >= len(words)).any():
            raise DamagedFile(f"{self.file}: damaged: a matrix goes on beyond the end of its variable")
        unnamed = (words[matrix + _NAME] == _INT8) & (words[matrix + _NAME + _SIZE] == 0)
        plain = unnamed & (words[matrix + _DIMENSIONS + _SIZE] == 8)
        if not plain.all():
            raise self._unexpected(int(at[~plain][0]), "two-dimensional matrix")
        first, second = words[matrix + _VALUES], words[matrix + _VALUES + _SIZE]
        small = first >> 16  # up to four bytes of values stand in the second word; then the first is type and size
        kind[filled] = np.where(small > 0, first & 0xFFFF, first)
        size[filled] = np.where(small > 0, small, second)
        start[filled] = matrix * 4 + _VALUES * 4 + np.where(small > 0, 4, 8)
        known = np.isin(kind[filled], list(_NUMBERS if classes is _NUMERIC else _TEXTS))
        other = (size[filled] > 0) & ~(known & np.isin(words[matrix + _FLAGS + _SIZE + 1] & 0xFF, classes))
        if other.any():
            raise self._unexpected(int(at[other][0]), wanted)
        if (start + size > len(self.data)).any():
            raise DamagedFile(f"{self.file}: damaged: numbers go on beyond the end of their variable")
        return kind, size, start

    def _unexpected(self, at: int, wanted: str) -> UserError:
        return UserError(f"{self.file}: not the structs of anno_bbox.mat: no {wanted} at byte {at} of the variable")


def _field_names(layout: bytes) -> list[str]:
    """From a struct's two elements: the length of a name, then all names, padded with zeros."""
    _, length, tag, total = np.frombuffer(layout, "<u4", 4).tolist()
    listed = layout[12 : 12 + (tag >> 16)] if tag >> 16 else layout[16 : 16 + total]
    return [listed[k : k + length].split(b"\0")[0].decode("latin-1") for k in range(0, len(listed), max(length, 1))]
