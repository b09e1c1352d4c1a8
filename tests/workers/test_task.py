"""Tasks split without losing a cell; the failure limit lets small folders through and stops broken sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.workers.executors.ray_actor import pack, unpack
from hoi_distill.workers.task import FailureLimit, Task, TaskReport, Workload
from tests.fixtures.toy_album import Colour, Double, Map, album


def report(bad: list[bool]) -> TaskReport:
    return TaskReport("t", len(bad), {}, {}, ("x.png: torn",) if any(bad) else (), (), np.array(bad), 0.0, 0)


def test_halves_cover_every_needed_cell_once_with_its_input_digest(tmp_path: Path) -> None:
    made = album(tmp_path, 5)
    digests = np.arange(15, dtype=np.uint64).reshape(5, 3)
    task = made.tasks(made.part(Colour(), inputs=digests), made.part(Map()), size=5)[0]
    left, right = task.halves()
    assert np.array_equal(np.concatenate([left.row_ids, right.row_ids]), task.row_ids)
    assert np.array_equal(np.concatenate([left.tables[0].cells.inputs, right.tables[0].cells.inputs]), digests)
    assert [len(left.uris), len(right.uris)] == [len(left.row_ids), len(right.row_ids)] == [2, 3]
    single = left.halves()[0]
    assert [[table.name for table in half.tables] for half in single.halves()] == [["colour"], ["map"]]
    assert single.halves()[0].halves() == ()


def test_one_pass_has_one_source_and_batch_size(tmp_path: Path) -> None:
    made = album(tmp_path, 2)
    for other in (Double(), Map(batch_size=8)):
        with pytest.raises(ValueError, match="differ in source, decoding or batch size"):
            made.tasks(made.part(Colour()), made.part(other))


@pytest.mark.parametrize(
    ("bad", "stops"),
    [
        ([True] * 9 + [False] * 40, False),  # a small folder with several bad pictures
        (([True] + [False] * 10) * 8, False),  # fewer than 100 rows, fewer than 10 failures
        (([True] + [False] * 9) * 10, True),  # 10 of 100
        (([False] * 99 + [True]) * 30, False),  # 1 % exactly
        (([False] * 97 + [True]) * 30, True),  # a little more
        ([False] * 10_000 + [True] * 49 + [False], False),
        ([False] * 10_000 + [True] * 50, True),
    ],
)
def test_more_than_one_percent_or_fifty_in_a_row_stop_the_run(bad: list[bool], stops: bool) -> None:
    for size in (7, 64, len(bad)):  # however the rows are cut into tasks
        limit = FailureLimit()
        errors = [limit.add(report(bad[start : start + size])) for start in range(0, len(bad), size)]
        assert any(errors) == stops
        for error in filter(None, errors):
            assert "x.png: torn" in str(error)
            assert "\n" not in str(error)


def test_importing_the_task_module_is_light() -> None:
    script = (
        "import sys, hoi_distill.workers.task, hoi_distill.workers.executors.ray;"
        "print([name for name in ('torch', 'ray', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_workload_makes_a_task_when_its_turn_comes(tmp_path: Path) -> None:
    made = album(tmp_path, 6)
    tasks = made.tasks(made.part(Colour()), size=2)
    begun = []

    def make() -> Iterator[Task]:
        for task in tasks:
            begun.append(task.task_id)
            yield task

    workload = Workload(Workload.of(tasks).targets, make)
    assert [target.name for target in workload.targets] == ["colour"]
    first = next(iter(workload))
    assert (first, begun) == (tasks[0], ["task 0"])
    assert [task.task_id for task in workload] == [task.task_id for task in Workload.of(tasks)]


def test_a_parcel_holds_neither_stage_nor_column_names(tmp_path: Path) -> None:
    made = album(tmp_path, 2)
    stage = Colour()
    stage.names = [f"image {index}" for index in range(100_000)]  # type: ignore[attr-defined]
    (task,) = made.tasks(made.part(stage), made.part(Map()))
    targets = dict(enumerate(Workload.of([task]).targets))
    parcel = pack(task, targets)
    assert len(parcel) < 5_000
    again = unpack(parcel, targets)
    assert [table.target for table in again.tables] == list(targets.values())
    assert again.tables[0].cells.columns is stage.columns
    assert np.array_equal(again.row_ids, task.row_ids)
    assert (again.uris, again.keys, again.task_id) == (task.uris, task.keys, task.task_id)
