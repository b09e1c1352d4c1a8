"""Peak anonymous memory (RssAnon) of a worker and of a trainer, with one and with eight times the images.

Both arms are the same setup of the pico world with the pico teacher: ``hoi-distill run --executor inline`` (planner and
worker in one process) and ``hoi-distill train`` (training, prediction of the test split, evaluation, report). The process
is sampled from outside, 50 times a second. Mapped files are not anonymous: the kernel can drop them whenever it likes.

    python -m bench.bench_memory [--json] [--pictures N] [--steps N]
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
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TIMES = 8
ALLOWED = 1.10


def setup(folder: Path, images: int, steps: int) -> Path:
    """Four fifths for training, half of them labelled; a few prompts, so that the bench is over in minutes."""
    config = yaml.safe_load((ROOT / "configs/pico.yaml").read_text())
    train = images * 4 // 5
    world = str(folder / f"world-{images}")
    config["name"] = f"memory-{images}"
    config["dataset"].update(root=world, train=train, test=images - train)
    config["cache"], config["runs"] = str(folder / f"cache-{images}"), str(folder / f"runs-{images}")
    tables = config["tables"]
    tables["itm"]["columns"] = ["a photo of a person riding a bicycle", "a photo of a person holding a cup"]
    del tables["captions"], tables["triplets"]
    for table in tables.values():
        table["shard_rows"] = 64
    config["student"] = {"labelled": train // 2, "steps": steps, "tables": {"captions": None}}
    path = folder / f"memory-{images}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def peak(*arguments: str, trained_in: Path | None = None) -> tuple[int, int, float]:
    """Run ``hoi-distill``; peak RssAnon in bytes, the same until a run under ``trained_in`` was trained, and wall seconds."""
    started, highest, trained = time.perf_counter(), 0, None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hoi_distill", *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"RssAnon:\s+(\d+) kB", status):
                if trained is None and trained_in is not None and list(trained_in.glob("*/*/done.json")):
                    trained = highest
                highest = max(highest, int(found[1]) * 1024)
            time.sleep(0.02)
        if process.returncode:
            out.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{out.read().decode()}")
    return highest, highest if trained is None else trained, time.perf_counter() - started


def measure(folder: Path, images: int, steps: int) -> dict[str, Any]:
    """Peak memory of planning, filling and training on two worlds of different size."""
    arms = {}
    for count in (images, TIMES * images):
        path = str(setup(folder, count, steps))
        peak("plan", path)  # renders the world, so that rendering is nobody's memory
        planner, _, _ = peak("plan", path)
        worker, _, worker_seconds = peak("run", path, "--executor", "inline")
        trainer, training, trainer_seconds = peak("train", path, trained_in=folder / f"runs-{count}")
        arms[count] = {
            "planner_bytes": planner,
            "worker_bytes": worker,
            "worker_seconds": round(worker_seconds, 1),
            "trainer_bytes": trainer,
            "trainer_bytes_until_trained": training,
            "trainer_seconds": round(trainer_seconds, 1),
        }
    small, large = arms.values()
    ratios = {who: round(large[f"{who}_bytes"] / small[f"{who}_bytes"], 3) for who in ("worker", "trainer")}
    return {
        "pictures": list(arms),
        "arms": list(arms.values()),
        **{f"{who}_ratio": ratio for who, ratio in ratios.items()},
        "allowed": ALLOWED,
        "within": all(ratio <= ALLOWED for ratio in ratios.values()),
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300, help="of the small arm")
    parser.add_argument("--steps", type=int, default=60, help="training steps of both arms")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
        result = measure(Path(folder), options.pictures, options.steps)
    if options.json:
        print(json.dumps(result))
        return
    for who in ("worker", "trainer"):
        small, large = (arm[f"{who}_bytes"] / 2**20 for arm in result["arms"])
        counts = " and ".join(f"{count:,}" for count in result["pictures"])
        print(
            f"{who}: peak RssAnon {small:.0f} and {large:.0f} MiB with {counts} pictures: {result[f'{who}_ratio']} times"
        )


if __name__ == "__main__":
    main()
