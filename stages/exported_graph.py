"""A network as one graph: what an export writes, and what its caller gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ExportedGraph:
    """A network that is exported.

    Attributes:
        name: of its file, without a suffix.
        module: in evaluation mode, on the CPU. It takes the inputs in their order.
        inputs: an example of each input, by name.
        outputs: their names, in order.
        free: axes of an input that have any length, with the name of that length: ``{"boxes": {0: "instances"}}``. All
            others have the length of the example.
        settings: what the caller of the graph has to know, as plain values.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
