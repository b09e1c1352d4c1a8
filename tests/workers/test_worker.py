"""What a worker does with a task, in this process and with the real storage."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hoi_distill.stages.stage import Batch
from hoi_distill.storage.errors import InputFailure, StorageError, UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.workers.executors import inline
from hoi_distill.workers.loading import prefetch
from hoi_distill.workers.pulse import Beat
from hoi_distill.workers.task import TaskReport
from hoi_distill.workers.upstream import UpstreamColumn
from hoi_distill.workers.worker import Worker
from tests.fixtures.toy_album import (
    Album,
    Colour,
    Double,
    Encoded,
    Large,
    Length,
    Map,
    album,
    lines,
    replaced,
    run,
    text_task,
)


@pytest.fixture
def made(tmp_path: Path) -> Album:
    return album(tmp_path)


def test_every_row_of_tasks_larger_than_a_batch_reads_back(made: Album) -> None:
    colour, maps = Colour(), Map()
    reports = run(made.tasks(made.part(colour), made.part(maps), size=9))
    assert sum(report.row_count for report in reports) == 20
    assert sum(report.cells["colour"] for report in reports) == 60
    read = made.read(colour)
    assert np.array_equal(np.stack([read[c] for c in ("red", "green", "blue")], axis=1), made.colours)
    tensors = made.read(maps)
    assert np.allclose(tensors["original"][:, :, 1, 1], made.colours / 255, atol=1e-3)
    assert np.array_equal(tensors["flip"], -tensors["original"])


def test_parts_of_a_pass_share_one_look_at_each_image(made: Album) -> None:
    Encoded.passes.clear()
    run(made.tasks(made.part(Colour()), made.part(Map()), size=20))
    assert Encoded.passes == [4] * 5


@pytest.mark.parametrize("seed", range(3))
def test_parts_that_lack_different_rows_each_keep_their_own_values(made: Album, seed: int) -> None:
    """First some scattered cells of two tables, then the rest: every cell is that of its own image."""
    colour, maps = Colour(), Map()
    draw = np.random.default_rng(seed)
    some_colours, some_maps = draw.random((20, 3)) < 0.4, draw.random((20, 2)) < 0.4
    assert len(np.unique(np.concatenate([some_colours, some_maps], axis=1), axis=0)) > 9
    run(made.tasks(made.part(colour, some_colours), made.part(maps, some_maps), size=20))
    run(made.tasks(made.part(colour, ~some_colours), made.part(maps, ~some_maps), size=20))
    read = made.read(colour)
    assert np.array_equal(np.stack([read[c] for c in ("red", "green", "blue")], axis=1), made.colours)
    tensors = made.read(maps)
    assert np.allclose(tensors["original"][:, :, 1, 1], made.colours / 255, atol=1e-3)
    assert np.array_equal(tensors["flip"], -tensors["original"])


def test_batches_have_one_shape_whatever_is_empty(made: Album, tmp_path: Path) -> None:
    log = tmp_path / "log"
    colour = Colour(log=str(log))
    needed = np.zeros((20, 3), dtype=bool)
    needed[[1, 5, 6, 7, 19], 0] = True
    run(made.tasks(made.part(colour, needed), size=20))
    assert [(len(line["rows"]), line["count"], line["columns"]) for line in lines(log)] == [
        (4, 4, ["red"]),
        (4, 1, ["red"]),
    ]
    assert lines(log)[1]["rows"] == [made.digest(19)] * 4
    assert np.array_equal(made.empty(colour), ~needed)


def test_rows_that_lack_the_same_cells_are_computed_together(made: Album, tmp_path: Path) -> None:
    log = tmp_path / "log"
    colour = Colour(log=str(log))
    needed = np.zeros((20, 3), dtype=bool)
    needed[::2, 0] = needed[1::2, 1] = True
    run(made.tasks(made.part(colour, needed), size=20))
    assert sum(len(line["columns"]) for line in lines(log)) == 6  # 5 batches, one of them mixed
    assert np.array_equal(made.empty(colour), ~needed)


def test_unreadable_images_become_failure_cells_and_the_rest_is_filled(made: Album) -> None:
    replaced(made, 3, b"not a picture")
    replaced(made, 17, b"")
    colour, maps = Colour(), Map()
    reports = run(made.tasks(made.part(colour), made.part(maps)))
    assert not made.empty(colour).any()
    assert not made.empty(maps).any()
    failures = made.failures(colour)
    assert set(failures) == {(row, column) for row in (3, 17) for column in range(3)}
    assert all(reason and "\n" not in reason for reason in failures.values())
    assert set(made.failures(maps)) == {(row, column) for row in (3, 17) for column in range(2)}
    assert sum(report.failures["colour"] for report in reports) == 6
    assert sum(int(report.bad.sum()) for report in reports) == 2
    assert [reason.split(":")[0] for report in reports for reason in report.reasons] == [made.uris[3], made.uris[17]]


def test_a_image_that_a_stage_refuses_is_found_by_bisection(made: Album) -> None:
    colour, maps = Colour(fails=(made.digest(6), made.digest(10))), Map()
    run(made.tasks(made.part(colour), made.part(maps)))
    assert made.failures(colour) == {
        (row, column): "the toy cannot look at this" for row in (6, 10) for column in range(3)
    }
    assert not made.failures(maps)
    assert not made.empty(maps).any()
    assert not made.empty(colour).any()


def test_a_file_that_changed_or_went_leaves_its_cells_empty_and_is_named(made: Album) -> None:
    Path(made.uris[2]).write_bytes(Path(made.uris[3]).read_bytes())
    Path(made.uris[9]).unlink()
    colour = Colour()
    reports = run(made.tasks(made.part(colour)))
    assert [uri for report in reports for uri in report.changed] == [made.uris[2], made.uris[9]]
    assert np.flatnonzero(made.empty(colour).any(axis=1)).tolist() == [2, 9]
    assert not made.failures(colour)


def test_a_stage_downstream_reads_the_cells_it_needs_and_inherits_their_failures(made: Album) -> None:
    colour, double = Colour(fails=(made.digest(5),)), Double()
    needed = np.ones((20, 3), dtype=bool)
    needed[12:, 1:] = False  # rows 12.. have only "red"
    run(made.tasks(made.part(colour, needed)))
    below = np.ones((20, 2), dtype=bool)
    below[12:, 1] = False
    part = made.part(double, below, above=colour)
    reports = run(made.tasks(part))
    assert made.failures(double) == {(5, c): "upstream colour: the toy cannot look at this" for c in range(2)}
    assert not any(report.bad.any() for report in reports)
    assert np.array_equal(made.empty(double), ~below)
    good = np.delete(np.arange(20), 5)
    table = made.spec(double).open()
    assert np.array_equal(
        table.read(CellSelection(made.rows[good], ("twice red",)))["twice red"], 2 * made.colours[good, 0]
    )
    full = good[good < 12]
    assert np.array_equal(table.read(CellSelection(made.rows[full], ("sum",)))["sum"], made.colours[full].sum(axis=1))


def test_a_task_of_nothing_but_failed_rows_hands_their_failures_on(made: Album) -> None:
    colour, double = Colour(fails=tuple(made.digest(index) for index in range(20))), Double()
    run(made.tasks(made.part(colour)))
    reports = run(made.tasks(made.part(double, above=colour)))
    assert not made.empty(double).any()
    assert len(made.failures(double)) == 40
    assert len(reports) == 3


def test_texts_are_rows_like_any_other(tmp_path: Path) -> None:
    texts = ["a", "a person", "", "ähm", "no interaction"]
    task = text_task(Length(), tmp_path, texts)
    run([task])
    values = task.tables[0].target.table.open().read(CellSelection(task.row_ids, ("value",)))["value"]
    assert values.to_pylist() == [len(text) for text in texts]


def test_errors_that_are_not_an_inputs_fault_leave_cells_empty(made: Album) -> None:
    good, bad = Colour(), Colour(version=2, raises="no memory left")
    first, second, _ = made.tasks(made.part(good))
    broken = made.tasks(made.part(bad))[1]
    with pytest.raises(MemoryError, match="no memory left"):
        run([first, broken, second])
    assert np.array_equal(~made.empty(good).any(axis=1), np.arange(20) < 8)
    assert not made.failures(good)


def test_a_stage_that_leaves_a_column_out_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Length, "compute", lambda *_: {"length": pa.array([1] * 4, pa.int32())})
    with pytest.raises(RuntimeError, match="length, column 'value': compute returned only length"):
        run([text_task(Length(), tmp_path, ["a"])])


def test_too_many_failures_stop_the_run_with_one_line(tmp_path: Path) -> None:
    made = album(tmp_path, 60)
    for index in range(55):
        replaced(made, index, f"garbage {index}".encode())
    colour = Colour()
    with pytest.raises(UserError, match="rows in a row failed") as error:
        run(made.tasks(made.part(colour), size=10))
    assert "\n" not in str(error.value)


class Stopping(Colour):
    """Sets the stop while it computes a batch."""

    def __init__(self, stop: threading.Event, at: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.stop, self.at, self.calls = stop, at, 0

    def compute(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.stop.set()
        return super().compute(*arguments)


def test_a_stop_ends_a_task_after_its_batch_and_commits_what_is_computed(made: Album) -> None:
    stop = threading.Event()
    colour = Stopping(stop, at=2)
    (report,) = run(made.tasks(made.part(colour), size=20), stop)
    assert (report.row_count, report.cells) == (8, {"colour": 24})
    assert np.array_equal(~made.empty(colour).any(axis=1), np.arange(20) < 8)


def test_a_stop_between_two_tables_of_a_batch_keeps_the_first_ones_cells(made: Album) -> None:
    stop = threading.Event()
    colour, maps = Stopping(stop), Map()
    run(made.tasks(made.part(colour), made.part(maps), size=20), stop)
    assert np.array_equal(~made.empty(colour).any(axis=1), np.arange(20) < 4)
    assert made.empty(maps).all()


def test_a_stop_before_the_first_batch_commits_nothing(made: Album) -> None:
    stop = threading.Event()

    class Slow(Colour):
        def open(self, *arguments: Any) -> None:
            stop.set()

    colour = Slow()
    assert run(made.tasks(made.part(colour), size=20), stop) == []
    assert made.empty(colour).all()


def test_a_stopped_task_records_its_failures_and_changed_files_up_to_there(made: Album) -> None:
    replaced(made, 1, b"not a picture")
    replaced(made, 9, b"not a picture either")
    Path(made.uris[2]).unlink()
    stop = threading.Event()
    colour = Stopping(stop, at=1)
    (report,) = run(made.tasks(made.part(colour), size=20), stop)
    assert (report.row_count, int(report.bad.sum()), report.changed) == (4, 2, (made.uris[2],))
    assert set(made.failures(colour)) == {(1, column) for column in range(3)}
    assert np.flatnonzero(~made.empty(colour).any(axis=1)).tolist() == [0, 1, 3]


def test_a_stopped_task_goes_on_with_the_rest_in_the_same_batches(made: Album, tmp_path: Path) -> None:
    """Every cell is computed once, and each forward is the one that an undisturbed run would have made."""
    log, stop = tmp_path / "log", threading.Event()
    colour, maps = Stopping(stop, at=3, log=str(log)), Map(log=str(log))
    run(made.tasks(made.part(colour), made.part(maps), size=20), stop)
    lacking = made.empty(colour), made.empty(maps)
    assert [int(mask.any(axis=1).sum()) for mask in lacking] == [8, 12]
    run(made.tasks(made.part(colour, lacking[0]), made.part(maps, lacking[1]), size=20))
    batches = [(line["stage"], tuple(line["rows"]), line["count"]) for line in lines(log)]
    whole = [(tuple(made.digest(row) for row in range(start, start + 4)), 4) for start in range(0, 20, 4)]
    assert sorted(batches) == sorted((stage, *batch) for stage in ("colour", "map") for batch in whole)
    assert np.array_equal(np.stack(list(made.read(colour).values()), axis=1), made.colours)
    assert np.allclose(made.read(maps)["original"][:, :, 1, 1], made.colours / 255, atol=1e-3)


def test_what_is_computed_before_an_endless_batch_is_saved_and_no_cell_is_written_twice(made: Album) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Endless(Stopping):
        def compute(self, *arguments: Any) -> Any:
            answers = super().compute(*arguments)
            if self.calls == self.at:
                begun.set()
                assert go_on.wait(60)
            return answers

    replaced(made, 1, b"not a picture")
    worker, colour, maps = Worker(), Endless(threading.Event(), at=3), Map()
    (task,) = made.tasks(made.part(colour), made.part(maps), size=20)
    reports: list[TaskReport | None] = []
    running = threading.Thread(target=lambda: reports.append(worker.run(task)))
    running.start()
    assert begun.wait(60)
    worker.save()
    worker.save()  # nothing new: no second record
    for stage in (colour, maps):
        assert np.flatnonzero(~made.empty(stage).any(axis=1)).tolist() == [0, 2, 3, 4, 5, 6, 7]
    go_on.set()
    running.join()
    (report,) = reports
    assert report is not None
    assert report.cells == {"colour": 57, "map": 38}
    assert report.failures == {"colour": 3, "map": 2}
    for stage in (colour, maps):
        assert not made.empty(stage).any()
        records = [record.header["cells"] for record in made.spec(stage).open().records()]
        assert len(records) == 2
        assert sum(records) == 19 * len(stage.columns)
    assert np.array_equal(
        np.delete(np.stack(list(made.read(colour).values()), axis=1), 1, 0), np.delete(made.colours, 1, 0)
    )
    worker.save()
    worker.close()


def test_nothing_of_a_task_that_raised_is_saved(made: Album) -> None:
    class Broken(Stopping):
        def compute(self, *arguments: Any) -> Any:
            answers = super().compute(*arguments)
            if self.calls == self.at:
                raise MemoryError("no more")
            return answers

    worker, colour = Worker(), Broken(threading.Event(), at=3)
    (task,) = made.tasks(made.part(colour), size=20)
    with pytest.raises(MemoryError):
        worker.run(task)
    worker.save()
    worker.close()
    assert made.empty(colour).all()


def test_a_save_that_fails_is_one_line(
    made: Album, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop, tried = threading.Event(), threading.Event()

    class Slow(Stopping):
        def compute(self, *arguments: Any) -> Any:
            answers = super().compute(*arguments)
            assert tried.wait(60)
            return answers

    def refused(worker: Worker) -> None:
        tried.set()
        raise StorageError("the disk is full")

    monkeypatch.setattr(inline, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Worker, "save", refused)
    run(made.tasks(made.part(Slow(stop)), size=20), stop)
    assert caplog.messages == ["what is computed so far could not be saved: the disk is full"]


def test_every_step_of_a_task_is_told(made: Album) -> None:
    told: list[tuple[object, ...]] = []
    beats: list[Beat] = []

    def beat(under_way: Sequence[Beat]) -> None:
        told.extend((each.doing, each.batches, dict(each.cells)) for each in under_way)
        beats.extend(under_way)

    inline.execute(
        made.tasks(made.part(Colour()), size=20)[:1], report=lambda _: None, stop=threading.Event(), beat=beat
    )
    none = {"colour": 0}
    assert told[:3] == [("reading", 0, none), ("loading", 0, none), ("computing", 0, none)]
    assert [batches for doing, batches, cells in told if doing == "computing" and cells["colour"] == 12 * batches]
    assert told[-2:] == [("writing", 5, {"colour": 60}), ("written", 5, {"colour": 60})]
    assert {each.of for each in beats if each.doing != "reading"} == {5}
    assert beats[3].pace is None
    assert beats[-3].pace is not None


def test_cells_that_are_counted_stay_counted_until_they_are_reported(made: Album) -> None:
    counted, reported = [0], [0]

    def report(done: TaskReport) -> None:
        reported.append(reported[-1] + done.cells["colour"])

    def beat(under_way: Sequence[Beat]) -> None:
        if threading.current_thread() is threading.main_thread():
            counted.append(reported[-1] + sum(each.cells["colour"] for each in under_way))

    tasks = made.tasks(made.part(Colour(seconds=0.1)), size=8)
    inline.execute(tasks, report=report, stop=threading.Event(), beat=beat)
    assert reported[-1] == 60
    assert counted == sorted(counted)


def test_running_a_task_again_changes_nothing(made: Album) -> None:
    colour = Colour()
    tasks = made.tasks(made.part(colour))
    run(tasks)
    before = made.read(colour)
    run(tasks)
    after = made.read(colour)
    assert all(np.array_equal(before[column], after[column]) for column in before)


def test_a_stage_opens_once_for_many_tasks_and_another_pass_evicts_it(made: Album) -> None:
    first, other = Colour(), Map()
    other.vision_key = "another tower"
    worker = Worker()
    for task in made.tasks(made.part(first)):
        worker.run(task)
    assert first.opened == 1
    worker.run(made.tasks(made.part(other))[0])
    worker.run(made.tasks(made.part(first))[0])
    assert first.opened == 2
    worker.close()


class Preparing(Colour):
    """Says which thread prepared each image, and refuses images that are redder than ``most``."""

    def __init__(self, most: float = 256, **options: Any) -> None:
        super().__init__(**options)
        self.most = most
        self.threads: list[str] = []

    def prepare(self, image: Image.Image) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        mean = np.asarray(image, np.float32).mean(axis=(0, 1))
        if mean[0] > self.most:
            raise InputFailure("too red")
        return mean

    def compute(self, batch: Batch, columns: Sequence[str], inputs: Any) -> dict[str, Any]:
        means = np.stack(self.prepared(batch))
        return {column: pa.array(means[:, self.columns.index(column)], pa.float32()) for column in columns}


def test_images_of_an_open_pass_are_prepared_by_the_readers(made: Album) -> None:
    worker, stage = Worker(readers=2), Preparing()
    first, *others = made.tasks(made.part(stage))
    worker.run(first)
    stage.threads.clear()
    for task in others:
        worker.run(task)
    worker.close()
    assert len(stage.threads) == 12
    assert all(name.startswith("read") for name in stage.threads)
    read = made.read(stage)
    assert np.array_equal(np.stack([read[c] for c in ("red", "green", "blue")], axis=1), made.colours)


def test_an_image_that_cannot_be_prepared_fails_alone_whoever_prepares_it(made: Album) -> None:
    stage = Preparing(most=sorted(made.colours[:, 0])[-5])
    worker = Worker(readers=2)
    for task in made.tasks(made.part(stage)):
        worker.run(task)
    worker.close()
    refused = np.flatnonzero(made.colours[:, 0] > stage.most)
    assert {index // 8 for index in refused.tolist()} > {0}
    assert made.failures(stage) == {(row, column): "too red" for row in refused.tolist() for column in range(3)}
    assert not made.empty(stage).any()


def test_prefetch_keeps_order_and_never_runs_ahead_of_its_depth() -> None:
    from concurrent.futures import ThreadPoolExecutor

    begun: list[int] = []

    def load(item: int) -> int:
        begun.append(item)
        return item

    with ThreadPoolExecutor(4) as pool:
        for taken, item in enumerate(prefetch(pool, load, range(50), depth=6)):
            assert item == taken
            assert len(begun) <= taken + 7


def test_an_io_error_is_no_input_failure(made: Album) -> None:
    made.uris[13] = "/proc/self/mem"  # reading it is a real EIO
    colour = Colour()
    with pytest.raises(OSError, match="Input/output error"):
        run(made.tasks(made.part(colour)))
    assert np.array_equal(~made.empty(colour).any(axis=1), np.arange(20) < 8)
    assert not made.failures(colour)


def test_a_row_that_reads_no_upstream_cell_gets_zeros_or_null() -> None:
    slot = np.array([1, -1, 0])
    tensors = UpstreamColumn(np.array([[5.0], [7.0]]), slot).take(np.array([0, 1, 2, 2]))
    assert tensors[:, 0].tolist() == [7, 0, 5, 5]
    assert UpstreamColumn(pa.array([5, 7]), slot).take(np.array([0, 1, 2])).to_pylist() == [7, None, 5]


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    worker, stage, anonymous = Worker(), Large(), []
    for number in range(60):  # 2 MiB of cells each
        worker.run(text_task(stage, tmp_path, [f"text {number} {row}" for row in range(16)]))
        status = Path("/proc/self/status").read_text()
        anonymous.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)
    worker.close()
    assert anonymous[-1] - anonymous[19] < 24, anonymous[::10]
