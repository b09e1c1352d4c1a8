"""A folder of files that one machine made and others need, in a cache's object store: whole or not there, as a shard is.

files.json              by name the object of each file; it is created last, and of several machines the first one's stands
file-<checksum>.<type>  a file
"""

from __future__ import annotations

import functools
import json
import shutil
import threading
from pathlib import Path
from typing import BinaryIO

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import canonical_json, digest_bytes
from hoi_distill.storage.errors import StorageError, remedy
from hoi_distill.storage.files.address import ObjectPath, Place
from hoi_distill.storage.files.atomic import atomic_path
from hoi_distill.storage.files.local_copies import folder_of
from hoi_distill.storage.files.lock import alone
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.shards.payload import stated_checksum

_FILES = "files.json"


def share(folder: Path, place: ObjectPath) -> None:
    """Put a folder of files, without folders in it, into a store; nothing where another machine's is there already.

    Raises:
        OSError: the store or the folder fails.
    """
    if is_shared(place):
        return
    store, held = store_of(place), {}
    for file in sorted(folder.iterdir()):
        held[file.name], _ = store.publish(place, "file", file.suffix, functools.partial(_copy, file), place)
    store.create(place / _FILES, canonical_json(held), place)


def is_shared(place: ObjectPath) -> bool:
    """Whether a folder was shared there."""
    return store_of(place).lies(place / _FILES)


def on_this_machine(place: Place) -> Path:
    """A folder on a disk that holds what was shared: the path itself, or for an address a copy, verified when it came.

    One process of a machine makes the copy; the others wait for it.

    Raises:
        StorageError: nothing was shared there, it is not whole, or it cannot be read for the moment.
    """
    if not isinstance(place, ObjectPath):
        return place
    store = store_of(place)
    try:
        said = store.read(place / _FILES)
        folder = folder_of(place) / digest_bytes(said).hex()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f"{folder.name}.lock"), threading.Event(), lambda: None):
            if not folder.is_dir():
                with atomic_path(folder) as draft:
                    draft.mkdir()
                    for name, held in json.loads(said).items():
                        shutil.copyfile(store.local(place / held, stated_checksum(held)), draft / name)
    except (FileNotFoundError, Damaged) as error:
        raise StorageError(f"{place}: not whole; remove what is left of it and run again") from error
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror}; {remedy(error)} and run again") from error
    return folder


def _copy(file: Path, sink: BinaryIO) -> None:
    with open(file, "rb") as source:
        shutil.copyfileobj(source, sink)
