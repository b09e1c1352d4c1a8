"""Training as a stage: pictures that cannot be read are left out and counted, and no two processes train one student."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.train import alone_in, announce, train_student
from hoi_distill.pipeline.training.fit import on_disk
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import StorageError, UserError
from tests.fixtures.pico_run import small_pico

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_unreadable_pictures_are_left_out_and_counted(pico_run):
    path, world = pico_run
    for name in ("train2015/HICO_train2015_00000001.jpg", "test2015/HICO_test2015_00000003.jpg"):
        picture = world / "images" / name
        picture.write_bytes(picture.read_bytes()[:-400])

    workspace = prepare(path)
    with choose_executor("inline", "cpu", 1) as execute:
        summary = fill(workspace, execute, threading.Event())
    assert summary.failures["features"] == 4  # two pictures, two views
    run = train_student(workspace)
    record = json.loads((run / "student.json").read_text())
    assert record["pictures"] == {"labelled": 11, "unlabelled": 12, "test": 8}
    report = (run / "report.html").read_text()
    assert "1 × detections: broken picture" in report
    assert "HICO_test2015_00000003.jpg" not in report


@pytest.mark.slow
def test_a_second_training_waits_for_the_first_and_finds_it_done(pico_run, capsys):
    workspace = prepare(pico_run[0])
    with choose_executor("inline", "cpu", 1) as execute:
        fill(workspace, execute, threading.Event())
    runs = []
    both = [threading.Thread(target=lambda: runs.append(train_student(workspace))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    said = capsys.readouterr().out
    assert runs[0] == runs[1]
    for words in ("Training pico", "Another process trains this student in", "Nothing to do"):
        assert said.count(words) == 1, said


def test_the_processes_of_a_launcher_hold_one_lock_and_refuse_instead_of_waiting(tmp_path, monkeypatch):
    with alone_in(tmp_path, threading.Event()):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with (
            pytest.raises(UserError, match="another process trains this student"),
            alone_in(tmp_path, threading.Event()),
        ):
            pass
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path, threading.Event()):
            pass


def test_a_training_that_waits_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    with alone_in(tmp_path, threading.Event()), pytest.raises(KeyboardInterrupt), alone_in(tmp_path, stop):
        pass


@pytest.mark.slow
def test_latest_is_what_was_asked_for_last_but_no_trial(pico_run):
    """Also where nothing had to be done: predictions are made with what ``latest`` names."""
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(pico_run[0]), execute, threading.Event())
    first = train_student(prepare(pico_run[0]))
    other = train_student(prepare(pico_run[0], ["student.seed=1"]))
    latest = first.parent / "latest"
    assert latest.resolve() == other.resolve()
    assert train_student(prepare(pico_run[0])) == first
    assert latest.resolve() == first.resolve()
    assert train_student(prepare(pico_run[0], limit=20)) != first
    assert latest.resolve() == first.resolve()


@pytest.mark.slow
def test_a_training_that_diverges_ends_in_one_line(pico_run, tmp_path):
    path, _ = pico_run
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(path), execute, threading.Event())
    command = [sys.executable, "-m", "hoi_distill", "train", str(path), "--set", "student.learning_rate=1.0e+30"]
    ended = subprocess.run(
        [*command, "--set", "student.steps=5"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("hoi-distill:")]
    assert "not finite" in line or "gradient norm" in line
    assert len(line) < 1500
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training of two steps, its configuration, and a copy of its run to come back to."""
    root = tmp_path_factory.mktemp("trained")
    path, _ = small_pico(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with choose_executor("inline", "cpu", 1) as execute:
            fill(prepare(path), execute, threading.Event())
        run = train_student(prepare(path))
    shutil.copytree(run, root / "whole")
    return path, run, root / "whole"


DAMAGED = [
    ("done.json", b'{"fingerprint": "', "Trained in"),
    ("done.json", b"[]", "Trained in"),
    ("done.json", b"\xff\xfe", "Trained in"),
    ("done.json", b'{"fingerprint": "other"}', "Trained in"),
    ("student.json", b"", "student.json: not there or damaged"),
    ("evaluated.json", b"{", "Trained already"),
    ("evaluation.json", b"{", "Trained already"),
    ("metrics.jsonl", b'{"step": 1\n\xff', "Nothing to do"),
    ("checkpoint/config.json", b"{", "config.json: not there or damaged"),
    ("checkpoint/model.safetensors", None, "model.safetensors: missing from the checkpoint"),
    ("checkpoint/model.safetensors", b"cut", "model.safetensors: damaged"),
    ("checkpoint/vocabulary.json", b"{}", "vocabulary.json: not as it was saved"),
    ("detections.parquet", b"PAR1", "Nothing to do"),
]


@pytest.mark.slow
def test_what_a_run_has_left_may_be_damaged_and_the_next_call_makes_it_good(trained, monkeypatch, capsys):
    """The weights are those of before: where the state is whole, no step is learnt again."""
    monkeypatch.chdir(ROOT)
    path, run, whole = trained
    for name, data, said in DAMAGED:
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        (run / name).unlink() if data is None else (run / name).write_bytes(data)
        assert train_student(prepare(path)) == run
        assert said in capsys.readouterr().out, name
        assert train_student(prepare(path)) == run
        assert "Nothing to do" in capsys.readouterr().out, name
        weights = "checkpoint/model.safetensors"
        assert (run / weights).read_bytes() == (whole / weights).read_bytes()
        for record in ("done.json", "evaluated.json", "evaluation.json", "student.json", "checkpoint/config.json"):
            json.loads((run / record).read_text())


@pytest.mark.slow
def test_a_log_that_is_not_there_or_damaged_costs_the_report_its_curves_alone(trained, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path, run, _ = trained
    for data in (None, b"\xff{"):
        (run / "metrics.jsonl").unlink(missing_ok=True)
        if data is not None:
            (run / "metrics.jsonl").write_bytes(data)
        (run / "report.html").unlink()
        train_student(prepare(path))
        assert "Trained already" in capsys.readouterr().out
        assert (run / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_disk_without_room_is_one_line_that_says_where_and_what_helps(trained):
    """A limit on files stands for the disk."""
    path, run, _ = trained
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"sys.argv = ['hoi-distill', 'train', {str(path)!r}, '--set', 'student.seed=5']\n"
        "from hoi_distill.pipeline.cli import main\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert ended.returncode == 1, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("hoi-distill:")]
    assert "File too large; raise the file size limit and start again" in line
    assert "Traceback" not in ended.stderr
    assert (run / "done.json").exists()


def test_only_errors_of_the_disk_are_told_as_such(tmp_path):
    with pytest.raises(StorageError, match=r"x\.npy: No space left on device; free some space and start again"), \
            on_disk(tmp_path):  # fmt: skip
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npy")
    with pytest.raises(OSError, match="Too many links"), on_disk(tmp_path):
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))


def test_a_folder_named_latest_ends_no_training(tmp_path, capsys):
    (tmp_path / "latest" / "kept").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    announce(tmp_path / "run", trial=False)
    assert "latest: not made" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "run"]
