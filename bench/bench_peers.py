"""The sample stream against other ways to keep the same rows, in CPU seconds and bytes read, cold and warm.

Two kinds of rows: feature maps of 1,024 x 24 x 24 float16, and 600 x 2 float16 scores a row. Every format delivers batches of
32 stacked rows in one random order (WebDataset: shuffled in a buffer, since it has no other access). Each third-party library
has an environment of its own under ``.peers``, built from the package index; one that cannot be had is named with the reason.
Each reading is a process of its own, and formats take turns. Its first pass is cold: the kernel was told to drop the folder's
files. Its second pass is warm. A ratio is that of a round; the medians over rounds are given.

    python -m bench.bench_peers [--json] [--maps N] [--rows N] [--rounds N] [--folder FOLDER] [--only FORMAT ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import runner
from bench.peers.environments import Environment, environment

SHAPES = {"maps": (1024, 24, 24), "scores": (600, 2)}
OURS, LIMIT = "ours", "memmap"
OCCASIONS = ("cold", "warm")


@dataclass(frozen=True)
class Peer:
    """One format in its environment.

    Attributes:
        name: of the format.
        environment: where it runs.
    """

    name: str
    environment: Environment

    def run(self, action: str, folder: Path, *others: Path) -> dict[str, Any]:
        """Write or read ``folder``. Raises ``subprocess.CalledProcessError`` where the library fails."""
        module = ["-m", "bench.peers.ours"] if self.name == OURS else [runner.__file__]
        command = [self.environment.python, *module, self.name, action, folder.parent / "source.npy", folder, *others]
        limits = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1"}
        answer = subprocess.run(
            [str(word) for word in command if word], env=os.environ | limits, check=True, capture_output=True, text=True
        )
        return json.loads(answer.stdout.strip().splitlines()[-1])


def measure(folder: Path, kind: str, count: int, peers: Mapping[str, Peer], rounds: int) -> dict[str, Any]:
    """Write ``count`` rows of one kind in every format, then read them in turn."""
    folder.mkdir()
    save_source(folder / "source.npy", (count, *SHAPES[kind]))
    np.save(folder / "order.npy", np.random.default_rng(2).permutation(count))
    written, failed = {}, {}
    for name, peer in peers.items():
        (folder / name).mkdir()
        try:
            written[name] = peer.run("write", folder / name)["bytes_on_disk"]
        except subprocess.CalledProcessError as error:
            failed[name] = reason(error)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in written}
    for turn in range(rounds):
        names = list(runs)
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            runs[name].append(peers[name].run("read", folder / name, folder / "order.npy"))
            print(f"{kind} {turn} {name} {runs[name][-1]}", file=sys.stderr, flush=True)
    payload = count * int(np.prod(SHAPES[kind])) * 2
    formats = {name: summary(runs[name], runs.get(LIMIT), count, payload) for name in runs}
    for name, result in formats.items():
        result["bytes_on_disk_over_values"] = written[name] / payload
    return {"rows": count, "bytes_a_row": payload // count, "formats": formats, "failed": failed}


def save_source(path: Path, shape: tuple[int, ...]) -> None:
    """Random float16 rows, a part at a time."""
    rows = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    random = np.random.default_rng(0)
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        part[:] = random.standard_normal(part.shape, np.float32)


def summary(runs: list[dict[str, Any]], limit: list[dict[str, Any]] | None, count: int, payload: int) -> dict[str, Any]:
    """Medians over rounds of one format."""
    result: dict[str, Any] = {
        "open_cpu_ms": statistics.median(run["open"]["cpu_seconds"] for run in runs) * 1e3,
        "open_bytes_read_over_values": statistics.median(run["open"]["bytes_read"] for run in runs) / payload,
    }
    for occasion in OCCASIONS:
        own = [run[occasion] for run in runs]
        result[occasion] = {
            "cpu_ms_a_row": statistics.median(each["cpu_seconds"] for each in own) / count * 1e3,
            "wall_ms_a_row": statistics.median(each["wall_seconds"] for each in own) / count * 1e3,
            "bytes_read_over_values": statistics.median(each["bytes_read"] for each in own) / payload,
        }
        if limit is not None:
            ratios = [a["cpu_seconds"] / b[occasion]["cpu_seconds"] for a, b in zip(own, limit, strict=True)]
            result[occasion] |= {"over_memmap": statistics.median(ratios), "over_memmap_by_round": ratios}
    return result


def reason(error: subprocess.CalledProcessError) -> str:
    """The last line that a failed process wrote."""
    return ((error.stderr or error.stdout).strip().splitlines() or [f"exit status {error.returncode}"])[-1]


def main() -> None:
    """Build the environments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--maps", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8192, help="of 600 scores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--only", nargs="+", choices=(OURS, *runner.FORMATS), default=(OURS, *runner.FORMATS))
    arguments = parser.parse_args()
    environments = {name: environment(name) for name in arguments.only}
    peers = {name: Peer(name, made) for name, made in environments.items() if made.python}
    result: dict[str, Any] = {
        "rounds": arguments.rounds,
        "versions": {name: made.version for name, made in environments.items() if made.version},
        "absent": {name: made.reason for name, made in environments.items() if not made.python},
    }
    for kind, count in (("maps", arguments.maps), ("scores", arguments.rows)):
        folder = Path(tempfile.mkdtemp(prefix="bench-peers-", dir=arguments.folder))
        try:
            result[kind] = measure(folder / kind, kind, count, peers, arguments.rounds)
        finally:
            shutil.rmtree(folder)
    if arguments.json:
        print(json.dumps(result))
        return
    for kind in SHAPES:
        for name, found in result[kind]["formats"].items():
            parts = (
                f"{occasion} {found[occasion]['cpu_ms_a_row']:.3f} CPU-ms a row, {found[occasion]['over_memmap']:.2f} of memmap"
                for occasion in OCCASIONS
            )
            print(f"{kind} {name}: {'; '.join(parts)}")
    for name, why in [*result["absent"].items(), *result["maps"]["failed"].items()]:
        print(f"{name}: absent: {why}")


if __name__ == "__main__":
    main()
