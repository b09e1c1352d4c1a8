"""What a cache asks of the place where its files lie. A store keeps small files and large ones; both are whole or not there.

Folders hold files; a store of objects has none, and takes what begins alike as a folder's. Every method takes places of its
own kind. An ``OSError`` says what a store cannot do, with the number that a file system would give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

from hoi_distill.storage.files import owner
from hoi_distill.storage.files.address import Place


class Store(ABC):
    """One kind of place.

    Attributes:
        read_in_threads: from how many files on reading them in threads is quicker.
    """

    read_in_threads: ClassVar[int]

    # ---- what is there ----

    @abstractmethod
    def probe(self, root: Place) -> None:
        """Find out whether the store keeps its promises, before a cache is used.

        Raises:
            OSError: nothing can be written here.
            StorageError: :meth:`create` would replace what is there.
        """

    @abstractmethod
    def prepare(self, folders: Iterable[Place]) -> None:
        """Make folders. Raises ``OSError``: nothing can be written here."""

    @abstractmethod
    def is_folder(self, folder: Place) -> bool:
        """Whether files can lie there."""

    @abstractmethod
    def lies(self, place: Place) -> bool:
        """Whether a file lies there, or anything that takes its place."""

    @abstractmethod
    def is_used(self, folder: Place) -> bool:
        """Whether anything lies in the place of a folder."""

    @abstractmethod
    def names(self, folder: Place) -> set[str]:
        """The files of a folder; none where there is no folder."""

    @abstractmethod
    def folders(self, folder: Place) -> set[str]:
        """The folders of a folder; none where there is no folder."""

    @abstractmethod
    def bytes_below(self, folder: Place) -> int:
        """Bytes of all files below a folder; what goes meanwhile is none."""

    @abstractmethod
    def size(self, place: Place) -> int | None:
        """Bytes of a file, None where there is none."""

    @abstractmethod
    def sizes(self, folder: Place, wanted: Iterable[str]) -> dict[str, int]:
        """Bytes of each of the wanted files that is there, by name."""

    @abstractmethod
    def stamps(self, folder: Place) -> dict[str, Any]:
        """By name what differs, in JSON, once a file has been replaced."""

    @abstractmethod
    def ages(self, folder: Place, clock: Place | None = None) -> dict[str, float]:
        """Seconds since each file was written, by the store's clock. Negative where nobody knows.

        Args:
            folder: where the files are.
            clock: a folder in which the clock is asked, which writes a file for a moment; default: ``folder``.
        """

    @abstractmethod
    def now(self, folder: Place) -> float:
        """What time it is by the clock of which :meth:`ages` speaks, in seconds since 1970."""

    # ---- reading ----

    @abstractmethod
    def read(self, place: Place) -> bytes:
        """A file's bytes, as they are now. Raises ``FileNotFoundError``."""

    @abstractmethod
    def local(self, place: Place, checksum: str | None = None) -> str:
        """The path of a file of this machine that holds the bytes of a file that is never replaced, to map it.

        Args:
            place: the file.
            checksum: 32 hex digits of blake2b, with which bytes that come from elsewhere are compared.

        Raises:
            Damaged: other bytes came.
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def is_local(self, place: Place) -> bool:
        """Whether :meth:`local` would fetch nothing now. Room is made for other copies at any time."""

    @abstractmethod
    def forget(self, place: Place) -> bool:
        """Let :meth:`local` fetch it again. False where it fetches nothing."""

    # ---- writing ----

    @abstractmethod
    def create(self, place: Place, data: bytes | memoryview, scratch: Place) -> bool:
        """Make a file durable whose name is free; False where it is taken, by other bytes or another writer.

        Args:
            place: the file.
            data: its bytes.
            scratch: a folder for drafts beside it.
        """

    @abstractmethod
    def replace(self, place: Place, data: bytes) -> None:
        """Put bytes in the place of what was there."""

    @abstractmethod
    def renew(self, place: Place, data: bytes) -> None:
        """Make a file that holds these bytes young again; write it where it is gone."""

    @abstractmethod
    def publish(
        self, folder: Place, key: str, suffix: str, write: Callable[[BinaryIO], None], scratch: Place
    ) -> tuple[str, int]:
        """Make a payload durable under a name that holds its checksum.

        Args:
            folder: where it belongs.
            key: how its name begins.
            suffix: how its name ends.
            write: writes it to a binary file.
            scratch: a folder for drafts beside it.

        Returns:
            Its name and its size in bytes.
        """

    @abstractmethod
    def delete(self, place: Place) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def move(self, place: Place, target: Place) -> None:
        """Rename a file, or nothing where it has gone. What lies at ``target`` stays, and this one gets a name beside it."""

    @abstractmethod
    def move_folder(self, folder: Place, target: Place) -> None:
        """Rename a folder with all that is in it."""

    @abstractmethod
    def delete_folder(self, folder: Place) -> None:
        """Remove a folder with all that is in it, as far as that can be done."""

    def sweep(self, scratch: Place) -> None:
        """Remove what dead writers left in a folder of drafts."""
        for name, age in self.ages(scratch).items():
            if owner.is_dead(name, age):
                self.delete(scratch / name)
