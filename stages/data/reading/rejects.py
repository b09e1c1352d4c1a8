"""What a dataset loader does with a bad entry: refuse the file or, leniently, drop the entry, count it and warn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from hoi_distill.storage.errors import UserError

_log = logging.getLogger(__name__)


@dataclass
class Rejects:
    """Call it with one line about each bad entry: the first is an error or, leniently, one more to count.

    where: what stands before every message, the file and, if it holds several, the variable in it.
    """

    where: str
    lenient: bool
    messages: list[str] = field(default_factory=list)

    def __call__(self, message: str) -> None:
        """Raise UserError, or count when lenient."""
        if not self.lenient:
            raise UserError(f"{self.where} {message}")
        self.messages.append(message)

    def warn(self) -> None:
        """One warning at the end if anything was dropped."""
        if count := len(self.messages):
            entries = "entry" if count == 1 else "entries"
            _log.warning("%s dropped %d bad %s, the first: %s", self.where, count, entries, self.messages[0])
