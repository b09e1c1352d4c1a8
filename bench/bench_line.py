"""The whole line once: ``hoi-distill run`` and ``train`` on ``configs/pico.yaml`` from nothing, and the same again.

Rendering the pico world is part of it, installing is not. CPU time is that of both commands and of all processes that they
leave behind: Ray's outlive the command that starts them, so this process adopts them (Linux). Wall time wants a machine that
does nothing else.

    python -m bench.bench_line [--json] [--executor ray|inline]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of Linux
PATIENCE = 60.0  # seconds that what a command leaves behind may take to end


def spent_seconds() -> float:
    """CPU seconds of all children that have ended. Waits for those that were adopted."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.1)
        raise SystemExit(f"processes of the line still run after {PATIENCE:.0f} s: their CPU time would be missing")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(folder: Path, executor: str) -> dict[str, float | str]:
    """Both commands, with everything they write under ``folder``."""
    text = Path("configs/pico.yaml").read_text().replace("data/pico", str(folder / "world"))
    config = folder / "pico.yaml"
    config.write_text(f"cache: {folder / 'cache'}\nruns: {folder / 'runs'}\n{text}")
    cpu, wall, said = spent_seconds(), time.monotonic(), ""
    for command in (["run", str(config), "--executor", executor], ["train", str(config)]):
        said = subprocess.run(
            [sys.executable, "-m", "hoi_distill", *command], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    wall = time.monotonic() - wall
    figures: dict[str, float | str] = {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(spent_seconds() - cpu, 1),
    }
    if found := re.search(r"mAP, default: (.*)", said):
        figures["map"] = " ".join(found[1].split())
    return figures


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--executor", default="ray", choices=("ray", "inline"))
    arguments = parser.parse_args()
    if ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0):
        raise SystemExit("this kernel lets nobody adopt orphans")
    with tempfile.TemporaryDirectory(prefix="hoi-distill-bench-") as folder:
        result = {name: line(Path(folder), arguments.executor) for name in ("first", "again")}
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
