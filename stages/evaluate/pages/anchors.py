"""Where a page of a run's images has those behind a figure: the ends of addresses that other pages link to."""

from __future__ import annotations


def class_anchor(hoi: int) -> str:
    """The images of a class."""
    return f"#class-{hoi}"


def kind_anchor(name: str) -> str:
    """The images of a kind of error, a key of ``KINDS``."""
    return f"#kind-{name.replace(' ', '-')}"


def miss_anchor(reason: str) -> str:
    """The missed pairs of a reason, a key of ``MISSES``."""
    return f"#missed-{reason.replace(' ', '-')}"


def confusion_anchor(annotated: int, said: int) -> str:
    """The images of one class that was detected as another."""
    return f"#class-{annotated}-as-{said}"
