"""What the page shows of :mod:`bench.bench_objects`."""

from __future__ import annotations

from bench.table import Heading, Result, Table

EPOCHS = (Heading("a link of 25 MB/s", "first_epoch_over_link"), Heading("the loopback", "first_epoch"))


def objects(result: Result) -> list[Table]:
    """Filling, committing, reading and planning. A first epoch has a column for each network over which it was measured."""
    epochs = tuple(column for column in EPOCHS if column.key in result)
    plans = tuple(
        Heading(f"{name}, {rows} rows", f"{rows}/{kind}")
        for rows in result["planning"]
        for name, kind in (("first plan of a machine", "first"), ("next", "next"))
    )
    return [
        Table(
            (
                Heading("images, two views each, by a teacher of BLIP-base's size", "fill/images"),
                Heading("filled on disk, CPU time", "fill/cpu_seconds/disk", "s"),
                Heading("filled in the store", "fill/cpu_seconds/objects", "s"),
                Heading("the store over the disk", "fill/over_disk"),
            )
        ),
        Table(
            (
                Heading("images, two views of BLIP-base's maps each", "rows"),
                Heading("commits on disk, CPU time", "commit_cpu_seconds/disk", "s"),
                Heading("commits in the store", "commit_cpu_seconds/objects", "s"),
                Heading("more an image", "commit_more_ms_an_image", "ms"),
                Heading("a warm epoch from local copies, CPU time", "warm_cpu_seconds/stream", "s"),
                Heading("from a memmap", "warm_cpu_seconds/memmap", "s"),
                Heading("speed of the memmap", "warm_of_memmap", "%"),
            )
        ),
        Table(
            (
                Heading("a first epoch, wall time", "{}/seconds/stream", "s"),
                Heading("a bare download", "{}/seconds/download", "s"),
                Heading("speed of the download", "{}/of_download", "%"),
            ),
            epochs,
        ),
        Table(
            (
                Heading("records", "planning/{}/records"),
                Heading("requests", "planning/{}/requests"),
                Heading("of them lists", "planning/{}/lists"),
                Heading("CPU time", "planning/{}/cpu_seconds", "s"),
                Heading("peak memory", "planning/{}/peak_rss_bytes", "GiB"),
            ),
            plans,
        ),
    ]
