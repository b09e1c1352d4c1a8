"""A stage together with the stages that it reads, for images of which there is no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from hoi_distill.stages.stage import Batch, Stage, Values


class Chained(Stage):
    """A stage that asks those above it for what it reads. It has no table of its own.

    Args:
        stage: the last one.
        above: what it reads, by the names that ``stage.inputs`` uses.
    """

    def __init__(self, stage: Stage, above: Mapping[str, Stage]) -> None:
        self.stage, self.above = stage, dict(above)
        self.columns, self.output, self.batch_size = stage.columns, stage.output, stage.batch_size

    @override
    def parameters(self) -> dict[str, Any]:
        return self.stage.parameters()

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        for each in (*self.above.values(), self.stage):
            each.open(device, shared)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        read = {name: stage.compute(batch, self._read(name, columns), {}) for name, stage in self.above.items()}
        return self.stage.compute(batch, columns, read)

    def _read(self, name: str, columns: Sequence[str]) -> list[str]:
        """The columns of a stage above that these columns are computed from."""
        found: dict[str, None] = {}
        for column in columns:
            needed = self.stage.dependencies(column)
            found |= dict.fromkeys(self.above[name].columns if needed is None else needed.get(name, ()))
        return list(found)
