"""What bfloat16 does to a student: ``configs/pico.yaml`` trained with ``precision: fp32`` and ``bf16``, seed by seed.

The student is the default one, its tables are those of the configuration's cache, which are filled first where they are not.
Each training is a process of its own with one thread. Runs go to a temporary folder, or to a folder that stays: there a
training that is finished is not done again.

    python -m bench.bench_precision [--json] [--seeds N ...] [--runs FOLDER] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = "configs/pico.yaml"
PRECISIONS = {"fp32": "no", "bf16": "bf16"}


def trained(runs: Path, precision: str, seed: int, settings: Sequence[str]) -> dict[str, float]:
    """mAP and CPU seconds of one training."""
    own = runs / f"{precision}-{seed}"
    chosen = (f"runs={own}", f"student.precision='{PRECISIONS[precision]}'", f"student.seed={seed}", *settings)
    hoi_distill("train", "--fill", CONFIG, *(word for setting in chosen for word in ("--set", setting)))
    (run,) = own.glob("*/latest")
    evaluated, done = (json.loads((run / name).read_text()) for name in ("evaluation.json", "done.json"))
    return {"map": evaluated["default"]["full"], "cpu_seconds": done["cpu_seconds"]}


def difference_over_spread(single: Sequence[float], half: Sequence[float]) -> float:
    """How far the mean mAP of bfloat16 is from that of float32, over how far float32's best seed is from its worst."""
    return round(abs(statistics.mean(half) - statistics.mean(single)) / (max(single) - min(single)), 3)


def hoi_distill(*words: str) -> None:
    """Run a command on one thread. What it prints goes to standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "hoi_distill", *words], check=True, stdout=sys.stderr, env=environment)


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, help="keep the trainings in this folder, and continue what lies there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every training")
    options = parser.parse_args()
    each: dict[str, dict[str, list[float]]] = {name: {"map": [], "cpu_seconds": []} for name in PRECISIONS}
    with contextlib.ExitStack() as stack:
        folder = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-precision-")))
        for seed in options.seeds:
            for precision in PRECISIONS:
                for name, value in trained(folder, precision, seed, options.set).items():
                    each[precision][name].append(value)
    result: dict[str, Any] = {"seeds": options.seeds, **each}
    if len(options.seeds) > 1:
        result["difference_over_spread"] = difference_over_spread(each["fp32"]["map"], each["bf16"]["map"])
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
