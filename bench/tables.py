"""What of each measurement the page shows, in which unit. Everything else is in the JSON file beside it."""

from __future__ import annotations

from collections.abc import Callable

from bench.object_tables import objects
from bench.table import Heading, Result, Table
from bench.teacher_tables import ALIGNMENT, ANSWERS, ITM, PAIR_ANSWERS, SERVED, TEACHER, TURN

LINE = [
    Table(
        (
            Heading("wall time", "{}/wall_seconds", "s"),
            Heading("CPU time", "{}/cpu_seconds", "s"),
            Heading("mAP", "{}/map"),
        ),
        (Heading("first run", "first"), Heading("the same again", "again")),
    )
]
AGAIN = [
    Table(
        (
            Heading("`hoi-distill run`", "run_cpu_seconds", "s"),
            Heading("`hoi-distill train --fill`", "train_cpu_seconds", "s"),
        ),
        (Heading("CPU time", ""),),
        "again",
    )
]
WARM = [
    Table(
        (
            Heading("warm, CPU time a map", "{}/warm/cpu_ms_a_row", "ms"),
            Heading("warm, over memmap, median of rounds", "{}/warm/over_memmap"),
            Heading("warm, over memmap, all rounds", "{}/warm/over_memmap_by_round"),
            Heading("cold, CPU time a map", "{}/cold/cpu_ms_a_row", "ms"),
            Heading("cold, over memmap, median of rounds", "{}/cold/over_memmap"),
            Heading("cold, over memmap, all rounds", "{}/cold/over_memmap_by_round"),
        ),
        (Heading("memmap", "maps/formats/memmap"), Heading("stream", "maps/formats/ours")),
    )
]
PLANNING = [
    Table(
        (
            Heading("rows", "rows"),
            Heading("columns", "columns"),
            Heading("wall time", "seconds", "s"),
            Heading("CPU time", "cpu_seconds", "s"),
            Heading("of it stats and digests", "cpu_seconds_digests_and_stats", "s"),
            Heading("CPU time, over the bare stats, median of rounds", "over_bare_stats"),
            Heading("peak resident memory", "peak_rss_bytes", "GiB"),
        )
    )
]
STREAM = [
    Table(
        (
            Heading("memmap", "{}/memmap_samples_per_second", "maps/s"),
            Heading("stream", "{}/stream_samples_per_second", "maps/s"),
            Heading("stream over memmap, median of rounds", "{}/ratio"),
            Heading("stream over memmap, all rounds", "{}/ratios"),
        ),
        (Heading("no loader worker", "results/0"), Heading("two loader workers", "results/1")),
    ),
    Table(
        (
            Heading("first opening, with all checksums", "seconds_to_open/first", "s"),
            Heading("next opening", "seconds_to_open/again", "s"),
        )
    ),
]
READING_FORMS = (
    Heading("memmap", "memmap"),
    Heading("stream", "stream"),
    Heading("a .npy per image", "npy_per_image"),
    Heading("LMDB + pickle", "lmdb_pickle"),
    Heading("torch.save per image", "torch_save"),
)
READING_TURNS = [
    Table(
        (
            Heading("cold map, CPU time", "maps/cold/{}/cpu_ms", "ms"),
            Heading("cold, over memmap", "maps/cold/{}/over_memmap"),
            Heading("cold, bytes read over values", "maps/cold/{}/bytes_over_values"),
            Heading("warm map, CPU time", "maps/warm/{}/cpu_ms", "ms"),
            Heading("warm, over memmap", "maps/warm/{}/over_memmap"),
        ),
        READING_FORMS,
    ),
    Table(
        tuple(
            Heading(f"{shards} shards, {state}{what}", f"scores_{shards}_shards/{state}/{{}}/{key}", unit)
            for shards in (12, 700)
            for state in ("warm", "cold")
            for what, key, unit in (("", "cpu_ms", "ms"), (", over memmap", "over_memmap", ""))
        ),
        (
            Heading("memmap", "memmap"),
            Heading("stream", "stream"),
            Heading("stream, if the rows do not fit into memory", "gathered"),
        ),
        "a row of 600 scores, CPU time",
    ),
    Table(
        (
            Heading("first step of an epoch", "epoch_order/{}/first_step_ms", "ms"),
            Heading("other steps", "epoch_order/{}/other_steps_ms", "ms"),
        ),
        tuple(Heading(f"{rows:,} images", str(rows)) for rows in (37_633, 1_000_000, 10_000_000)),
        "order of an epoch, CPU time",
    ),
]
TASKS = [
    Table(
        (
            Heading("CPU time to make a task", "task/made_ms/{}", "ms"),
            Heading("CPU time to compute it", "task/computed_ms/{}", "ms"),
            Heading("CPU time to commit it", "task/committed_ms/{}", "ms"),
        ),
        (Heading("50 shards", "0"), Heading("5,000 shards", "1"), Heading("40,000 shards", "2")),
    ),
    Table(
        (
            Heading("commit of a 1.18 MB map, CPU time", "map/commit_ms", "ms"),
            Heading("two digests and one write of its bytes", "map/hashed_twice_and_written_ms", "ms"),
        )
    ),
]
SCALE = [
    Table(
        (
            Heading("driver's CPU time a task of 512 rows", "driver/task_ms/{}", "ms"),
            Heading("driver's peak resident memory", "driver/peak_rss_bytes/{}", "GiB"),
        ),
        (Heading("1 M rows", "0"), Heading("10 M rows", "1")),
    ),
    Table(
        (
            Heading("trainer's peak resident memory, 10 M rows, before a cell", "trainer/peak_rss_bytes/1", "GiB"),
            Heading("a task's parcel", "driver/parcel_bytes", "MB"),
        )
    ),
]
VLM_HOI = [
    Table(
        (
            Heading("CPU time a step", "pico/cpu_s_per_step/{}", "s"),
            Heading("over no teacher", "pico/over_no_teacher/{}"),
            Heading("over cached", "pico/over_cached/{}"),
        ),
        (Heading("no teacher", "no_teacher"), Heading("cached", "cached"), Heading("live", "live")),
        "pico",
    ),
    Table(
        (
            Heading("CPU time a step", "full_size/cpu_s_per_step/{}", "s"),
            Heading("over no teacher", "full_size/over_no_teacher/{}"),
            Heading("over cached", "full_size/over_cached/{}"),
        ),
        (
            Heading("no teacher", "no_teacher"),
            Heading("cached", "cached"),
            Heading("live, 8 sentences", "live_8_sentences"),
            Heading("live, 64 sentences", "live_64_sentences"),
        ),
        "published sizes",
    ),
    Table(
        (
            Heading("latency of the pico student", "pico/inference/latency_ms", "ms"),
            Heading("latency at published sizes", "full_size/inference/latency_s", "s"),
        )
    ),
]
LINK_VARIANTS = (
    Heading("cached", "cached"),
    Heading("cached, distilled", "phase_2"),
    Heading("live", "live"),
    Heading("live, augmented", "live_augmented"),
)
LINK = [
    *(
        Table(
            (
                Heading("CPU time a step", f"{size}/cpu_s_per_step/{{}}", "s"),
                Heading("pairs a CPU second", f"{size}/pairs_per_cpu_s/{{}}"),
                Heading("over cached", f"{size}/over_cached/{{}}"),
            ),
            LINK_VARIANTS,
            name,
        )
        for size, name in (("pico", "pico"), ("full_size", "CLIP-B/16, published sizes"))
    ),
    Table(
        (
            Heading("CPU time a step", "most_pairs/{}/cpu_s_per_step", "s"),
            Heading("pairs of a step", "most_pairs/{}/pairs_of_a_step"),
            Heading("pairs a CPU second", "most_pairs/{}/pairs_per_cpu_s"),
            Heading("peak resident memory", "most_pairs/{}/peak_rss_bytes", "GiB"),
        ),
        LINK_VARIANTS[:2],
        "435 pairs an image",
    ),
]
PAIR_HEADS = [
    Table(
        (
            Heading("LINK", "{}/cpu_s_per_step/link", "s"),
            Heading("UPT", "{}/cpu_s_per_step/upt", "s"),
            Heading("PViC", "{}/cpu_s_per_step/pvic", "s"),
            Heading("pair classifier", "{}/cpu_s_per_step/pair_classifier", "s"),
            Heading("UPT over LINK", "{}/over_link/upt"),
            Heading("PViC over LINK", "{}/over_link/pvic"),
            Heading("LINK's products at the speed of one large product", "{}/limit_cpu_s", "s"),
        ),
        (Heading("60 pairs an image", "60_pairs_an_image"), Heading("435 pairs an image", "435_pairs_an_image")),
        "CPU time of a step",
    )
]
EVALUATE = [
    Table(
        (
            Heading("detections", "detections/{}"),
            Heading("wall time of the command", "command_seconds/{}", "s"),
            Heading("CPU time of the command", "command_cpu_seconds/{}", "s"),
            Heading("wall time of the evaluation", "evaluation_seconds/{}", "s"),
            Heading("peak resident memory", "peak_bytes/{}", "GiB"),
        ),
        tuple(Heading(f"n x {times}", f"n x {times}") for times in (1, 2, 4)),
    ),
    Table(
        (
            Heading("growth per doubling", "evaluation_growth_per_doubling"),
            Heading("command with the page of errors", "with_page/seconds", "s"),
        )
    ),
]
MEMORY = [
    Table(
        (
            Heading("planner", "{}/planner_bytes", "MB"),
            Heading("worker", "{}/worker_bytes", "MB"),
            Heading("trainer", "{}/trainer_bytes", "MB"),
        ),
        (Heading("300 images", "arms/0"), Heading("2,400 images", "arms/1")),
        "peak anonymous memory",
    ),
    Table(
        (Heading("worker, 8 times the images", "worker_ratio"), Heading("trainer, 8 times the images", "trainer_ratio"))
    ),
]
USE = [
    Table(
        (
            Heading("bare loop over files", "bare_ms", "ms"),
            Heading("`HOIDetector.stream`", "stream_ms", "ms"),
            Heading("`HOIDetector.stream`, over the bare loop", "stream_over_bare"),
            Heading("`predict --no-draw` on files", "files_ms", "ms"),
            Heading("`predict --no-draw` on files, over the bare loop", "files_over_bare"),
            Heading("bare loop over a video", "bare_video_ms", "ms"),
            Heading("`predict --no-draw` on a video, with tracks", "video_ms", "ms"),
            Heading("`predict --no-draw` on a video, over the bare loop", "video_over_bare"),
            Heading("`predict` on a video, boxes drawn and written", "video_with_boxes_ms", "ms"),
        ),
    )
]

