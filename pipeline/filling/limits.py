"""What limits a run: the shares of its workers' time, and what would shorten the largest."""

from __future__ import annotations

from collections.abc import Mapping

from hoi_distill.workers.timings import ANSWERS, COPYING, ON_CPU, ON_GPU, OPENING, PREPARING, READING, WRITING

ADVICE = {
    OPENING: "The models took longest to load: a run of more images at once hides it.",
    READING: "The disk of the images limits it: a faster disk, or a larger workers.count, since each worker reads by itself.",
    PREPARING: "Decoding and preprocessing limit it: a larger workers.count, on a machine of more cores.",
    ON_CPU: "The teacher on the CPU limits it: a GPU (the table's gpus, or workers.device), or a larger workers.count.",
    ON_GPU: "The teacher on the GPU limits it, as it should: a smaller dtype, batch_size: auto, or more GPUs.",
    COPYING: "Copies from the GPU limit it: a smaller codec, or a larger batch_size.",
    ANSWERS: "The server's answers limit it: a larger in_flight or batch_size, a higher rate, or a faster server.",
    WRITING: "The disk of the cache limits it: a faster one, or a larger shard_rows.",
}
"""One line for each thing that a worker's time may go to."""
LEAST_SECONDS = 1.0
"""A run that was shorter in all is limited by nothing."""


def limit_of(timings: Mapping[str, float]) -> str | None:
    """What most of the time went to; None for a run of no time."""
    return max(timings, key=lambda name: timings[name]) if sum(timings.values()) else None


def limits(timings: Mapping[str, float], least: float = LEAST_SECONDS) -> list[str]:
    """The lines of a run's summary: the shares of the time, and the advice.

    Args:
        timings: seconds of all workers, by the names of :mod:`hoi_distill.workers.timings`.
        least: of a shorter run nothing is said.
    """
    whole, most = sum(timings.values()), limit_of(timings)
    if most is None or whole < least:
        return []
    shares = sorted(((seconds / whole, name) for name, seconds in timings.items()), reverse=True)
    said = ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)
    return [f"Time of the workers: {said}.", f"    {ADVICE[most]}"]
