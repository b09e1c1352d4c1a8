"""How far a run is: lines for people, records for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from hoi_distill.stages.evaluate.metrics_log import read_metrics
from hoi_distill.stages.quantities import duration, pace
from hoi_distill.stages.student.method import Track, untracked
from hoi_distill.storage.errors import WorkStopped
from hoi_distill.storage.files.atomic import write_atomically


class NonFiniteLoss(WorkStopped):
    """The loss or its gradient is NaN or infinite. The message names the step, the rows and the images."""


class MetricsLog:
    """``metrics.jsonl``, one line a logged step, and the same through Accelerate's trackers. Lines after the step that
    a run resumes from are dropped, so that every step is logged once."""

    def __init__(
        self,
        path: Path,
        done: int,
        accelerator: Accelerator,
        report: Callable[[str], None] = print,
        track: Track = untracked,
    ) -> None:
        self.accelerator, self.start, self.track = accelerator, time.monotonic(), track
        self.file = None
        if accelerator.is_main_process:
            records, bad = read_metrics(path)
            if bad:
                report(f"{path}: {bad} lines are no records; they are left out")
            kept = [json.dumps(record) + "\n" for record in records if record["step"] <= done]
            write_atomically(path, "".join(kept))
            self.file = open(path, "a", buffering=1)  # noqa: SIM115  open for the whole run
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": done + 1}})

    def write(self, record: dict[str, float]) -> None:
        """Append a record, which has a ``step``."""
        if self.file is not None:
            self.file.write(json.dumps({**record, "seconds": round(time.monotonic() - self.start, 3)}) + "\n")
        values = {name: value for name, value in record.items() if name != "step"}
        self.accelerator.log(values, step=int(record["step"]))
        if self.file is not None:
            self.track(values, int(record["step"]))


class StepProgress:
    """A line now and then, and after the first step: steps, loss, speed, time left."""

    def __init__(self, done: int, steps: int, report: Callable[[str], None], every: float = 10.0) -> None:
        self.first, self.steps, self.report, self.every = done, steps, report, every
        self.start = self.last = time.monotonic()
        if done:
            report(f"resumed after step {done} of {steps}")

    def __call__(self, done: int, loss: Tensor) -> None:
        """Report after ``done`` steps, if it is time to."""
        now = time.monotonic()
        if now - self.last < self.every and done < self.steps and done > self.first + 1:
            return
        self.last = now
        self.report(
            f"step {done}/{self.steps}  loss {loss.item():.3f}  {speed(done - self.first, self.steps - done, now - self.start)}"
        )


def speed(done: int, left: int, seconds: float) -> str:
    """``2.5/s  3 min 20 s left``, or of slow steps ``4.0 s/step  26 h 5 min left``."""
    each = max(seconds, 1e-9) / done
    return f"{pace(1 / each, 'step')}  {duration(left * each)} left"
