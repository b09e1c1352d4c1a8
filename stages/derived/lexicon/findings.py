"""What a text says: interactions that are taken, and phrases that are dropped with a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hoi_distill.stages.data.triplet_cells import UNKNOWN_OBJECT, UNKNOWN_PAIR, UNKNOWN_VERB

__all__ = ["UNKNOWN_OBJECT", "UNKNOWN_PAIR", "UNKNOWN_VERB"]
NO_OBJECT = "no object"
NO_VERB = "no verb"
NOT_A_PERSON = "the subject is not a person"
NO_AGENT = "nobody is named who does it"
NEGATED = "negated"
INTENDED = "only intended"
DOUBTFUL = "doubtful"
QUESTION = "a question"


@dataclass(frozen=True)
class Triplet:
    """A person does this.

    Attributes:
        verb: Index of the vocabulary.
        obj: Index of the vocabulary.
        phrase: The words that say so.
    """

    verb: int
    obj: int
    phrase: str


@dataclass(frozen=True)
class Drop:
    """A phrase that was not taken.

    Attributes:
        phrase: The words.
        reason: One of this module's constants.
        doing: ``(lemma, preposition)`` that an aligner may still place, else None.
        obj: The object's index, or a noun that names no object of the vocabulary.
    """

    phrase: str
    reason: str
    doing: tuple[str, str] | None = None
    obj: int | str = -1


Finding = Triplet | Drop


@dataclass
class Reading:
    """All findings of a text.

    Attributes:
        triplets: ``{(verb, object): phrase}`` with the first phrase that says so.
        dropped: In order of mention.
    """

    triplets: dict[tuple[int, int], str] = field(default_factory=dict)
    dropped: list[Drop] = field(default_factory=list)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keep findings in their order."""
        for finding in findings:
            if isinstance(finding, Drop):
                self.dropped.append(finding)
            else:
                self.triplets.setdefault((finding.verb, finding.obj), finding.phrase)
