"""Where a student's samples come from: the cache, through the sample stream, or memory.

A sample is ``{"row": int, table: {column: value}}``. A student needs two or three tables:

* ``detections``, column ``value``: boxes, scores, labels, width, height;
* ``features``, one column a view (``original``, ``flip``): float ``[C, h, w]``;
* ``itm``, one column a prompt: (z0, z1), or None where the image does not want the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hoi_distill.storage.digests import content_name

if TYPE_CHECKING:
    from hoi_distill.storage.stream import SampleStream, StreamSpec

Sample = dict[str, Any]
CHUNK = 256


class Samples(Protocol):
    """Rows of some tables, joined. Rows that failed in one of them are left out of the answer."""

    def __len__(self) -> int: ...

    def __getitems__(self, rows: list[int]) -> list[Sample]: ...

    @property
    def fetches(self) -> bool:
        """Whether rows come from an object store."""

    def fetch_ahead(self, rows: list[int]) -> None:
        """Begin to fetch what these rows need, and do not wait for it."""


class SampleSource(Protocol):
    """The tables of N rows, of which any part can be opened."""

    def __len__(self) -> int: ...

    def open(self, tables: Mapping[str, Sequence[str]]) -> Samples:
        """The rows of some tables, of each the columns that are named."""

    @property
    def rows_digest(self) -> str | None:
        """Names the N source inputs by their bytes; None where nothing about them should be kept on disk."""


@dataclass(frozen=True)
class CacheSource:
    """The cells of the cache that the pipeline has resolved."""

    spec: StreamSpec

    def __len__(self) -> int:
        return len(self.spec.row_ids)

    @property
    def rows_digest(self) -> str:
        """Names the source inputs by the row ids."""
        return content_name(self.spec.row_ids.tobytes(), 6)

    def open(self, tables: Mapping[str, Sequence[str]]) -> SampleStream:
        """A stream of the rows of some tables, of each the columns that are named."""
        from hoi_distill.storage.stream import SampleStream

        return SampleStream(self.spec.select(tables))


@dataclass(frozen=True)
class MemorySource:
    """Tables held as ``{table: {column: N values}}``; None is a row that failed."""

    tables: Mapping[str, Mapping[str, Sequence[Any]]]
    rows_digest: str | None = None

    def __len__(self) -> int:
        return len(next(iter(next(iter(self.tables.values())).values())))

    def open(self, tables: Mapping[str, Sequence[str]]) -> MemorySamples:
        """The rows of some tables, of each the columns that are named."""
        chosen = {name: {column: self.tables[name][column] for column in columns} for name, columns in tables.items()}
        return MemorySamples(len(self), chosen)


@dataclass(frozen=True)
class MemorySamples:
    count: int
    tables: Mapping[str, Mapping[str, Sequence[Any]]]
    fetches = False

    def fetch_ahead(self, rows: list[int]) -> None:
        """There is nothing to fetch."""

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: list[int]) -> list[Sample]:
        samples: list[Sample] = []
        for row in rows:
            cells = {name: {column: v[row] for column, v in columns.items()} for name, columns in self.tables.items()}
            if all(value is not None for columns in cells.values() for value in columns.values()):
                samples.append({"row": row, **cells})
        return samples


def in_order(samples: Samples, rows: np.ndarray | None = None) -> Iterator[Sample]:
    """The samples of ``rows`` (int64, default all) one after the other, read in chunks; failed rows are left out."""
    wanted = np.arange(len(samples)) if rows is None else rows
    for start in range(0, len(wanted), CHUNK):
        yield from samples.__getitems__(wanted[start : start + CHUNK].tolist())


def stacked(cells: Mapping[str, Any]) -> np.ndarray:
    """One row's pairs of numbers as one array.

    Args:
        cells: two numbers for each of C columns, or None for a cell that the row does not want.

    Returns:
        float ``[C, 2]`` in the order of the columns, NaN for None.
    """
    from hoi_distill.storage.numbers import NumberRow

    if isinstance(cells, NumberRow):
        return cells.array
    return np.array([(np.nan, np.nan) if cell is None else cell for cell in cells.values()]).reshape(-1, 2)
