"""What counts as a number in JSON: the same in a file where all is well and in one with a bad entry."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.stages.data.reading.json_columns import integers, number_rows, numbers

NO_NUMBERS = [True, False, "1", "1.5", None, [1], {}, 10**400]


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=lambda value: f"{type(value).__name__} {value!r:.5}")
@pytest.mark.parametrize("beside", [[1, 2.5], [1, None]], ids=["numbers", "none"])
def test_what_is_no_number_is_none_whatever_stands_beside_it(bad, beside):
    assert np.isnan(numbers([*beside, bad])[-1])
    assert not integers([*beside, bad])[1][-1]
    rows, good = number_rows([[1, 2], [3, 4.5], [5, bad]], 2)
    assert good.tolist() == [True, True, False]
    assert rows.tolist() == [[1, 2], [3, 4.5], [0, 0]]


def test_whole_numbers_may_be_floats_and_where_asked_digits():
    given, good = integers([3, 4.0, 4.5, 2**53, 2**70, float("nan"), float("inf"), -2])
    assert good.tolist() == [True, True, False, False, False, False, False, True]
    assert given[good].tolist() == [3, 4, -2]
    assert integers(["77\n", "x", 5, True], text=True)[1].tolist() == [True, False, True, False]
    assert integers(["9" * 5000, "7"], text=True)[1].tolist() == [False, True], "Python refuses to read so many digits"
    assert not integers(["77\n"])[1].any()


@pytest.mark.parametrize("row", [3, "ab", None, [1], [1, 2, 3], [[1, 2]], [1, float("inf")], {"a": 1, "b": 2}])
def test_a_row_that_is_no_list_of_its_width_is_refused_alone(row):
    rows, good = number_rows([[1, 2], row], 2)
    assert good.tolist() == [True, False]
    assert rows.shape == (2, 2)
    assert number_rows([], 2)[0].shape == (0, 2)
    assert number_rows([row], 2)[1].tolist() == [False]


def test_large_numbers_are_finite():
    rows, good = number_rows([[1e308, 1e308]], 2)
    assert good.all()
    assert rows.tolist() == [[1e308, 1e308]]
