"""The command line as a user meets it: exit codes, one line for an error, JSON for machines, and a help that is quick."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from hoi_distill.pipeline.cli import main
from hoi_distill.stages.data.pico.world import write_world
from tests.fixtures.command import ROOT, hoi_distill
from tests.fixtures.toy_stages import Album, flip_byte


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from hoi_distill.pipeline.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'scipy', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("plan", "run", "train", "evaluate", "predict", "check", "verify", "gc"):
        assert command in done.stdout
    assert "Exit codes: 0 done" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    [
        ["schema"],
        ["plan", "configs/pico_link.yaml", "--set", "pair_teachers.phase_1.labelled=8"],
        ["plan", "configs/pico_vlm_hoi.yaml"],
    ],
    ids=["schema", "plan of LINK", "plan of VLM-HOI"],
)
def test_planning_and_the_schema_import_no_torch_no_scipy_and_no_other_world(command, tmp_path):
    if command[0] == "plan":
        write_world(tmp_path / "world", seed=0, train=16, test=4)
        folders = {"dataset.root": tmp_path / "world", "cache": tmp_path / "cache", "runs": tmp_path / "runs"}
        keys = {**folders, "dataset.train": 16, "dataset.test": 4, "student.labelled": 8}
        command = [*command, *(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))]
    code = (
        "import sys; from hoi_distill.pipeline.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'ray', 'scipy', 'hoi_distill.stages.data.crowd.world'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "itm" in done.stdout or "taught" in done.stdout


def test_version_names_torch_and_the_device():
    done = hoi_distill("--version")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("hoi-distill ")
    assert f"torch {torch.__version__}, device {'cuda (' if torch.cuda.is_available() else ''}" in first
    assert "transformers " in second


@pytest.mark.parametrize(
    ("words", "number", "completed"),
    [
        ("hoi-distill pl", 1, "plan"),
        ("hoi-distill plan --reh", 2, "--rehash"),
        ("hoi-distill dataset d", 2, "describe"),
    ],
)
def test_a_shell_completes_commands_and_options(monkeypatch, words, number, completed):
    monkeypatch.setenv("_HOI_DISTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(number))
    assert hoi_distill().stdout.split() == [completed]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "hoi-distill plan: missing argument 'config'; see hoi-distill plan --help"),
        (["pln", "x"], "hoi-distill: no such command 'pln'. Did you mean 'plan'?; see hoi-distill --help"),
        (["run", "x", "--exekutor", "inline"], "hoi-distill run: no such option: --exekutor"),
        (["run", "x", "--limit", "0"], "hoi-distill run: invalid value for '--limit': "),
        (["run", "x", "--limit", "many"], "hoi-distill run: invalid value for '--limit': "),
        (["run", "x", "y"], "hoi-distill run: got unexpected extra argument"),
        (["run", "x", "--set"], "hoi-distill: option '--set' requires an argument"),
        (["dataset"], "hoi-distill dataset: missing command"),
        (["dataset", "count"], "hoi-distill dataset: no such command 'count'"),
        (["evaluate"], "hoi-distill evaluate: missing option '--annotations'"),
        (["predict", "checkpoint", "image.jpg"], "hoi-distill predict: missing"),
        (
            ["predict", "checkpoint", "--out", "o"],
            "hoi-distill: predict: missing argument: images, a video, or --webcam",
        ),
        (["\x1b[31m"], "hoi-distill: no such command '\\x1b[31m'"),
    ],
)
def test_a_wrong_call_is_one_line_in_the_voice_of_the_others(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hoi-distill", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert error.startswith(said)
    assert error.endswith(" --help\n")
    assert error.count("\n") == 1


def test_a_life(album):
    """plan, run, run again, check, damage, check, mend, gc: exit codes and what is printed."""
    cache, config = album.root / "cache", album.path
    planned = hoi_distill("plan", config, "--json")
    assert planned.returncode == 0, planned.stderr
    tables = json.loads(planned.stdout)["tables"]
    assert [(t["table"], t["empty"], t["unknown"]) for t in tables] == [("scores", 18, 0), ("signs", 0, 18)]

    done = hoi_distill("run", config)
    assert done.returncode == 0, done.stderr
    assert "Computed cells: scores 18, signs 18." in done.stdout
    again = hoi_distill("run", config)
    assert again.returncode == 0
    assert "Nothing to do: all 36 wanted cells" in again.stdout

    (shard,) = sorted((cache / "tables").glob("signs-*/shards/*"))[:1]
    flip_byte(shard)
    found = hoi_distill("check", "--cache", cache, "--json")
    assert found.returncode == 3
    assert [bad["shard"] for bad in json.loads(found.stdout)["bad"]] == [shard.name]
    mended = hoi_distill("run", config)
    assert mended.returncode == 0
    assert "cells: shard lost" in mended.stdout
    assert "scores" not in mended.stdout.partition("Computed cells:")[2]


def test_errors_are_one_line_and_exit_2(album):
    album.config["wrokers"] = {}
    done = hoi_distill("plan", album.write())
    assert done.returncode == 2
    assert done.stderr == f"hoi-distill: {album.path}: wrokers: unknown key; did you mean workers?\n"
    assert done.stdout == ""


def test_unknown_option_exits_2(album):
    assert hoi_distill("run", album.path, "--exekutor", "inline").returncode == 2


def test_unknown_executor_and_no_cache(album):
    done = hoi_distill("run", album.path, "--executor", "spark")
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (
        2,
        "hoi-distill: --executor spark: there are ray and inline",
    )
    gone = hoi_distill("check", "--cache", album.root / "nowhere")
    assert gone.returncode == 2
    assert "nowhere: no such folder" in gone.stderr
    other = hoi_distill("check", "--cache", album.folder)
    assert other.returncode == 2
    assert "pictures: not a cache" in other.stderr


def test_a_mistake_in_the_students_section_is_told_before_a_teacher_works(tmp_path, album):
    album.config["dataset"] = {"kind": "pico", "root": str(tmp_path / "world"), "train": 3, "test": 2}
    album.config["student"] = {"labeled": 2}
    for command in ("plan", "run"):
        done = hoi_distill(command, album.write())
        assert done.returncode == 2
        assert "student.labeled: unknown key; did you mean labelled?" in done.stderr
    assert not list((album.root / "cache").glob("tables/*"))


def test_twins_and_failures_are_counted_in_so_many_words(album):
    shutil.copy(album.folder / "000.png", album.folder / "twin.png")
    (album.folder / "zero.png").write_bytes(b"")
    planned = hoi_distill("plan", album.path)
    assert "1 of 8 images have the bytes of another one" in planned.stdout
    hoi_distill("run", album.path)
    again = hoi_distill("run", album.path)
    assert "Nothing to do: all 42 wanted cells" in again.stdout
    assert "6 of them are recorded failures" in again.stdout


def test_incomplete_run_exits_3(album):
    """An image that changes under the run leaves its cells empty, is named, and the exit code says so."""
    code = f"""
