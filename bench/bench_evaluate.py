"""Evaluating a detections file of HICO-DET's size: 9,658 images, 33,405 pairs, 100 detections an image and more.

Everything is made up: annotations as one JSON file with the 600 classes, image-level labels as ``anno.mat``, detections
around the pairs and anywhere else, as Parquet. The command runs in a process of its own on one core, as a user calls it;
its seconds are wall-clock, from a warm disk cache, the best of the repeats (other work on the machine only adds).

    python -m bench.bench_evaluate [--json] [--pictures N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections

PAIRS_PER_IMAGE = 33_405 / 9_658
REPEATS = 3
TARGET_SECONDS, TARGET_EVALUATION_SECONDS, TARGET_BYTES = 5.0, 2.0, 2 << 30


def build(root: Path, images: int, multiples: tuple[int, ...], seed: int = 0) -> dict[int, Path]:
    """Annotations, labels and, for each multiple of 100 detections an image, a file of detections."""
    words, rng = hico_vocabulary(), np.random.default_rng(seed)
    names = [f"HICO_test2015_{number:08d}.jpg" for number in range(1, images + 1)]
    pairs = int(images * PAIRS_PER_IMAGE)
    image = np.sort(rng.integers(0, images, pairs))
    hoi = np.minimum(rng.geometric(0.006, pairs) - 1, len(words) - 1)
    corner = rng.integers(1, 300, (2, pairs, 2))
    boxes = np.concatenate([corner, corner + rng.integers(30, 300, (2, pairs, 2))], 2)
    start = np.searchsorted(image, np.arange(images + 1))
    verb, thing = words.hois[hoi].T.astype(int)
    columns = {"boxes_h": boxes[0], "boxes_o": boxes[1], "hoi": hoi, "object": thing, "verb": verb}
    document = {
        "annotation": [
            {key: column[start[i] : start[i + 1]].tolist() for key, column in columns.items()} for i in range(images)
        ],
        "filenames": names,
        "size": [[640, 640]] * images,
        "objects": list(words.objects),
        "verbs": list(words.verbs),
        "correspondence": [[h, int(o), int(v)] for h, (v, o) in enumerate(words.hois)],
    }
    (root / "instances_test2015.json").write_text(json.dumps(document))
    labels = np.full((len(words), images), -1.0)
    labels[hoi, image] = 1
    cells = np.array(names, object)[:, None]
    savemat(root / "anno.mat", {"anno_test": labels, "list_test": cells}, do_compression=True)
    files = {}
    for multiple in multiples:
        files[multiple] = root / f"detections_{multiple}.parquet"
        write_detections(
            files[multiple],
            detections(rng, multiple * 100 * images, images, image=image, boxes=boxes, hoi=hoi),
            names,
        )
    return files


def detections(
    rng: np.random.Generator, count: int, images: int, *, image: np.ndarray, boxes: np.ndarray, hoi: np.ndarray
) -> HoiDetections:
    """A third lie around a pair, with its class or another; the rest anywhere in their image. Sorted by image."""
    words = hico_vocabulary()
    near, pair = rng.random(count) < 1 / 3, rng.integers(0, len(hoi), count)
    corner = rng.integers(0, 300, (2, count, 2))
    anywhere = np.concatenate([corner, corner + rng.integers(30, 300, (2, count, 2))], 2)
    box = np.where(near[None, :, None], boxes[:, pair] + rng.normal(0, 12, (2, count, 4)), anywhere)
    box[..., 2:] = np.maximum(box[..., 2:], box[..., :2] + 1)
    said = np.where(near & (rng.random(count) < 0.5), hoi[pair], rng.integers(0, len(words), count)).astype(np.int32)
    where = np.where(near, image[pair], rng.integers(0, images, count)).astype(np.int32)
    order = np.argsort(where, kind="stable")
    verb, thing = words.hois[said[order]].T.astype(np.int32)
    return HoiDetections(
        where[order], box[0, order].astype(np.float32), box[1, order].astype(np.float32), thing, verb, said[order],
        rng.random(count).astype(np.float32),
    )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One call of the command: seconds on the clock and of CPU, those of the evaluation itself, and peak memory."""

    seconds: float
    cpu_seconds: float
    evaluation_seconds: float
    peak_bytes: int


def command(root: Path, file: Path, *options: str) -> Run:
    """Run ``hoi-distill evaluate`` once, on one core."""
    call = [sys.executable, "-m", "hoi_distill", "evaluate", "--dataset", "hico-det", "--json", *options]
    call += ["--annotations", str(root / "instances_test2015.json"), "--detections", str(file)]
    call += ["--image-labels", str(root / "anno.mat")]
    core = min(os.sched_getaffinity(0))
    began = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert process.stdout is not None
    record = json.loads(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{' '.join(call)} ended with {status}")
    return Run(seconds, used.ru_utime + used.ru_stime, record["seconds"], used.ru_maxrss * 1024)


def measure(root: Path, files: dict[int, Path], images: int) -> dict[str, Any]:
    """Run the command on files of growing size, and once with its page."""
    runs = {f"n x {multiple}": [command(root, file) for _ in range(REPEATS)] for multiple, file in files.items()}

    def best(what: str) -> dict[str, float]:
        return {size: round(min(getattr(run, what) for run in own), 2) for size, own in runs.items()}

    itself = list(best("evaluation_seconds").values())
    page = command(root, files[1], "--out", str(root / "page"))
    return {
        "detections": {f"n x {multiple}": multiple * 100 * images for multiple in files},
        "command_seconds": best("seconds"),
        "command_cpu_seconds": best("cpu_seconds"),
        "evaluation_seconds": best("evaluation_seconds"),
        "evaluation_growth_per_doubling": [round(b / a, 2) for a, b in pairwise(itself)],
        "peak_bytes": {size: max(run.peak_bytes for run in own) for size, own in runs.items()},
        "with_page": {"seconds": round(page.seconds, 2), "cpu_seconds": round(page.cpu_seconds, 2)},
        "target_command_seconds": TARGET_SECONDS,
        "target_evaluation_seconds": TARGET_EVALUATION_SECONDS,
        "target_bytes": TARGET_BYTES,
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=9658)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        files = build(Path(folder), options.pictures, (1, 2, 4))
        result = measure(Path(folder), files, options.pictures)
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<28}{value}")


if __name__ == "__main__":
    main()
