"""The page of all measurements: a chart, three sentences, and a table for each."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from bench.goals import goals
from bench.table import Result, found, number
from bench.tables import KINDS, NAMES, TABLES, by_warm_time, nearest_library

Entry = Mapping[str, Any]
"""One measurement's JSON file: ``result``, ``seconds`` that it took, ``machine``, ``options`` where some were given, and a
``note`` on just this run where its reader must know one."""
CHART = "benchmarks/peers.svg"
BAR, GAP, LEFT, WIDTH, VALUE = 9, 8, 190, 760, 120
COLD, WARM, OURS = "#b9c7d6", "#5b7c99", "#c2571a"


def page(entries: Mapping[str, Entry], titles: Mapping[str, tuple[str, str, str]]) -> str:
    """The Markdown page.

    Args:
        entries: by name, the measurements that were made.
        titles: by name, the title, what is asked and a remark, in the page's order.
    """
    lines = [
        "<!-- written by: make bench -->",
        "# Measurements",
        "",
        "This page has every measured figure of speed and memory. After reading it you know what the cache costs, what a "
        "training gains from it, and how it stands beside other formats.",
        "",
    ]
    results = {name: entry["result"] for name, entry in entries.items()}
    if "peers" in results:
        lines += [f"![CPU time to read a row, by format]({CHART})", ""]
    lines += [*sentences(results), ""]
    for name, words in titles.items():
        if name in entries:
            lines += section(name, words, entries[name])
    return "\n".join([*lines, *goals(results)])


def section(name: str, words: tuple[str, str, str], entry: Entry) -> list[str]:
    """The lines of one measurement."""
    title, asked, remark = words
    command = " ".join(["python -m bench", name, *entry.get("options", ())])
    lines = [f"## {title}", "", f"Asked: {asked}.", ""]
    for table in TABLES[name](entry["result"]):
        lines += [*table.markdown(entry["result"]), ""]
    if name == "peers":
        lines += notes(entry["result"])
    lines += [remark, ""] if remark else []
    lines += [entry["note"], ""] if "note" in entry else []
    lines += [
        f"`{command}`, {number(entry['seconds'])} s, on {entry['machine']}. All figures: "
        f"[{name}.json](benchmarks/{name}.json).",
        "",
    ]
    return lines


def notes(result: Result) -> list[str]:
    """Which versions were read, and which formats are absent, with the reason."""
    absent = {**result["absent"], **{name: why for kind in KINDS for name, why in result[kind]["failed"].items()}}
    versions = ", ".join(result["versions"].values())
    lines = [
        f"Versions: {versions}. WebDataset reads in a row and shuffles in a buffer. All others read rows at random, also LitData "
        "and MDS, whose own loaders shuffle by shard. HF datasets reads at its opening what it then needs no more, so its cold "
        "pass is not all cold. What a format reads when it is opened, its library included, is not part of its passes."
    ]
    lines += [f"{NAMES[name]} is absent: {why}" for name, why in absent.items()]
    return ["\n\n".join(lines), ""]


def sentences(results: Mapping[str, Result]) -> list[str]:
    """What matters most, in three sentences; those whose measurement is absent are left out."""
    said = []
    if "peers" in results:
        formats = results["peers"]["maps"]["formats"]
        ours, best = formats["ours"], nearest_library(formats)
        again = ""
        if "warm" in results:
            more = results["warm"]
            ratio = number(more["maps"]["formats"]["ours"]["warm"]["over_memmap"])
            again = f"; [in {more['rounds']} rounds](#a-bare-memmap-again-in-more-rounds) a warm map takes {ratio} times a memmap"
        said.append(
            f"To read a feature map of 1.18 MB from the cache takes {times(ours)}; the library nearest to it, "
            f"{NAMES[best]}, takes {times(formats[best])}{again}."
        )
    if {"teacher", "planning"} <= results.keys():
        ratio, planning = results["teacher"]["ratio"], results["planning"]
        said.append(
            f"Filling the cache takes {ratio:.3f} times the CPU time of a bare loop over the same teacher, and to plan "
            f"{number(planning['rows'])} images x {planning['columns']} columns takes {number(planning['cpu_seconds'])} s of CPU "
            "time."
        )
    if {"link", "itm"} <= results.keys():
        live, matching = found(results["link"], "full_size/over_cached/live"), results["itm"]["blip_384"]
        said.append(
            f"A training step of LINK with CLIP-B/16 in the loop takes {number(live)} times the CPU time of one with cached "
            f"maps, and HICO-DET's 600 prompts are matched {number(matching['times_faster_than_expanded'])} times faster than "
            "by the stock BLIP class."
        )
    return ["\n".join(said)]


def times(one: Result) -> str:
    """CPU time of a format, warm and cold."""
    return (
        f"{number(one['warm']['cpu_ms_a_row'])} ms of CPU time warm and {number(one['cold']['cpu_ms_a_row'])} ms cold, "
        f"{number(one['warm']['over_memmap'])} and {number(one['cold']['over_memmap'])} times a bare memmap"
    )


def chart(result: Result) -> str:
    """An SVG drawing of the CPU time that each format takes for a row, warm and cold, one panel for each kind of rows."""
    top, parts = 44, [legend()]
    for kind, name in KINDS.items():
        formats = result[kind]["formats"]
        parts.append(
            text(10, top, f"CPU ms to read one of {number(result[kind]['rows'])} {name}", 'font-weight="bold"')
        )
        largest = max(formats[each][occasion]["cpu_ms_a_row"] for each in formats for occasion in ("warm", "cold"))
        top += 12
        for each in by_warm_time(formats):
            parts += bars(each, formats[each], top, largest)
            top += 2 * BAR + GAP
        top += 28
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - 20}" font-family="sans-serif" font-size="12"'
    return "\n".join([f"<svg {box}>", '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def bars(name: str, one: Result, top: int, largest: float) -> list[str]:
    """One format's two bars, as long as its CPU time is beside the largest one."""
    ours, parts = name == "ours", []
    for y, occasion, fill in ((top, "warm", OURS if ours else WARM), (top + BAR, "cold", COLD)):
        value = one[occasion]["cpu_ms_a_row"]
        width = value / largest * (WIDTH - LEFT - VALUE)
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{fill}"/>')
        parts.append(text(LEFT + width + 4, y + BAR - 1, number(value), 'font-size="9"'))
    style = f'text-anchor="end" fill="{OURS if ours else "black"}"'
    return [*parts, text(LEFT - 8, top + BAR + 4, NAMES[name].strip("*"), style)]


def legend() -> str:
    """What the two bars of a format are."""
    bars = (f'<rect x="{x}" y="8" width="12" height="{BAR}" fill="{fill}"/>' for x, fill in ((10, WARM), (150, COLD)))
    return "".join([*bars, text(26, 17, "warm page cache"), text(166, 17, "cold: from the disk")])


def text(x: float, y: float, words: str, style: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(words)}</text>'
