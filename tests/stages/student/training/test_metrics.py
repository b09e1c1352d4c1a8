"""How far a training is: speeds that can be read, a first line at once, a log that damage does not stop."""

from __future__ import annotations

import json

import pytest
import torch

from hoi_distill.stages.evaluate.metrics_log import read_metrics
from hoi_distill.stages.student.training.metrics import MetricsLog, StepProgress, speed


@pytest.mark.parametrize(
    ("done", "left", "seconds", "said"),
    [
        (100, 400, 10.0, "10/s  40 s left"),
        (1, 1000, 4.0, "4.0 s/step  66 min 40 s left"),
        (10, 47030, 90.0, "9.0 s/step  117 h 34 min left"),
        (5, 0, 0.0, "/s  0 s left"),
    ],
)
def test_slow_steps_are_told_in_seconds_and_long_times_in_hours(done, left, seconds, said):
    assert speed(done, left, seconds).endswith(said)


def test_the_first_step_is_told_as_soon_as_it_is_done():
    lines: list[str] = []
    progress = StepProgress(4, 20, lines.append)
    for step in range(5, 21):
        progress(step, torch.tensor(1.0))
    assert [line.split()[1] for line in lines[1:]] == ["5/20", "20/20"]


class Quiet:
    """Stands for an accelerator that logs nowhere."""

    is_main_process = True

    def init_trackers(self, *a, **k): ...

    def log(self, *a, **k): ...


def test_a_damaged_log_keeps_its_good_lines_and_says_so(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    good = [json.dumps({"step": step, "loss": 0.5}).encode() for step in (1, 2, 3)]
    path.write_bytes(
        b"\n".join([good[0], b'{"step": 2, "lo', b"\xff\xfe", b"[1]", b'{"loss": 1}', good[1], good[2], b""])
    )
    assert [record["step"] for record in read_metrics(path)[0]] == [1, 2, 3]
    log = MetricsLog(path, 2, Quiet(), said.append)
    log.write({"step": 3, "loss": 0.25})
    log.file.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(path)[0]] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert said == [f"{path}: 4 lines are no records; they are left out"]
    assert read_metrics(tmp_path / "none.jsonl") == ([], 0)
