"""``metrics.jsonl``, what a training has logged: one JSON record a line, each with its ``step``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records, and how many lines are none (a killed writer leaves half of one, a bad disk worse). A training that has
    logged nothing has none of either."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    found = [record for line in lines if (record := _record(line)) is not None]
    return found, len(lines) - len(found)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        sound = math.isfinite(record["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return record if sound else None
