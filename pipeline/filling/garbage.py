"""Garbage: which setups want which tables, and moving those that nobody wants to the trash."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hoi_distill.pipeline.planning.plan import TablePlan, folders
from hoi_distill.pipeline.training.binding import trained_folders
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import READ_ONLY, StorageError, UserError, remedy
from hoi_distill.storage.files.notes import notes_in, read_note, set_note_aside, write_note


def register(workspace: Workspace, plans: Mapping[str, TablePlan]) -> None:
    """Leave a note of the tables and trained networks that this setup wants. A setup is known by its name, file and
    overrides; a later run with the same replaces the note, so that a table of an older fingerprint becomes garbage. While a
    table has no fingerprint yet, the setup goes on wanting those of its stage. A cache that cannot be written is nobody's to
    collect, and gets no note."""
    note: dict[str, Any] = {"name": workspace.config.name, "config": str(workspace.path.resolve())}
    chosen = [override for override in workspace.overrides if not override.startswith("student.")]
    suffix = fingerprint({"config": note["config"], "overrides": chosen})[:6]
    place = workspace.cache.root / "registered" / f"{workspace.config.name}-{suffix}.json"
    before: Mapping[str, Any] = {}
    damaged = False
    try:
        before = read_note(place)
    except Damaged:
        damaged = os.path.lexists(place)
    later = tuple(f"{table_plan.node.stage.name}-" for table_plan in plans.values() if table_plan.node.stage.pending)
    kept = [name for name in before.get("tables", []) if later and name.startswith(later)]
    note["tables"] = sorted({*folders(plans, workspace.cache), *kept})
    note["trained"] = sorted(
        {path.name for path in trained_folders(plans)} | set(before.get("trained", []) if later else [])
    )
    try:
        place.parent.mkdir(exist_ok=True)
        if damaged:
            set_note_aside(place)
        write_note(place, {**note, "overrides": chosen})
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise StorageError(f"{place}: {error.strerror}; {remedy(error)} and run again") from error


def registered(cache: Cache) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """``{setup: {"name": ..., "config": file, "tables": [folder names], ...}}``, and the setups whose note says nothing,
    because it is damaged or ``check`` set it aside."""
    sound: dict[str, dict[str, Any]] = {}
    folder = cache.root / "registered"
    try:
        notes, aside = notes_in(folder), notes_in(folder, ".json.bad")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}; {remedy(error)} and run again") from error
    mute = [note.name.removesuffix(".json.bad") for note in aside]
    for note in notes:
        try:
            sound[note.stem] = read_note(note, "tables")
        except (Damaged, OSError):
            mute.append(note.stem)
    return sound, sorted({*mute} - {*sound})


def collect(cache: Cache, move: bool, grace_seconds: float, forget: Sequence[str]) -> dict[str, Any]:
    """Find unwanted tables and trained networks and, with ``move``, put them into the trash; empty old trash.

    Runs and readers leave expiring notes; a table with one is kept. While a setup's note says nothing, what it wants is not
    known: nothing is moved.

    Args:
        cache: where to look.
        move: whether to move what is unwanted.
        grace_seconds: how old trash must be to be deleted.
        forget: setups that want nothing any more.

    Raises:
        UserError: a setup to forget is not registered.
    """
    for name in forget:
        _forget(cache, name)
    setups, mute = registered(cache)
    move = move and not mute
    used = cache.leased()
    outcome: dict[str, Any] = {
        "registered": sorted(setups),
        "unreadable": mute,
        "unwanted": [],
        "in_use": [],
        "emptied": [],
    }
    tables = {table for note in setups.values() for table in note["tables"]}
    trained = {name for note in setups.values() for name in note.get("trained", [])}
    for wanted, folders_there in (
        (tables, cache.folders()),
        (trained, sorted((cache.root / "trained").glob("*"))),
    ):
        for folder in folders_there:
            name = folder.name
            if name in wanted:
                continue
            if name in used:
                outcome["in_use"].append({"table": name, "by": used[name]})
                continue
            size = folder_bytes(folder)
            if move:
                cache.trash(folder)
            outcome["unwanted"].append({"table": name, "bytes": size, "trashed": move})
    if move:
        outcome["emptied"] = cache.empty_trash(grace_seconds)
    return outcome


def _forget(cache: Cache, name: str) -> None:
    """Remove the notes of a setup, by its name or its note's."""
    setups, mute = registered(cache)
    notes = [stem for stem, note in setups.items() if name in (stem, note.get("name"))]
    notes += [stem for stem in mute if name in (stem, stem.rpartition("-")[0])]
    if not notes:
        raise UserError(f"--forget {name}: not registered; there are {', '.join([*setups, *mute]) or 'none'}")
    for stem in notes:
        for note in (cache.root / "registered").glob(f"{stem}.json*"):
            if note.is_dir() and not note.is_symlink():
                shutil.rmtree(note)
            else:
                note.unlink()


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; what goes meanwhile is none."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
