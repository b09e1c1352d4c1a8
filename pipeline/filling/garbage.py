"""Garbage: which configurations want which tables, and moving tables that nobody wants to the trash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict, cast

from hoi_distill.pipeline.planning.plan import TablePlan, folders
from hoi_distill.pipeline.training.binding import TRAINED, trained_folders
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import READ_ONLY, StorageError, UserError, remedy
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.notes import notes_in, read_note, set_note_aside, write_note
from hoi_distill.storage.files.stores import store_of


class WantedNote(TypedDict, total=False):
    """A note in ``registered/``: what a setup wants.

    Attributes:
        name: the configuration's.
        config: the configuration's file.
        overrides: what ``--set`` was given, without keys of the student.
        tables: the folders of its tables.
        trained: the folders of its trained networks.
    """

    name: str
    config: str
    overrides: list[str]
    tables: Required[list[str]]
    trained: list[str]


class UnwantedFolder(TypedDict):
    """A table or a trained network that no setup wants.

    Attributes:
        table: its folder.
        bytes: its size.
        trashed: whether it was moved to the trash.
    """

    table: str
    bytes: int
    trashed: bool


class UsedFolder(TypedDict):
    """A folder that no setup wants, but somebody uses.

    Attributes:
        table: the folder.
        by: who uses it.
    """

    table: str
    by: str


class Garbage(TypedDict):
    """What ``hoi-distill gc`` found and did.

    Attributes:
        registered: the setups.
        unreadable: the setups whose note is damaged.
        unwanted: what no setup wants.
        in_use: what no setup wants, but somebody uses.
        emptied: what was deleted from the trash.
    """

    registered: list[str]
    unreadable: list[str]
    unwanted: list[UnwantedFolder]
    in_use: list[UsedFolder]
    emptied: list[str]


def register(workspace: Workspace, plans: Mapping[str, TablePlan]) -> None:
    """Leave a note of the tables and trained networks that this setup wants.

    A setup is known by its name, file and overrides. A later run of the same setup replaces the note, so that a table of an
    older fingerprint becomes garbage. While a table has no fingerprint yet, the setup still wants those of its stage. A
    cache that cannot be written gets no note: nobody can collect it.

    Args:
        workspace: the setup.
        plans: of all tables.

    Raises:
        StorageError: the note cannot be written for another reason.
    """
    name, config = workspace.config.name, str(workspace.path.resolve())
    chosen = [override for override in workspace.overrides if not override.startswith("student.")]
    suffix = fingerprint({"config": config, "overrides": chosen})[:6]
    place = workspace.cache.root / "registered" / f"{name}-{suffix}.json"
    before: Mapping[str, Any] = {}
    damaged = False
    try:
        before = read_note(place)
    except Damaged:
        damaged = workspace.cache.store.lies(place)
    later = tuple(f"{table_plan.node.stage.name}-" for table_plan in plans.values() if table_plan.node.stage.pending)
    kept = [folder for folder in before.get("tables", []) if later and folder.startswith(later)]
    note: WantedNote = {
        "name": name,
        "config": config,
        "tables": sorted({*folders(plans, workspace.cache), *kept}),
        "trained": sorted(
            {path.name for path in trained_folders(plans)} | set(before.get("trained", []) if later else [])
        ),
        "overrides": chosen,
    }
    try:
        workspace.cache.store.prepare([place.parent])
        if damaged:
            set_note_aside(place)
        write_note(place, note)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise StorageError(f"{place}: {error.strerror}; {remedy(error)} and run again") from error


def registered(cache: Cache) -> tuple[dict[str, WantedNote], list[str]]:
    """The notes of all setups.

    Returns:
        ``{setup: note}``, and the setups whose note cannot be read: it is damaged, or ``check`` set it aside.

    Raises:
        StorageError: the notes cannot be listed.
    """
    sound: dict[str, WantedNote] = {}
    folder = cache.root / "registered"
    try:
        notes, aside = notes_in(folder), notes_in(folder, ".json.bad")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}; {remedy(error)} and run again") from error
    mute = [note.name.removesuffix(".json.bad") for note in aside]
    for note in notes:
        try:
            sound[note.name.removesuffix(".json")] = cast(WantedNote, read_note(note, "tables"))
        except (Damaged, OSError):
            mute.append(note.name.removesuffix(".json"))
    return sound, sorted({*mute} - {*sound})


def collect(cache: Cache, move: bool, grace_seconds: float, forget: Sequence[str]) -> Garbage:
    """Find unwanted tables and trained networks. With ``move``, put them into the trash, and empty old trash.

    A table that a run or a reader has leased is kept. While the note of a setup cannot be read, nobody knows what it wants:
    nothing is moved.

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
    outcome: Garbage = {
        "registered": sorted(setups),
        "unreadable": mute,
        "unwanted": [],
        "in_use": [],
        "emptied": [],
    }
    tables = {table for note in setups.values() for table in note["tables"]}
    trained = {name for note in setups.values() for name in note.get("trained", [])}
    places = {str(root): root / TRAINED for root in (cache.root, cache.local)}.values()
    networks = [place / name for place in places for name in sorted(store_of(place).folders(place))]
    there: list[tuple[set[str], Sequence[Place]]] = [(tables, cache.folders()), (trained, networks)]
    for wanted, folders_there in there:
        for folder in folders_there:
            name = folder.name
            if name in wanted:
                continue
            if name in used:
                outcome["in_use"].append({"table": name, "by": used[name]})
                continue
            size = store_of(folder).bytes_below(folder)
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
    folder = cache.root / "registered"
    inside = cache.store.folders(folder)
    for note in cache.store.names(folder):
        if note.startswith(tuple(f"{stem}.json" for stem in notes)):
            remove = cache.store.delete_folder if note in inside else cache.store.delete
            remove(folder / note)
