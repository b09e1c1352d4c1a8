"""Garbage: tables that no registered setup wants and nobody uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.cache import Cache


def collect(cache: Cache, move: bool, grace_seconds: float, forget: Sequence[str]) -> dict[str, Any]:
    """Find unwanted tables and, with ``move``, put them into the trash; empty trash older than the grace period.

    A setup is registered by ``hoi-distill run`` under its name. Runs and readers leave expiring notes; a table with one
    is kept.
    """
    for name in forget:
        cache.unregister(name)
    registered = cache.registered()
    wanted = {fingerprint for entry in registered.values() for fingerprint in entry["tables"]}
    used = cache.leased()
    outcome: dict[str, Any] = {"registered": sorted(registered), "unwanted": [], "in_use": [], "emptied": 0}
    for table in cache.tables():
        if table.fingerprint in wanted:
            continue
        if table.fingerprint in used:
            outcome["in_use"].append({"table": table.dir.name, "by": used[table.fingerprint]})
            continue
        row = {"table": table.dir.name, "bytes": sum(f.stat().st_size for f in table.dir.rglob("*") if f.is_file())}
        if move:
            cache.trash(table)
        outcome["unwanted"].append({**row, "trashed": move})
    if move:
        outcome["emptied"] = cache.empty_trash(grace_seconds)
    return outcome
