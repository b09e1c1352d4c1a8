"""Workers and nodes that die in the middle of a run: every wanted cell is filled all the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workers.test_worker import lines
from tests.workers.toys import Album, Colour, Map, album
from workers.ray_executor import RayExecutor
from workers.task import TaskReport


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with RayExecutor(2) as session:
        yield session


def filled(made: Album, colour: Colour) -> bool:
    values = made.read(colour)
    return np.array_equal(np.stack([values[column] for column in colour.columns], axis=1), made.colours)


def test_a_killed_worker_is_replaced_and_its_tasks_are_run_again(executor: RayExecutor, tmp_path: Path) -> None:
    made = album(tmp_path, 40)
    colour = Colour(kills_once=str(tmp_path / "killed"), log=str(tmp_path / "log"))
    reports: list[TaskReport] = []
    executor.execute(made.tasks(made.part(colour)), report=reports.append, stop=threading.Event())
    assert (tmp_path / "killed").exists()
    assert len({line["pid"] for line in lines(tmp_path / "log")}) >= 3
    assert filled(made, colour)
    assert made.failures(colour) == {}
    assert sum(report.rows for report in reports) == 40


def test_a_row_that_always_kills_its_worker_fails_alone_after_three_tries(
    executor: RayExecutor, tmp_path: Path
) -> None:
    made = album(tmp_path, 20)
    culprit, log = 13, tmp_path / "log"
    colour, maps = Colour(), Map(kills=(made.digest(culprit),), log=str(log))
    reports: list[TaskReport] = []
    tasks = made.tasks(made.part(colour), made.part(maps))
    executor.execute(tasks, report=reports.append, stop=threading.Event())
    assert made.failures(maps) == {(culprit, column): "killed its worker 3 times alone" for column in range(2)}
    assert not made.empty(maps).any()
    assert filled(made, colour)  # the pass was split by table too: only the table that kills has the failure
    assert made.failures(colour) == {}
    attempts = [line for line in lines(log) if line["count"] == 1 and made.digest(culprit) in line["rows"]]
    assert len(attempts) == 4  # once in the pass of two tables, then three times alone
    assert sum(int(report.bad.sum()) for report in reports) == 1


@pytest.mark.slow
def test_a_node_killed_mid_run_costs_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes with scratch folders of their own and one cache; one of them is gone after the first report."""
