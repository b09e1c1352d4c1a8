"""What the methods of detected boxes in pairs have in common."""

from __future__ import annotations

from typing_extensions import override

from hoi_distill.stages.student.method import Method
from hoi_distill.stages.student.pairs.config import BOOKKEEPING, ConfigT


class PairMethod(Method[ConfigT]):
    """A method that trains a network of pairs for a number of steps."""

    bookkeeping = BOOKKEEPING

    @override
    def epochs(self, config: ConfigT, labelled: int, unlabelled: int) -> float:
        return config.epochs(labelled, unlabelled)

    @override
    def facts(self, config: ConfigT) -> tuple[tuple[str, str], ...]:
        return (("Steps", f"{config.steps:,}"),)
