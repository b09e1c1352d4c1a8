"""The request and the result of an evaluation, the same for every benchmark."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.stages.evaluate.diagnosis.errors import AnnotatedPairs, Diagnosis, diagnose
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUP_LABELS

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.stages.evaluate.metrics.bootstrap import Interval, Intervals


DATASETS = ("hico-det", "v-coco", "swig-hoi", "folder")
FORMATS = ("auto", "parquet", "qpic", "pocket", "v-coco")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        dataset: one of DATASETS; "folder" is a user's own annotations (:mod:`hoi_distill.stages.data.folder`),
            evaluated by HICO-DET's protocol.
        annotations: the dataset's folder or annotation file.
        detections: the file.
        format: of the detections, one of FORMATS; "auto" looks at the file.
        split: by default the test split.
        convention: HICO-DET's, see :mod:`hoi_distill.stages.evaluate.metrics.conventions`.
        switches: HICO-DET's, ``"key=value"`` each.
        image_labels: HICO-DET's ``anno.mat``, if it does not lie beside the annotations.
        zero_shot: a split of the classes that their vocabulary has
            (:func:`hoi_distill.stages.data.zero_shot.splits_of`).
        labelled: count training pairs, which decide what is rare, in the first so many training images; None: in all.
        frame: the pixels that QPIC-style boxes count from, a key of
            :data:`hoi_distill.stages.evaluate.formats.qpic_json.FRAMES`; None: as the file says.
    """

    dataset: str
    annotations: Path
    detections: Path
    format: str = "auto"
    split: str | None = None
    convention: str = "official"
    switches: Sequence[str] = ()
    image_labels: Path | None = None
    zero_shot: str | None = None
    labelled: int | None = None
    frame: str | None = None


LABELS = {
    "non_rare": "non-rare",
    "roles_25": "25 roles",
    "roles_24": "24 roles",
    "actions_26": "26 actions",
    **PAIR_GROUP_LABELS,
}
"""Titles of the sets of classes whose key is not one."""


@dataclass(frozen=True)
class Setting:
    """One setting of a protocol.

    Attributes:
        title: its name for people.
        means: in percent, by set of classes.
        sets: ``bool [C]`` by the same names as ``means``.
        ranking: the counted detections, if the protocol ranks pairs.
        note: what the setting looks at.
    """

    title: str
    means: Mapping[str, float | None]
    sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    ranking: Ranking | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The result of evaluating one file.

    Attributes:
        record: what ``--json`` prints; it has dataset, split, convention, definition and counts.
        per_class: one flat record a class (or role), for the CSV and the page; it has ``name`` and ``ap``.
        settings: by key; the first is the main one.
        image_ids: of the images, in the split's order.
        vocabulary: the dataset's.
        detections: the detections of the file.
        annotations: the annotated pairs; None where the protocol evaluates persons.
        matched: ``int64 [D]`` row of the annotated pair that each detection found, -1 for a false positive; None where
            the protocol evaluates persons.
        counted: ``bool [D]`` whether the protocol counts a detection; None where it evaluates persons.
        grid: recall levels of average precision, None for all points.
        absent_counts: whether a class without annotated pairs enters means, as 0.
        notes: sentences that a reader of the metrics must know.
    """

    record: dict[str, Any]
    per_class: list[dict[str, Any]]
    settings: Mapping[str, Setting]
    image_ids: np.ndarray
    vocabulary: Vocabulary
    detections: Any
    annotations: Annotations | None = None
    matched: np.ndarray | None = None
    counted: np.ndarray | None = None
    grid: np.ndarray | None = None
    absent_counts: bool = False
    notes: Sequence[str] = ()

    @functools.cached_property
    def diagnosis(self) -> Diagnosis | None:
        """The kind of error of each detection, and why each missed pair was missed; None where persons are evaluated."""
        given = self.annotations
        if given is None or self.matched is None or self.counted is None:
            return None
        pairs = AnnotatedPairs(given.pair_image(), given.human_box, given.object_box, given.object, given.verb)
        return diagnose(self.detections, pairs, self.matched, self.counted)

    def table(self, intervals: Intervals | None = None) -> str:
        """The means as lines of text for a terminal. Settings with the same sets share a head line.

        Args:
            intervals: of the means, by setting and set of classes; they stand in brackets.
        """
        width = 22 if intervals else 12
        lines: list[str] = []
        head: list[str] = []
        for key, setting in self.settings.items():
            if list(setting.means) != head:
                head = list(setting.means)
                lines.append(f"{'mAP (%)':<24}" + "".join(f"{LABELS.get(name, name):>{width}}" for name in head))
            bounds = (intervals or {}).get(key, {})
            cells = (_cell(value, bounds.get(name)) for name, value in setting.means.items())
            lines.append(f"{setting.title:<24}" + "".join(f"{cell:>{width}}" for cell in cells))
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in self.record["counts"].items())
        definition = f"Convention {self.record['convention']}: {self.record['definition']}."
        return "\n".join([*lines, definition, f"{counts}.", *self.notes])


def _cell(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if interval is None else f" ({interval.low:.1f}-{interval.high:.1f})")
