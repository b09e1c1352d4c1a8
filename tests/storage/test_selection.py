"""A selection of cells: rows and columns are taken with their input digests and what is wanted of them."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.selection import CellSelection

ROW_IDS = as_rows([digest_bytes(b"%d" % row) for row in range(3)])
BY_CELL = np.arange(6, dtype=np.uint64).reshape(3, 2)
WANTED = np.array([[True, False], [False, True], [True, True]])


def test_columns_keep_their_input_digests() -> None:
    cells = CellSelection(ROW_IDS, ("a", "b"), BY_CELL, WANTED)
    assert cells.select(["b"]).inputs.tolist() == [[1], [3], [5]]
    assert cells.select(["b", "a"]).wanted.tolist() == WANTED[:, ::-1].tolist()
    assert cells.select(["b", "a"]).columns == ("b", "a")
    assert CellSelection(ROW_IDS, ("a", "b"), BY_CELL[:, 0]).select(["b"]).inputs.tolist() == [0, 2, 4]
    with pytest.raises(KeyError):
        cells.select(["c"])


@pytest.mark.parametrize("rows", [np.array([2, 0, 0]), np.array([True, False, True]), slice(1, None)])
def test_rows_keep_what_belongs_to_them(rows) -> None:
    for inputs in (BY_CELL, BY_CELL[:, 0]):
        taken = CellSelection(ROW_IDS, ("a", "b"), inputs, WANTED).take(rows)
        assert taken.row_ids.tolist() == ROW_IDS[rows].tolist()
        assert taken.inputs.tolist() == inputs[rows].tolist()
        assert taken.wanted.tolist() == WANTED[rows].tolist()


def test_what_is_not_said_stays_unsaid() -> None:
    cells = CellSelection(ROW_IDS, ("a", "b")).take(slice(0, 2)).select(["b"])
    assert (cells.inputs, cells.wanted, cells.shape) == (None, None, (2, 1))
    assert cells.wanted_mask().all()
