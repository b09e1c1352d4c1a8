"""``make bench``: every measurement in a process of its own, into ``docs/benchmarks.md``.

    python -m bench [NAME ...]
    python -m bench NAME OPTION ...     one measurement with its own options

Figures are of the machine they were measured on, which the page names; what is compared is compared within one run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path("docs/benchmarks.md")
RESULTS = Path("docs/benchmarks.json")


@dataclass(frozen=True)
class Bench:
    """One measurement: its module, what it compares, and the bound it is held against."""

    module: str
    title: str
    asks: str


BENCHES = {
    "line": Bench(
        "bench.bench_line",
        "The whole line",
        "images, cache, student, evaluation and report on two cores within 8 minutes; the same again within 10 s",
    ),
    "planning": Bench(
        "bench.bench_planning", "Planning", "1,000,000 rows x 600 columns, warm digest memory: under 10 s and 2 GiB"
    ),
    "stream": Bench(
        "bench.bench_stream",
        "Streaming",
        "feature maps of 1,024 x 24 x 24 fp16 in random order from a warm cache: at least 0.7 of a bare numpy.memmap of the "
        "same bytes through the same DataLoader settings",
    ),
    "reading": Bench(
        "bench.bench_reading",
        "Reading, in CPU time",
        "maps in random order from a cold disk, and from a warm one, against a bare numpy.memmap: at most 1.1 and 1.05, and at "
        "most 1.1 of the values' bytes read; 600 scores a row at 12 and 700 shards: at most 1.3; an epoch's order: once",
    ),
    "teacher": Bench(
        "bench.bench_teacher_overhead",
        "Filling the cache",
        "CPU time over a bare loop of decoding and teacher forward (BLIP-base size, random weights): at most 1.10",
    ),
    "tasks": Bench(
        "bench.bench_tasks",
        "What a task costs beside its values",
        "CPU time of a task that reads a table above and commits, with stages that answer at once: the same within 20 % in "
        "tables of 50 and of 40,000 shards; the driver's share of a task the same with 1 and 10 million rows; a commit of a "
        "1.18 MB map under 3 ms",
    ),
    "itm": Bench(
        "bench.bench_itm",
        "Matching HICO-DET's 600 prompts",
        "against the stock class with expanded states BLIP-base at least 8 times faster, BLIP-2 at 364 pixels at least 2 "
        "times, at 224 pixels near the arithmetic ratio; faster than the stock text model with states of batch one; logits "
        "within 1e-4 in float32",
    ),
    "vlm_hoi": Bench(
        "bench.bench_vlm_hoi",
        "VLM-HOI: cached against live teacher",
        "a training step with cached scores over one without a teacher: at most 1.05; with BLIP in the loop, beside the "
        "paper's 2.37 (50.3 to 21.2 minutes an epoch on four RTX 3090); latency of the student alone, on one thread",
    ),
    "link": Bench(
        "bench.bench_link",
        "LINK: cached maps against the VLM in the loop",
        "a training step of LINK with cached maps against one with the VLM in the loop, as it is and on augmented images; "
        "what distilling cached answers of a pair teacher adds; memory and speed at 435 pairs an image, 16 images",
    ),
    "pair_heads": Bench(
        "bench.bench_pair_heads",
        "LINK's network beside the heads of UPT and PViC",
        "forward and backward, 4 images of 60 and of 435 pairs: theirs at least 2 times LINK's",
    ),
    "evaluate": Bench(
        "bench.bench_evaluate",
        "Evaluation",
        "965,800 detections of 9,658 images on one core: the command within 5 s and 2 GiB, the evaluation within 2 s; "
        "growth no worse than n log n",
    ),
    "memory": Bench(
        "bench.bench_memory",
        "Memory",
        "peak anonymous memory of worker and trainer with 8 times the images: within 10 %",
    ),
    "kills": Bench(
        "bench.bench_kills",
        "Kills",
        "kill -9 of the driver at ten random moments: at most one task per worker and kill is computed again, and the tables "
        "end up the same",
    ),
    "soak": Bench(
        "bench.soak",
        "Random faults",
        "kills, errors at any file operation, damaged files, wrong clocks, rivals, full disks; after a run, a check and a run: "
        "nothing committed is lost, no value is wrong, no traceback, nothing that a human has to clear away",
    ),
}


def main() -> None:
    """Run all benchmarks and write docs/benchmarks.md."""
    given = next((index for index, word in enumerate(sys.argv) if word.startswith("-")), len(sys.argv))
    names, options = sys.argv[1:given] or list(BENCHES), sys.argv[given:]
    if unknown := [name for name in names if name not in BENCHES]:
        sys.exit(f"bench: there is no {unknown[0]!r}; there are {', '.join(BENCHES)}")
    if options and len(names) != 1:
        sys.exit(f"bench: {options[0]}: name the one measurement that it is for")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        print(f"== {BENCHES[name].title}: {BENCHES[name].asks}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", BENCHES[name].module, "--json", *options]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
        results[name] = {"result": json.loads(line), "seconds": round(time.monotonic() - began), "machine": machine()}
        print(line, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


def machine() -> str:
    """What it was measured on, and how busy that was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {memory:.0f} GiB, no GPU, load average {load:.1f}"


def page(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown page of all results."""
    lines = ["<!-- written by: make bench -->", "# Measurements", ""]
    for name, bench in BENCHES.items():
        if name not in results:
            continue
        entry = results[name]
        lines += [f"## {bench.title}", "", f"Asked: {bench.asks}.", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in flattened(entry["result"])]
        lines += ["", f"Measured on {entry['machine']}, in {entry['seconds']} s: `python -m {bench.module}`.", ""]
    return "\n".join(lines)


def flattened(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested results as rows of ``a.b`` and a short value."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flattened(inner, f"{prefix}.{key}" if prefix else key)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [row for index, inner in enumerate(value) for row in flattened(inner, f"{prefix}[{index}]")]
    if isinstance(value, list):
        return [(prefix, ", ".join(short(item) for item in value))]
    return [(prefix, short(value))]


def short(value: object) -> str:
    """A number with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