from tests.fixtures import toy_stages as toys
toys.register()
real = toys.Scores.open
def change(self, device, shared):
    toys.paint(toys.Path({str(album.folder / "003.png")!r}), 77)
toys.Scores.open = change
import sys
sys.argv = ["hoi-distill", "run", {str(album.path)!r}]
from hoi_distill.pipeline.cli import main
from hoi_distill.stages.data.pico.world import write_world
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "003.png: changed or gone since planning" in done.stdout
    assert hoi_distill("run", album.path).returncode == 0


@pytest.mark.parametrize("command", ["run", "plan"])
def test_limit(album, command):
    done = hoi_distill(command, album.path, "--limit", "2")
    assert done.returncode == 0
    assert " 6 " in done.stdout
    assert not list((album.root / "cache").glob("registered/*"))  # a trial run wants no tables for good


@pytest.mark.slow
def test_gc(album: Album):
    """A table that no registered setup wants is listed, kept while somebody uses it, and moved with --yes."""
    cache = album.root / "cache"
    assert hoi_distill("run", album.path).returncode == 0
    album.config["tables"]["scores"]["weights"] = "b"
    album.write()
    assert hoi_distill("run", album.path).returncode == 0
    tables = {folder.name for folder in (cache / "tables").iterdir()}
    assert len(tables) == 3

    listed = json.loads(hoi_distill("gc", "--cache", cache, "--json").stdout)
    (unwanted,) = listed["unwanted"]
    assert unwanted["table"].startswith("scores-")
    assert unwanted["trashed"] is False
    assert unwanted["bytes"] > 0
    assert {folder.name for folder in (cache / "tables").iterdir()} == tables

    from hoi_distill.storage.cache import Cache

    with Cache.open(cache).lease("reader", [unwanted["table"]]):
        kept = json.loads(hoi_distill("gc", "--cache", cache, "--yes", "--json").stdout)
        assert kept["unwanted"] == []
        assert [one["table"] for one in kept["in_use"]] == [unwanted["table"]]
    moved = hoi_distill("gc", "--cache", cache, "--yes")
    assert "moved to the trash" in moved.stdout
    assert {folder.name for folder in (cache / "tables").iterdir()} == tables - {unwanted["table"]}
    assert len(list((cache / "trash").iterdir())) == 1
    assert hoi_distill("gc", "--cache", cache, "--yes", "--grace-days", "0").returncode == 0
    assert list((cache / "trash").iterdir()) == []

    forgotten = json.loads(hoi_distill("gc", "--cache", cache, "--forget", "album", "--json").stdout)
    assert len(forgotten["unwanted"]) == 2
    assert hoi_distill("gc", "--cache", cache, "--forget", "nobody").returncode == 2


def test_verify(album):
    """Cells computed again agree; after somebody has changed what the stage computes, they are told apart."""
    assert hoi_distill("run", album.path).returncode == 0
    same = hoi_distill("verify", album.path, "scores", "--sample", "7")
    assert same.returncode == 0
    assert "7 cells computed again, agree" in same.stdout
    assert same.stderr.startswith("Computing 7 cells of ")
    assert "scores again on cpu; the model is loaded first.\n" in same.stderr
    code = f"""
from tests.fixtures import toy_stages as toys
toys.register()
real = toys.score_of
toys.score_of = lambda column: real(column) + (10 if column == "b" else 0)
import sys
sys.argv = ["hoi-distill", "verify", {str(album.path)!r}, "scores", "--sample", "18", "--json"]
from hoi_distill.pipeline.cli import main
from hoi_distill.stages.data.pico.world import write_world
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["cells"], outcome["differing"], outcome["agrees"]) == (18, 6, False)
    assert all(example.endswith(" / b") for example in outcome["examples"])
    assert hoi_distill("verify", album.path, "nothing").returncode == 2


def test_train_before_run_names_the_command(tmp_path, album):
    album.config["dataset"] = {"kind": "pico", "root": str(tmp_path / "world"), "train": 3, "test": 2}
    album.config["student"] = {"labelled": 2, "tables": {"detections": "scores", "features": "signs", "text": None}}
    album.config["student"]["itm_on"] = "none"
    done = hoi_distill("train", album.write())
    assert done.returncode == 2
    assert f"fill it with: hoi-distill run {album.path}" in done.stderr
