"""The teacher's answers cached once, light human-object interaction students trained from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hoi_distill.pipeline.detector import HOIDetector
    from hoi_distill.pipeline.hoi_result import HOIResult

__all__ = ["HOIDetector", "HOIResult"]


def __getattr__(name: str) -> Any:
    """The classes that a user of a trained student needs. They are imported when they are asked for."""
    if name == "HOIDetector":
        from hoi_distill.pipeline.detector import HOIDetector

        return HOIDetector
    if name == "HOIResult":
        from hoi_distill.pipeline.hoi_result import HOIResult

        return HOIResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
