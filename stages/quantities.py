"""Quantities as people read them: paces, durations and sizes."""

from __future__ import annotations

from collections.abc import Mapping


def pace(per_second: float, unit: str) -> str:
    """``577/s``, ``3.4/s``; below one, the time of a unit: ``2.5 s/cell``, ``3 min 20 s/cell``."""
    if per_second >= 1:
        return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"
    seconds = 1 / per_second
    return (f"{seconds:.1f} s" if seconds < 100 else duration(seconds)) + f"/{unit}"


def duration(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """``812 B``, ``3.4 MB``: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def counted(counts: Mapping[str, float]) -> str:
    """What a stage counted: "1,204 requests, 13 retries, 988,000 prompt tokens, price 0.164"."""
    return ", ".join(
        f"{name} {number:.3g}" if name == "price" else f"{number:,.0f} {name}" for name, number in counts.items()
    )
