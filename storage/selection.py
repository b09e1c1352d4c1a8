"""A selection of cells: which rows and columns of a table are meant, and which values of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class CellSelection:
    """R rows x C columns of one table.

    Attributes:
        row_ids: ``V16 [R]`` digests of the rows' inputs. A row may stand twice.
        columns: C distinct names.
        inputs: ``uint64 [R]`` or ``[R, C]`` input digests. A cell counts only if it was computed from these. None means
            whatever it was computed from, the newest first.
        wanted: ``bool [R, C]``, the cells that are meant. None means all of them.
    """

    row_ids: np.ndarray
    columns: tuple[str, ...]
    inputs: np.ndarray | None = None
    wanted: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, C)``."""
        return len(self.row_ids), len(self.columns)

    def take(self, rows: np.ndarray | slice) -> CellSelection:
        """The cells of some rows.

        Args:
            rows: positions, as numpy takes them: ``int [r]``, ``bool [R]`` or a slice.
        """
        inputs, wanted = (None if cells is None else cells[rows] for cells in (self.inputs, self.wanted))
        return CellSelection(self.row_ids[rows], self.columns, inputs, wanted)

    def select(self, columns: Sequence[str]) -> CellSelection:
        """The cells of some columns, in the order given.

        Raises:
            KeyError: a column is not selected here.
        """
        place = {column: index for index, column in enumerate(self.columns)}
        chosen = [place[column] for column in columns]
        inputs = self.inputs if self.inputs is None or self.inputs.ndim == 1 else self.inputs[:, chosen]
        wanted = None if self.wanted is None else self.wanted[:, chosen]
        return CellSelection(self.row_ids, tuple(columns), inputs, wanted)

    def wanted_mask(self) -> np.ndarray:
        """``bool [R, C]``: :attr:`wanted`, written out."""
        return np.ones(self.shape, bool) if self.wanted is None else self.wanted
