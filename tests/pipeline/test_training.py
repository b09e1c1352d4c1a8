"""Training as a stage: pictures that cannot be read are left out and counted, and no two processes train one student."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from pipeline.run import choose_executor, fill
from pipeline.setup import prepare
from pipeline.training import alone_in, train_student
from stages.data.pico.world import write_world
from storage.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The default configuration on a world of 24 + 8 pictures and two steps, and the folder of these pictures."""
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "configs/pico.yaml").read_text())
    world = tmp_path / "world"
    config.update(cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"))
    config["dataset"].update(root=str(world), train=24, test=8)
    config["student"].update(labelled=12, steps=2)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    write_world(world, seed=0, train=24, test=8)
    return path, world


@pytest.mark.slow
def test_unreadable_pictures_are_left_out_and_counted(tiny):
    path, world = tiny
    for name in ("train2015/HICO_train2015_00000001.jpg", "test2015/HICO_test2015_00000003.jpg"):
        picture = world / "images" / name
        picture.write_bytes(picture.read_bytes()[:-400])

    setup = prepare(path)
    with choose_executor("inline", "cpu", 1) as execute:
        summary = fill(setup, execute, threading.Event())
    assert summary.failures["features"] == 4  # two pictures, two views
    run = train_student(setup)
    record = json.loads((run / "student.json").read_text())
    assert record["pictures"] == {"labelled": 11, "unlabelled": 12, "test": 8}
    report = (run / "report.html").read_text()
    assert "1 × detections: broken picture" in report
    assert "HICO_test2015_00000003.jpg" not in report


@pytest.mark.slow
def test_a_second_training_waits_for_the_first_and_finds_it_done(tiny, capsys):
    setup = prepare(tiny[0])
    with choose_executor("inline", "cpu", 1) as execute:
        fill(setup, execute, threading.Event())
    runs = []
    both = [threading.Thread(target=lambda: runs.append(train_student(setup))) for _ in range(2)]
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
def test_latest_is_what_was_asked_for_last_but_no_trial(tiny):
    """Also where nothing had to be done: predictions are made with what ``latest`` names."""
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(tiny[0]), execute, threading.Event())
    first = train_student(prepare(tiny[0]))
    other = train_student(prepare(tiny[0], ["student.seed=1"]))
    latest = first.parent / "latest"
    assert latest.resolve() == other.resolve()
    assert train_student(prepare(tiny[0])) == first
    assert latest.resolve() == first.resolve()
    assert train_student(prepare(tiny[0], limit=20)) != first
    assert latest.resolve() == first.resolve()


@pytest.mark.slow
def test_a_training_that_diverges_ends_in_one_line(tiny, tmp_path):
    path, _ = tiny
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(path), execute, threading.Event())
    command = [sys.executable, "-m", "pipeline.cli", "train", str(path), "--set", "student.learning_rate=1.0e+30"]
    ended = subprocess.run(
        [*command, "--set", "student.steps=5"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("hoi-distill:")]
    assert "not finite" in line or "gradient norm" in line
    assert len(line) < 1500
    assert "Traceback" not in ended.stderr
