"""A student gets the cells that it needs, or one line says which are missing and how to fill them."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.pipeline.planning.cells import CellPicker
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import plan_of, run


def picker_of(workspace) -> CellPicker:
    return CellPicker(workspace.path, plan_of(workspace), workspace.mending_command())


def test_what_a_student_cannot_have_is_refused_in_one_line(album):
    workspace = album.workspace()
    rows = np.arange(6)
    mend = rf"fill it with: hoi-distill run {album.path}$"
    with pytest.raises(UserError, match=r"table scores: no cell is filled; " + mend):
        picker_of(workspace).pick("scores", rows)
    run(album.workspace(limit=4))
    picker = picker_of(workspace)
    with pytest.raises(UserError, match=r"table scores: 6 of 18 cells that the student needs are empty; " + mend):
        picker.pick("scores", rows)
    with pytest.raises(UserError, match=r"album.yaml: tables.scores.columns: the student needs 'd'; add it"):
        picker.pick("scores", rows, ["a", "d"])
    with pytest.raises(
        UserError, match=r"album.yaml: student.tables: there is no table 'score'; there are scores, signs"
    ):
        picker.pick("score", rows)
    with pytest.raises(UserError, match=r"album.yaml: tables.scores.splits: does not cover the pictures"):
        picker.pick("scores", np.array([2, 6]))


def test_the_digest_of_picked_cells_says_which_they_are(album):
    run(album.workspace())
    picker = picker_of(album.workspace())
    cells = picker.pick("scores", np.array([3, 1]), ("c", "a"))
    assert (cells.name, cells.cells.columns, cells.cells.shape) == ("scores", ("c", "a"), (2, 2))
    assert cells.cells.row_ids.tolist() == album.workspace().images.ids[[3, 1]].tolist()
    assert cells.values == picker.pick("scores", np.array([3, 1]), ("c", "a")).values
    others = [picker.pick("scores", np.array([1, 3]), ("c", "a")), picker.pick("scores", np.array([3, 1]), ("a", "c"))]
    assert len({cells.values, *(each.values for each in others)}) == 3


def test_a_row_is_readable_once_every_wanted_cell_has_a_value(album):
    run(album.workspace(limit=4))
    scores = plan_of(album.workspace())["scores"]
    assert scores.readable(np.array([5, 0, 3, 4, 9])).tolist() == [False, True, True, False, False]