VIEWER = [
    Table(
        (
            Heading("first page", "grid/{}", "ms"),
            Heading("one image", "image/{}", "ms"),
            *(
                Heading(f"{name}, {when}", f"filters/{name}/{turn}/{{}}", "ms")
                for name in ("interaction", "text in captions", "an error kind", "two students", "sorted by one score")
                for turn, when in (("first", "the first time"), ("again", "from then on"))
            ),
            Heading("sorted by contradiction, the first time", "filters/sorted by contradiction/first/{}", "ms"),
            Heading("sorted by contradiction, from then on", "filters/sorted by contradiction/again/{}", "ms"),
        ),
        (
            Heading("CPU time of the server", "server_cpu_ms"),
            Heading("first paint, wall", "paint_ms"),
            Heading("HTML there, wall", "served_ms"),
        ),
        "a view",
    ),
    Table(
        (Heading("resident", "{}/resident_bytes", "MB"), Heading("of it anonymous", "{}/anonymous_bytes", "MB")),
        (Heading("at the start", "memory_at_start"), Heading("after all views", "memory_at_end")),
        "the server's memory",
    ),
]
KILLS = [
    Table(
        (
            Heading("kills", "kills"),
            Heading("cells computed more than once", "cells_computed_more_than_once"),
            Heading("bound: a task for each worker and kill", "bound"),
            Heading("cells committed twice", "cells_committed_twice"),
            Heading("wall time of an undisturbed run", "seconds_undisturbed", "s"),
            Heading("wall time of the last run", "seconds_last_run", "s"),
        )
    )
]
SOAK = [
    Table(
        (
            Heading("sequences", "{}/sequences"),
            Heading("disturbances", "{}/disturbances"),
            Heading("committed cells lost", "{}/lost"),
            Heading("wrong values at the end", "{}/wrong_after_the_end"),
            Heading("wrong values before the check", "{}/wrong_before_check"),
            Heading("tracebacks", "{}/tracebacks"),
            Heading("need a human", "{}/need_a_human"),
            Heading("CPU time a sequence", "{}/cpu_seconds_a_sequence", "s"),
        ),
        (Heading("storage", "storage"), Heading("pipeline", "pipeline")),
    )
]
NAMES = {
    "ours": "**hoi-distill**",
    "memmap": "numpy.memmap",
    "npy": "a .npy per image",
    "torch_save": "torch.save per image",
    "lmdb_pickle": "LMDB + pickle",
    "mds": "MDS (mosaicml-streaming)",
    "litdata": "LitData",
    "webdataset": "WebDataset",
    "lance": "Lance",
    "hf_datasets": "HF datasets",
}
"""Of the formats that ``bench peers`` compares."""
KINDS = {"maps": "maps of 1.18 MB", "scores": "rows of 600 scores"}
READING = (
    Heading("warm, CPU ms a row", "warm/cpu_ms_a_row"),
    Heading("over memmap", "warm/over_memmap"),
    Heading("cold, CPU ms a row", "cold/cpu_ms_a_row"),
    Heading("over memmap", "cold/over_memmap"),
    Heading("cold, wall ms a row", "cold/wall_ms_a_row"),
    Heading("cold, bytes read over values", "cold/bytes_read_over_values"),
    Heading("to open, CPU ms", "open_cpu_ms"),
    Heading("to open, bytes read over values", "open_bytes_read_over_values"),
)
H200 = (
    Heading("dtype", "dtype"),
    Heading("TFLOP", "tflop"),
    Heading("device at peak, ms", "device_ms_at_peak"),
    Heading("decode, CPU ms", "cpu_ms/decode"),
    Heading("preprocess, CPU ms", "cpu_ms/preprocess"),
    Heading("commit, CPU ms", "cpu_ms/commit"),
    Heading("to the device", "bytes_to_device", "MB"),
    Heading("stored", "bytes_stored", "MB"),
    Heading("one card: images/s", "one/images_a_second"),
    Heading("bound by", "one/bound"),
    Heading("cores that keep it busy", "one/cores_that_keep_the_cards_busy"),
    Heading("eight cards: images/s", "eight/images_a_second"),
    Heading("bound by", "eight/bound"),
    Heading("stored, GB/s", "eight/gb_stored_a_second"),
)


