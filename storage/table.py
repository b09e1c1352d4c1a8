"""A table: one kind of output under one fingerprint, as a matrix of cells (rows = inputs, columns = questions).

It lies under ``<cache>/tables/<name>-<fingerprint>/``, see :mod:`hoi_distill.storage.table_folder`.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from hoi_distill.storage.table_reader import TableReader
from hoi_distill.storage.table_writer import TableWriter


class Table(TableReader, TableWriter):
    """A table that exists. Get it from :meth:`hoi_distill.storage.cache.Cache.table`, or by its folder. Pickles as its folder."""

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (str(self.dir),)
