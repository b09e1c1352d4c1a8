"""A block of cells: its key names what is committed, and what does not fit together is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes

ROW_IDS = as_rows([digest_bytes(b"%d" % row) for row in range(2)])
BLOCK = CellBlock(ROW_IDS, ("a", "b"), np.array([[True, True], [True, False]]), {(1, 1): "broken"})


def test_the_key_of_a_block_is_the_one_that_stored_names_have() -> None:
    """Names of files that were committed before: they must not move."""
    assert BLOCK.key([]) == "4877170804277a1f49884ea17bb65a9d"
    assert replace(BLOCK, failures={}, inputs=np.array([5, 6], np.uint64)).key([]) == "0421490513241120d87bfa48c7bf8689"


def test_a_key_depends_on_cells_inputs_failures_and_dropped_failures() -> None:
    blocks = [
        BLOCK,
        replace(BLOCK, row_ids=ROW_IDS[::-1]),
        replace(BLOCK, columns=("a", "c")),
        replace(BLOCK, failures={}),
        replace(BLOCK, inputs=np.array([1, 2], np.uint64)),
    ]
    keys = [block.key([]) for block in blocks] + [BLOCK.key(["one.drop"])]
    assert len(set(keys)) == len(keys)
    assert replace(BLOCK, failures={(1, 1): "another reason"}).key([]) == BLOCK.key([])


def test_input_digests_that_agree_along_each_row_are_one_a_row() -> None:
    alike, apart = np.array([[5, 5], [6, 6]], np.uint64), np.array([[5, 5], [6, 7]], np.uint64)
    assert replace(BLOCK, inputs=alike).collapsed().inputs.tolist() == [5, 6]
    assert replace(BLOCK, inputs=apart).collapsed().inputs.tolist() == apart.tolist()
    assert BLOCK.collapsed().inputs is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_ids": ROW_IDS[[0, 0]]}, "occurs twice"),
        ({"columns": ("a", "a")}, "occurs twice"),
        ({"valid": np.ones((2, 1), bool)}, "valid must be bool"),
        ({"inputs": np.zeros(3, np.uint64)}, "inputs must be"),
        ({"valid": np.ones((2, 2), bool)}, "both a value and a failure"),
        ({"valid": np.zeros((2, 2), bool), "failures": {}}, "nothing to commit"),
        ({"row_ids": np.zeros(2, np.int64)}, "must be V16"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message: str) -> None:
    BLOCK.validate()
    with pytest.raises(ValueError, match=message):
        replace(BLOCK, **changes).validate()
