"""``train --fill``, which ``make train-student`` calls: one command for the cache and the student."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.processes import of_a_launcher


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hoi_distill", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_it_fills_what_is_empty_then_trains_and_a_second_call_finds_nothing_to_do(pico_run):
    config = str(pico_run[0])
    inline = ("--set", "workers.executor=inline")
    assert called("train", config, *inline).returncode == 2  # without --fill a training never asks a teacher
    first = called("train", config, "--fill", *inline)
    assert first.returncode == 0, first.stderr
    assert "Report: " in first.stdout
    again = called("train", config, "--fill", *inline)
    assert again.returncode == 0
    assert again.stdout.count("Nothing to do: ") == 2
    assert called("run", config, *inline).stdout.count("Nothing to do: ") == 1


@pytest.mark.slow
def test_of_a_launchers_processes_the_main_one_fills_and_the_others_wait(pico_run):
    command = ["train", str(pico_run[0]), "--fill", "--set", "workers.executor=inline"]
    codes, said = zip(*of_a_launcher([sys.executable, "-m", "hoi_distill", *command]), strict=True)
    assert codes == (0, 0), said
    assert ["Computed cells: " in each for each in said] == [True, False]
    assert ["Report: " in each for each in said] == [True, False]


def test_a_run_that_fails_ends_the_command_with_its_code(pico_run):
    wrong = ("--set", "workers.executor=inline", "--set", f"cache={pico_run[0]}")
    assert called("train", str(pico_run[0]), "--fill", *wrong).returncode == 1  # as of a cache that cannot be written
