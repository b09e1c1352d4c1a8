"""What the methods of detected boxes in pairs have in common."""

from __future__ import annotations

import math
from dataclasses import replace

from typing_extensions import override

from hoi_distill.stages.student.method import Method
from hoi_distill.stages.student.pairs.config import BOOKKEEPING, ConfigT


class PairMethod(Method[ConfigT]):
    """A method that trains a network of pairs for a number of steps."""

    bookkeeping = BOOKKEEPING

    @override
    def epochs(self, config: ConfigT, labelled: int, unlabelled: int) -> float:
        return config.steps / (config.steps_in_epoch(labelled, unlabelled) or math.inf)

    @override
    def sized(self, config: ConfigT, labelled: int, unlabelled: int) -> ConfigT:
        if config.epochs is None:
            return config
        steps = math.ceil(config.epochs * config.steps_in_epoch(labelled, unlabelled))
        return replace(config, steps=max(1, steps), epochs=None)

    @override
    def facts(self, config: ConfigT) -> tuple[tuple[str, str], ...]:
        return (("Steps", f"{config.steps:,}"),)