def by_warm_time(formats: Result) -> list[str]:
    """The names of formats, the cheapest first."""
    return sorted(formats, key=lambda name: formats[name]["warm"]["cpu_ms_a_row"])


def nearest_library(formats: Result) -> str:
    """The library with the least CPU time on a warm cache."""
    return next(name for name in by_warm_time(formats) if name not in ("ours", "memmap", "npy"))


def peers(result: Result) -> list[Table]:
    """A table for each kind of rows."""
    return [
        Table(
            tuple(
                Heading(NAMES[name], f"{kind}/formats/{name}/{{}}") for name in by_warm_time(result[kind]["formats"])
            ),
            READING,
            KINDS[kind],
        )
        for kind in KINDS
    ]


def planning(result: Result) -> list[Table]:
    """The plan, and where peers were measured a row for each."""
    columns = (Heading("files", "files"), Heading("CPU time", "cpu_seconds", "s"), Heading("what was run", "remark"))
    rows = tuple(Heading(peer["name"], f"peers/{place}/{{}}") for place, peer in enumerate(result.get("peers", ())))
    return [*PLANNING, *([Table(rows, columns, "nothing to do")] if rows else [])]


def h200(result: Result) -> list[Table]:
    """One row for each teacher."""
    rows = tuple(Heading(name, f"teachers/{name}/{{}}") for name in result["teachers"])
    return [Table(rows, H200, "an image")]


