"""Garbage: which setups want which tables, and moving those that nobody wants to the trash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.pair_teachers import trained_folders
from pipeline.plan import TablePlan, folders
from pipeline.setup import Setup
from storage.cache import Cache
from storage.digests import fingerprint
from storage.errors import UserError


def register(setup: Setup, plans: Mapping[str, TablePlan]) -> None:
    """Leave a note of the tables and trained networks that this setup wants. A setup is known by its name, file and
    overrides; a later run with the same replaces the note, so that a table of an older fingerprint becomes garbage. While a
    table has no fingerprint yet, the setup goes on wanting those of its stage."""
    folder = setup.cache.root / "registered"
    folder.mkdir(exist_ok=True)
    note: dict[str, Any] = {"config": str(setup.path.resolve())}
    chosen = [override for override in setup.overrides if not override.startswith("student.")]
    suffix = fingerprint({"config": note["config"], "overrides": chosen})[:6]
    place = folder / f"{setup.config.name}-{suffix}.json"
    before = json.loads(place.read_text()) if place.exists() else {}
    later = tuple(f"{made.node.stage.name}-" for made in plans.values() if made.node.stage.unbound)
    kept = [name for name in before.get("tables", []) if later and name.startswith(later)]
    note["tables"] = sorted({*folders(plans, setup.cache), *kept})
    note["trained"] = sorted(
        {path.name for path in trained_folders(plans)} | set(before.get("trained", []) if later else [])
    )
    draft = folder / f".{setup.config.name}-{os.getpid()}"
    draft.write_text(json.dumps({"name": setup.config.name, **note, "overrides": chosen}, indent=1))
    os.replace(draft, place)


def registered(cache: Cache) -> dict[str, dict[str, Any]]:
    """``{setup: {"config": file, "tables": [folder names]}}``."""
    notes = sorted((cache.root / "registered").glob("[!.]*.json"))
    return {note.stem: json.loads(note.read_text()) for note in notes}


def collect(cache: Cache, move: bool, grace_seconds: float, forget: Sequence[str]) -> dict[str, Any]:
    """Find unwanted tables and, with ``move``, put them into the trash; empty trash older than the grace period.

    Runs and readers leave expiring notes; a table with one is kept.
    """
    for name in forget:
        setups = registered(cache)
        notes = [stem for stem, note in setups.items() if name in (stem, note["name"])]
        if not notes:
            raise UserError(f"--forget {name}: not registered; there are {', '.join(setups) or 'none'}")
        for stem in notes:
            (cache.root / "registered" / f"{stem}.json").unlink()
    setups = registered(cache)
    wanted = {table for note in setups.values() for table in note["tables"]}
    used = cache.leased()
    outcome: dict[str, Any] = {"registered": sorted(setups), "unwanted": [], "in_use": [], "emptied": []}
    for table in cache.tables():
        name = table.dir.name
        if name in wanted:
            continue
        if name in used:
            outcome["in_use"].append({"table": name, "by": used[name]})
            continue
        size = folder_bytes(table.dir)
        if move:
            cache.trash(table)
        outcome["unwanted"].append({"table": name, "bytes": size, "trashed": move})
    kept = {name for note in setups.values() for name in note.get("trained", [])}
    for network in sorted((cache.root / "trained").glob("*")):
        if network.name in used and network.name not in kept:
            outcome["in_use"].append({"table": network.name, "by": used[network.name]})
        elif network.name not in kept:
            size = folder_bytes(network)
            if move:
                cache.trash(network)
            outcome["unwanted"].append({"table": network.name, "bytes": size, "trashed": move})
    if move:
        outcome["emptied"] = cache.empty_trash(grace_seconds)
    return outcome


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
