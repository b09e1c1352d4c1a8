"""What the project wanted of its speed, beside what was measured: a table at the end of the page.

A goal is reached or not by the measurements' JSON files; the reason stands only beside one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.table import Result, cell, found, number
from bench.tables import nearest_library

Results = Mapping[str, Result]
"""By name of the measurement."""


@dataclass(frozen=True)
class Goal:
    """One number that was wanted.

    Attributes:
        words: what is measured.
        bound: what it should be at most, or at least.
        value: of the results. None where it was not measured.
        unit: of bound and value.
        at_least: whether more is better.
        why: where the goal is not reached, what stands against it.
    """

    words: str
    bound: float
    value: Callable[[Results], float | None]
    unit: str = ""
    at_least: bool = False
    why: Callable[[Results], str] = lambda _: ""

    def line(self, results: Results) -> str | None:
        """Its row. None where it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        reached = value >= self.bound if self.at_least else value <= self.bound
        side = "at least" if self.at_least else "at most"
        wanted, why = f"{side} {cell(self.bound, self.unit)}", "" if reached else self.why(results)
        return f"| {self.words} | {wanted} | {cell(value, self.unit)} | {'yes' if reached else 'no'} | {why} |"


def at(name: str, key: str) -> Callable[[Results], float | None]:
    """What a measurement has at a key."""
    return lambda results: found(results[name], key) if name in results else None


def growth(name: str, key: str) -> Callable[[Results], float | None]:
    """The last of some values over the first."""

    def over(results: Results) -> float | None:
        values = at(name, key)(results)
        return values[-1] / values[0] if isinstance(values, list) else None

    return over


def library_over_ours(state: str) -> Callable[[Results], float | None]:
    """CPU time of the nearest library for a map, over ours."""

    def over(results: Results) -> float | None:
        if "peers" not in results:
            return None
        formats: Any = results["peers"]["maps"]["formats"]
        times = [formats[name][state]["cpu_ms_a_row"] for name in (nearest_library(formats), "ours")]
        return float(times[0] / times[1])

    return over


def cold_over_memmap(results: Results) -> float | None:
    """Of more rounds where they were measured, else of the comparison of formats."""
    return at("warm" if "warm" in results else "peers", "maps/formats/ours/cold/over_memmap")(results)


def heads(pairs: int) -> Iterator[Goal]:
    """LINK's network beside the two heads, at a number of pairs an image."""
    own = f"{pairs}_pairs_an_image"

    def why(results: Results) -> str:
        step, limit = (found(results["pair_heads"], f"{own}/{key}") for key in ("cpu_s_per_step/link", "limit_cpu_s"))
        return f"the matrix products of LINK's step alone take {number(limit)} of its {number(step)} s at full speed"

    for name, label in (("upt", "UPT"), ("pvic", "PViC")):
        words = f"{label}'s head over LINK's network, {pairs} pairs an image"
        yield Goal(words, 2, at("pair_heads", f"{own}/over_link/{name}"), at_least=True, why=why)


def turn_why(teacher: str) -> Callable[[Results], str]:
    """What bounds a teacher's turn."""

    def why(results: Results) -> str:
        copies = found(results["turn"], f"{teacher}/copies_ms")
        return f"on a CPU its copies alone take {number(copies)} ms"

    return why


def commit_why(results: Results) -> str:
    """What bounds a commit."""
    bare = found(results["tasks"], "map/hashed_twice_and_written_ms")
    return f"two digests and one write of its bytes take {number(bare)} ms, see there"


def planning_why(results: Results) -> str:
    """What bounds planning."""
    bare = found(results["planning"], "cpu_seconds_bare_stats")
    return f"the stats alone take {number(bare)} s; the rest is what Python does for each of a million paths"


def mapped_why(_: Results) -> str:
    """Why no format is much quicker than another."""
    return "HF datasets maps its file, too"


GOALS = (
    Goal("a cold map over memmap", 1.1, cold_over_memmap),
    Goal("bytes read for it over its values", 1.1, at("peers", "maps/formats/ours/cold/bytes_read_over_values")),
    Goal("a warm map over memmap, both in one process", 1.05, at("reading", "maps/warm/stream/over_memmap")),
    Goal(
        "a warm map over memmap, each in a process of its own", 1.05, at("warm", "maps/formats/ours/warm/over_memmap")
    ),
    Goal("the nearest library over ours, warm", 1.5, library_over_ours("warm"), at_least=True, why=mapped_why),
    Goal("the nearest library over ours, cold", 1.5, library_over_ours("cold"), at_least=True, why=mapped_why),
    Goal(
        "a turn of CLIP-L less its forward, an image", 1, at("turn", "clip_l_336/turn_less_forward_ms"), "ms",
        why=turn_why("clip_l_336"),
    ),
    Goal(
        "a turn of BLIP-L less its forward, an image", 1, at("turn", "blip_l_384/turn_less_forward_ms"), "ms",
        why=turn_why("blip_l_384"),
    ),
    Goal("commit of a 1.18 MB map", 3, at("tasks", "map/commit_ms"), "ms", why=commit_why),
    Goal("filling the cache over a bare loop", 1.03, at("teacher", "ratio")),
    Goal("a task and its commit, 40,000 shards over 50", 1.2, at("tasks", "task/growth")),
    Goal("the driver's share of a task, 10 M rows over 1 M", 1.2, growth("scale", "driver/task_ms")),
    Goal("plan of 1,000,000 x 600", 3.5, at("planning", "cpu_seconds"), "s", why=planning_why),
    Goal("the same over the bare stats", 1.5, at("planning", "over_bare_stats"), why=planning_why),
    Goal("a row of 600 scores over memmap, 12 shards", 1.3, at("reading", "scores_12_shards/warm/stream/over_memmap")),
    Goal("the same, 700 shards", 1.3, at("reading", "scores_700_shards/warm/stream/over_memmap")),
    Goal("`make teacher-cache` again, nothing to do", 1.5, at("again", "run_cpu_seconds"), "s"),
    Goal("`make train-student` again, nothing to do", 1.5, at("again", "train_cpu_seconds"), "s"),
    Goal(
        "bfloat16's mean mAP on pico from float32's, over the spread of float32's seeds", 1,
        at("precision", "difference_over_spread"),
    ),
    *heads(60),
    *heads(435),
)  # fmt: skip


def goals(results: Results) -> list[str]:
    """The lines of the section."""
    rows = [row for goal in GOALS if (row := goal.line(results)) is not None]
    if not rows:
        return []
    return [
        "## Goals and what was measured",
        "",
        "Times are CPU times; where a GPU would decide, nobody has measured on one. That no training step waits for the device "
        "is no figure but a test, `tests/stages/student/training/test_no_waiting.py`.",
        "",
        "| goal | wanted | measured | reached | what stands against it |",
        "|---|---:|---:|---|---|",
        *rows,
        "",
    ]