def precision(result: Result) -> list[Table]:
    """A row for each seed's mAP and for each seed's CPU time."""
    seeds = list(enumerate(result["seeds"]))
    maps = [Heading(f"mAP, seed {seed}", f"{{}}/map/{place}") for place, seed in seeds]
    times = [Heading(f"CPU time, seed {seed}", f"{{}}/cpu_seconds/{place}", "s") for place, seed in seeds]
    spread = Heading("the difference of the mean mAP, over the spread of float32's seeds", "difference_over_spread")
    return [
        Table((*maps, *times), (Heading("float32", "fp32"), Heading("bfloat16", "bf16")), "a training"),
        *([Table((spread,))] if "difference_over_spread" in result else []),
    ]


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "peers": peers,
    "warm": lambda _: WARM,
    "h200": h200,
    "line": lambda _: LINE,
    "again": lambda _: AGAIN,
    "planning": planning,
    "stream": lambda _: STREAM,
    "reading": lambda _: READING_TURNS,
    "tasks": lambda _: TASKS,
    "scale": lambda _: SCALE,
    "teacher": lambda _: TEACHER,
    "turn": lambda _: TURN,
    "served": lambda _: SERVED,
    "itm": lambda _: ITM,
    "answers": lambda _: ANSWERS,
    "pair_answers": lambda _: PAIR_ANSWERS,
    "vlm_hoi": lambda _: VLM_HOI,
    "link": lambda _: LINK,
    "pair_heads": lambda _: PAIR_HEADS,
    "precision": precision,
    "alignment": lambda _: ALIGNMENT,
    "evaluate": lambda _: EVALUATE,
    "use": lambda _: USE,
    "viewer": lambda _: VIEWER,
    "objects": objects,
    "memory": lambda _: MEMORY,
    "kills": lambda _: KILLS,
    "soak": lambda _: SOAK,
}
"""Of each measurement."""
