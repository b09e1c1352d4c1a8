"""The whole line once: ``hoi-distill run`` and ``train`` on ``configs/pico.yaml`` from nothing, and the same again.

Rendering the pico world is part of it, installing is not. CPU time is the whole machine's (from ``/proc/stat``), because
Ray's workers are nobody's children; run it on a machine that does nothing else.

    python -m bench.bench_line [--json] [--executor ray|inline]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def busy_seconds() -> float:
    """CPU-seconds that this machine has spent on anything but idling and waiting for a disk."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def line(folder: Path, executor: str) -> dict[str, float | str]:
    """Both commands, with everything they write under ``folder``."""
    text = Path("configs/pico.yaml").read_text().replace("data/pico", str(folder / "world"))
    config = folder / "pico.yaml"
    config.write_text(f"cache: {folder / 'cache'}\nruns: {folder / 'runs'}\n{text}")
    wall, cpu, said = time.monotonic(), busy_seconds(), ""
    for command in (["run", str(config), "--executor", executor], ["train", str(config)]):
        said = subprocess.run(
            [sys.executable, "-m", "hoi_distill", *command], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    figures: dict[str, float | str] = {
        "wall_seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(busy_seconds() - cpu, 1),
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
    with tempfile.TemporaryDirectory(prefix="hoi-distill-bench-") as folder:
        result = {name: line(Path(folder), arguments.executor) for name in ("first", "again")}
    print(json.dumps(result) if arguments.json else result)


if __name__ == "__main__":
    main()
