"""The folder of a table: what table.json says, and the commit records. On disk, or below a prefix of an object store, it is

table.json    the canonical record, the output's description, the Arrow type of a cell
shards/       payloads, immutable            commits/  commit records, immutable, and ``.bad`` markers
bad/          what check set aside           tmp/      what writers are writing
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from hoi_distill.storage.damage import Damaged, damage
from hoi_distill.storage.digests import canonical_json, digest_bytes, fingerprint
from hoi_distill.storage.errors import StorageError, remedy
from hoi_distill.storage.files.address import ObjectPath, place_at
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.records import Record, load_record
from hoi_distill.storage.shards.codecs import Codec

_RECORD = re.compile(r"[0-9a-f]{32}-\d+\.(commit|drop)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a commit has to know of the records that a table had when the commit was planned.

    Attributes:
        newest_ns: when the newest record was made. The commit's record is made later, whatever the clock says.
        drops: names of the ``.drop`` records.
    """

    newest_ns: int = 0
    drops: tuple[str, ...] = ()


class TableFolder:
    """A table's description and its commit records.

    Attributes:
        dir: the folder.
        store: what keeps it.
        name: the stage's name.
        fingerprint: 32 hex digits.
        record: what the fingerprint is of.
        output: what a cell looks like, see :meth:`hoi_distill.storage.cache.Cache.table`.
        type: the Arrow type of a cell, None for tensors.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | ObjectPath, description: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            folder: where the table lies, a path or an object store's address.
            description: what table.json says, where the caller knows.

        Raises:
            Damaged: table.json is missing or not what was written.
            StorageError: it cannot be read.
        """
        self.dir = place_at(folder)
        self.store = store_of(self.dir)
        try:
            with damage(f"table {self.dir}: table.json"):
                self._describe(
                    json.loads(self.store.read(self.dir / "table.json")) if description is None else description
                )
                stated = self.fingerprint, self.record.get("output", self.output)
                if description is None and stated != (fingerprint(self.record), self.output):
                    raise ValueError("the record is not the fingerprint's")
        except OSError as error:
            raise StorageError(f"table {self.dir}: table.json: {error.strerror}; make it readable") from error
        self._lock = threading.Lock()
        self._records: dict[str, Record | Damaged] = {}
        self._bad: set[str] = set()
        self._only: tuple[str, ...] | None = None

    def _describe(self, description: Mapping[str, Any]) -> None:
        self.name: str = description["name"]
        self.fingerprint: str = description["fingerprint"]
        self.record: dict[str, Any] = description["record"]
        self.output: dict[str, Any] = description["output"]
        self.type: pa.DataType | None = None
        if description["type"] is not None:
            self.type = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(description["type"]))).field(0).type

    @property
    def codec(self) -> Codec | None:
        """How tensor cells are encoded; None for a table of Arrow cells."""
        return Codec(self.output["codec"], tuple(self.output["shape"])) if self.type is None else None

    def only(self, names: Sequence[str]) -> Self:
        """The table as far as some of its commit records tell. What a task reads or writes is in a few of them, and costs what
        these cost, however many there are.

        Args:
            names: the records' names. One that is not there counts as none.
        """
        view = object.__new__(type(self))  # what says what the table is, is not read again
        vars(view).update(vars(self))
        view._lock, view._records, view._bad, view._only = threading.Lock(), {}, set(), tuple(names)
        return view

    def seen(self) -> Seen:
        """What a commit that is planned now has to know."""
        records = self.records()
        drops = tuple(sorted(record.name for record in records if record.is_drop))
        return Seen(max((record.header["created_ns"] for record in records), default=0), drops)

    def _names(self) -> set[str]:
        """What lies in ``commits/``, as far as this table looks."""
        if self._only is None:
            return self.store.names(self.dir / "commits")
        names = [*self._only, *(f"{name}.bad" for name in self._only)]
        return {name for name in names if self.store.lies(self.dir / "commits" / name)}

    def records(self) -> list[Record]:
        """All sound commit records, in the order in which they merge. Only new ones are read."""
        with self._lock, self.errors("commits"):
            names = self._names()
            self._bad = {name for name in names if name.endswith(".bad")}
            names = {name for name in names - self._bad if _RECORD.fullmatch(name)}
            for gone in self._records.keys() - names:
                del self._records[gone]
            new = sorted(names - self._records.keys())
            if len(new) > self.store.read_in_threads:
                with ThreadPoolExecutor(8) as pool:
                    self._records.update(zip(new, pool.map(self._load, new, chunksize=16), strict=True))
            else:
                self._records.update((name, self._load(name)) for name in new)
            sound = [record for record in self._records.values() if isinstance(record, Record)]
        return sorted(sound, key=lambda record: record.order)

    def _load(self, name: str) -> Record | Damaged:
        try:
            return load_record(self.dir / "commits" / name)
        except Damaged as error:
            _log.warning("%s; until then it counts as none", error)
            return error

    def broken_records(self) -> dict[str, str]:
        """``{name: why}`` of the records that cannot be read; as of the last :meth:`records`."""
        return {name: error.reason for name, error in self._records.items() if isinstance(error, Damaged)}

    def forget_broken(self) -> None:
        """Let :meth:`records` read again what could not be read."""
        with self._lock:
            for name in self.broken_records():
                del self._records[name]

    def held(self) -> bytes:
        """16 bytes that name the records and payloads in the folder, by names and stamps. While they stay the same, so does
        what the table holds."""
        with self.errors("commits"):
            held = [sorted(self.store.stamps(self.dir / part).items()) for part in ("commits", "shards")]
        return digest_bytes(canonical_json(held))

    def is_set_aside(self, record: Record) -> bool:
        """Whether check found its payload bad."""
        return f"{record.name}.bad" in self._bad

    def live_names(self, records: Sequence[Record]) -> set[str]:
        """Names of the records whose payload is there, whole in size and not set aside."""
        payloads = {payload for record in records if (payload := record.header["payload"]) is not None}
        with self.errors("shards"):
            sizes = self.store.sizes(self.dir / "shards", payloads)
        return {
            record.name
            for record in records
            if (payload := record.header["payload"]) is None
            or (sizes.get(payload) == record.header["bytes"] and not self.is_set_aside(record))
        }

    @contextlib.contextmanager
    def errors(self, shard: str) -> Iterator[None]:
        """Say which table and shard an I/O error struck, and what helps."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            number = getattr(error, "errno", None)
            mend = "`hoi-distill check` finds it" if number is None else remedy(error)
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"table {self.dir}, shard {shard}: {reason}; committed cells are intact; {mend} and run again"
            ) from error
