"""Random faults against the cache: whatever happens, nothing committed is lost and no wrong value is shown.

Two kinds of sequences: ``storage`` (commits, reads, checks of tables alone) and ``pipeline`` (the commands ``run``, ``check``,
``gc`` and ``plan`` with small stages and the in-process executor). In each, processes are killed, lose their power, meet errors
at any file operation, full disks and wrong clocks, and run beside rivals; files are flipped, cut, deleted and copied between
them. Then all faults end: a run, a check, a run, and every cell is compared with its right value.

    python -m bench soak [--seconds N] [--seed S] [--kind storage|pipeline] [--sequences N]
    python -m bench.soak --kind KIND --seed S --sequence K

The second form lives one sequence again and lists its steps (kills from outside and rivals are not the same to the microsecond).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer.main

from bench.soak_house import FAULTS, House
from hoi_distill.pipeline import cli

KINDS = ("storage", "pipeline")
STEPS = {"storage": (3, 9), "pipeline": (2, 5)}


@dataclass
class Tally:
    """What was found in the sequences of one kind."""

    sequences: int = 0
    disturbances: int = 0
    found: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The counts."""
        each = self.cpu_seconds / max(self.sequences, 1)
        return {
            "sequences": self.sequences,
            "disturbances": self.disturbances,
            **{name: self.found[name] for name in FAULTS},
            "cpu_seconds_a_sequence": round(each, 3),
        }


def house_of(kind: str, folder: Path, generator: random.Random) -> House:
    """The house of a kind of sequence."""
    if kind == "storage":
        from bench.soak_storage import StorageHouse

        return StorageHouse(folder, generator)
    from bench.soak_pipeline import PipelineHouse

    return PipelineHouse(folder, generator)


def sequence(kind: str, seed: int, number: int, folder: Path) -> House:
    """Live one sequence in a new folder, which goes at the end."""
    generator = random.Random(f"{seed} {kind} {number}")
    place = folder / f"{kind}-{number}"
    for name in ("cache", "home", "scratch"):
        (place / name).mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(place / "home")
    tempfile.tempdir = os.environ["TMPDIR"] = str(place / "scratch")
    try:
        house = house_of(kind, place, generator)
        house.live(generator.randint(*STEPS[kind]))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return house


def cause(text: str) -> str:
    """A fault in one line, without what differs from one time to the next."""
    lines = text.strip().splitlines() or ["?"]
    words = lines[0] if lines[0].startswith("signal") else lines[-1]
    frames = [line.strip() for line in lines if line.strip().startswith('File "')]
    place = ""
    if frames:
        rooms = ("/storage/", "/workers/", "/pipeline/", "/stages/")
        own = [line for line in frames if any(room in line for room in rooms)] or frames
        found = re.search(r'([^/"]+/[^/"]+)", line (\d+)', own[0] if words.startswith("signal") else own[-1])
        place = f"{found[1]}:{found[2]} " if found else ""
    varying = re.compile(r"\S*[\d/'\"]\S*|\S{25,}")
    return place + " ".join(varying.sub("*", words).split())[:150]


def soak(kinds: tuple[str, ...], seed: int, seconds: float, sequences: int | None, first: int = 0) -> dict[str, Tally]:
    """Live sequences of all kinds in turn, each kind for its share of the time or so many times.

    Args:
        kinds: of sequences.
        seed: of the first sequence; it decides all of them.
        seconds: of all kinds together.
        sequences: so many of each kind, however long they take.
        first: number of the first sequence.
    """
    warm(kinds)
    tallies = {kind: Tally() for kind in kinds}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=_memory()) as folder:
        while True:
            open_kinds = [kind for kind in kinds if sequences is None or tallies[kind].sequences < sequences]
            if not open_kinds or (sequences is None and time.monotonic() - began > seconds):
                break
            kind = min(open_kinds, key=lambda kind: tallies[kind].cpu_seconds)
            tally, number = tallies[kind], first + tallies[kind].sequences
            before = _cpu()
            house = sequence(kind, seed, number, Path(folder))
            tally.cpu_seconds += _cpu() - before
            tally.sequences += 1
            tally.disturbances += house.faults
            tally.found.update(house.found.keys())
            tally.causes.update(f"{name}: {cause(text)}" for name, text in house.found.items())
            if house.found:
                report(kind, seed, number, house)
    return tallies


def report(kind: str, seed: int, number: int, house: House) -> None:
    """Print what a sequence did, and how to live it again."""
    print(f"{kind} sequence {number}: {', '.join(house.found)}", file=sys.stderr)
    print(f"  again: python -m bench.soak --kind {kind} --seed {seed} --sequence {number}", file=sys.stderr)
    for step in house.steps:
        print(f"    {step}", file=sys.stderr)


def warm(kinds: tuple[str, ...]) -> None:
    """Import what the sequences will, so that a fork starts at once. A fork finds out what that is."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    from bench import soak_children

    def act(send: soak_children.Send) -> int:
        with tempfile.TemporaryDirectory(prefix="soak-", dir=_memory()) as folder:
            for kind in kinds:
                sequence(kind, 0, -1, Path(folder))
        send(("modules", sorted(sys.modules)))
        return 0

    # Modules that only grandchildren import are found by living their actions in this process's fork.
    from bench.soak_house import House

    real = House.run

    def run_here(self: House, *children: soak_children.Child) -> list[soak_children.Ended]:
        for child in children:
            with contextlib.suppress(BaseException):
                child.action(lambda _message: None)
        return real(self, *children)

    House.run = run_here  # type: ignore[method-assign]
    try:
        ended = soak_children.run([soak_children.Child("warm", act)], "/nowhere")[0]
    finally:
        House.run = real  # type: ignore[method-assign]
    if ended.crash:
        raise RuntimeError(f"the soak itself fails: {ended.crash}")
    said: dict[str, list[str]] = dict(message for message in ended.said if isinstance(message, tuple))
    for name in said["modules"]:
        if not name.startswith("__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    typer.main.get_command(cli.app)
    gc.collect()
    gc.freeze()


def _memory() -> str | None:
    """Every commit waits for the disk; a file system in memory does not, and it is not the disk that is tested."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    """Live sequences of faults from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="both by default")
    parser.add_argument("--sequences", type=int, help="so many of each kind, instead of --seconds")
    parser.add_argument("--sequence", type=int, help="only this one, with its steps")
    parser.add_argument("--json", action="store_true", help="print JSON only, and end with 0 whatever was found")
    options = parser.parse_args()
    kinds = (options.kind,) if options.kind else KINDS
    if options.sequence is not None:
        warm(kinds)
        with tempfile.TemporaryDirectory(prefix="soak-", dir=_memory()) as folder:
            house = sequence(kinds[0], options.seed, options.sequence, Path(folder))
        print("\n".join(house.steps))
        for name, text in house.found.items():
            print(f"== {name}\n{text}")
        raise SystemExit(1 if house.found else 0)
    tallies = soak(kinds, options.seed, options.seconds, options.sequences)
    result = {"seed": options.seed, **{kind: tally.as_json() for kind, tally in tallies.items()}}
    if options.json:
        print(json.dumps(result))
        return
    print(json.dumps(result, indent=1))
    for kind, tally in tallies.items():
        for text, count in tally.causes.most_common():
            print(f"{kind} {count:5d}  {text}")
    raise SystemExit(1 if any(tally.found for tally in tallies.values()) else 0)


if __name__ == "__main__":
    main()
