"""What can be asked of the images: a query in the words of an address, checked, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES
from hoi_distill.storage.errors import UserError, did_you_mean

ERROR_KINDS = ("any", *KINDS, "missed", *(f"missed: {reason}" for reason in MISSES))
"""What ``kind`` may be: a kind of the decisive detections, or a reason of the missed pairs; "any" and "missed" mean all."""
SORTS = {
    "dataset": "as in the dataset",
    "name": "name",
    "pairs": "annotated pairs",
    "score": "the teacher's score of the interaction",
    "contradiction": "lowest score of an annotated interaction",
    "tables": "how much two score tables differ",
    "found": "share of pairs that the student found",
    "students": "pairs that only one of two students found",
}
BY_TEACHER = ("score", "tables")
"""Orders that ask about images that are not annotated with the interaction, too."""


@dataclass(frozen=True)
class Query:
    """A question about the images. "" means that a part asks nothing.

    Attributes:
        split: only images of this split.
        verb: only annotated pairs, or detections where ``kind`` is one of those, of this verb.
        object: of this object.
        interaction: of this class, as "verb object".
        text: only images whose name or caption has this text, in any case.
        cells: "TABLE failed", "TABLE stale", "TABLE lost" or "TABLE empty": images with such a cell.
        run: the student whose errors are meant.
        kind: one of :data:`ERROR_KINDS`.
        on: the annotated class that a detection of a wrong class lies on, as "verb object".
        against: another student, shown beside the first. The order ``students`` needs it, and leaves out images of which
            both found the same pairs.
        scores: the table whose scores are meant.
        other: another table of scores.
        sort: one of :data:`SORTS`.
        down: "1" for falling order.
        page: from "1" on.
    """

    split: str = ""
    verb: str = ""
    object: str = ""
    interaction: str = ""
    text: str = ""
    cells: str = ""
    run: str = ""
    kind: str = ""
    on: str = ""
    against: str = ""
    scores: str = ""
    other: str = ""
    sort: str = ""
    down: str = ""
    page: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Query:
        """A query from the parts of an address.

        Raises:
            UserError: a part that there is not, or a kind, order or page that is none.
        """
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UserError(
                    f"{name}: no such part of an address{did_you_mean(name, names)}; there are {', '.join(names)}"
                )
        query = cls(**{name: value.strip() for name, value in given.items()})
        for name, value, allowed in (("kind", query.kind, ERROR_KINDS), ("sort", query.sort, SORTS)):
            if value and value not in allowed:
                raise UserError(
                    f"{name}: {value!r} is none{did_you_mean(value, allowed)}; there are {', '.join(allowed)}"
                )
        if query.page and not (query.page.isascii() and query.page.isdigit() and int(query.page[:9]) > 0):
            raise UserError(f"page: {query.page!r} is no number from 1 on")
        if (query.kind or query.on or query.against) and not query.run:
            raise UserError("run: choose a run whose errors are meant")
        return query

    def address(self, **changes: str) -> str:
        """The end of the address of this query with some parts changed: "" or "?split=test"."""
        told = urlencode(replace(self, **changes).parts(), errors="backslashreplace")
        return f"?{told}" if told else ""

    def parts(self) -> dict[str, str]:
        """What it asks, ``{part: value}``."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}

    def with_only(self, **parts: str) -> Query:
        """A query of these parts alone."""
        return Query(**parts)

    @property
    def number(self) -> int:
        """The page, from 1 on."""
        return int(self.page[:9] or 1)
