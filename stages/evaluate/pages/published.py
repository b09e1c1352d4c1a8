"""What a paper reports, beside what was measured here, in the paper's own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Settings = Mapping[str, Mapping[str, float | None]]
"""Means of one run in percent, ``{setting: {set: mean}}``."""


@dataclass(frozen=True)
class Own:
    """A mean of a run that a published figure is set beside.

    Attributes:
        label: what tells it from another one for the same figure.
        setting: a key of :data:`Settings`.
        key: the set of classes in it.
    """

    label: str
    setting: str
    key: str


def _roles(scenario: int, before: str = "") -> tuple[Own, ...]:
    return tuple(Own(f"{before}{count} roles", f"scenario_{scenario}", f"roles_{count}") for count in (24, 25))


FIGURES: Mapping[str, tuple[str, tuple[Own, ...]]] = {
    "full": ("full", (Own("", "default", "full"),)),
    "rare": ("rare", (Own("", "default", "rare"),)),
    "non_rare": ("non-rare", (Own("", "default", "non_rare"),)),
    "unseen": ("unseen", (Own("", "zero_shot", "unseen"),)),
    "seen": ("seen", (Own("", "zero_shot", "seen"),)),
    "known_object_full": ("known object, full", (Own("", "known_object", "full"),)),
    "known_object_rare": ("known object, rare", (Own("", "known_object", "rare"),)),
    "known_object_non_rare": ("known object, non-rare", (Own("", "known_object", "non_rare"),)),
    "scenario_1": ("role AP, scenario 1", _roles(1)),
    "scenario_2": ("role AP, scenario 2", _roles(2)),
    "role_ap": ("role AP", (*_roles(1, "scenario 1, "), *_roles(2, "scenario 2, "))),
}
"""``{key: (title, what of ours stands beside it)}``. ``role_ap`` is V-COCO's of a source that does not say which scenario. No
paper here says whether it averages over 24 or 25 roles, so both of ours are shown."""


@dataclass(frozen=True)
class Published:
    """Figures that a paper reports.

    Attributes:
        source: the paper and its table, and who read it there if it was not read here.
        figures: in percent, by a key of :data:`FIGURES`.
    """

    source: str
    figures: Mapping[str, float]


class Measured(Protocol):
    """A run: its means."""

    @property
    def settings(self) -> Settings:
        """Of the dataset's own protocol, where it has one."""


class Line(Protocol):
    """An arm: its runs, and what is published of it."""

    @property
    def name(self) -> str:
        """Of the arm."""

    @property
    def runs(self) -> Sequence[Measured]:
        """One a seed."""

    @property
    def published(self) -> Published | None:
        """None where nothing is known."""


Cell = float | tuple[float, ...] | None
"""A published figure, or ours of each seed; None or () where there is none."""


@dataclass(frozen=True)
class Comparison:
    """The table of ours beside the papers'.

    Attributes:
        heads: titles of the columns between the arm's and the source's.
        rows: ``(arm, cells, source)``, of the arms with published figures.
    """

    heads: list[str]
    rows: list[tuple[str, list[Cell], str]]


def beside_papers(arms: Sequence[Line]) -> Comparison:
    """Set published figures beside the runs'. A figure that no arm has gets no column."""
    told = [(arm, arm.published) for arm in arms if arm.published is not None]
    keys = [key for key in FIGURES if any(key in published.figures for _, published in told)]
    heads = []
    for key in keys:
        title, ours = FIGURES[key]
        heads += [", ".join(filter(None, (title, own.label, "here"))) for own in ours] + [f"{title}, published"]
    rows: list[tuple[str, list[Cell], str]] = []
    for arm, published in told:
        cells: list[Cell] = []
        for key in keys:
            for own in FIGURES[key][1]:
                means = [run.settings.get(own.setting, {}).get(own.key) for run in arm.runs]
                cells.append(tuple(mean for mean in means if mean is not None))
            cells.append(published.figures.get(key))
        rows.append((arm.name, cells, published.source))
    return Comparison(heads, rows)
