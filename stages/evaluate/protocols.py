"""``hoi-distill evaluate``: from files to figures, each benchmark by its own protocol behind one function.

:func:`evaluate_files` gives a :class:`Judged`, whatever the benchmark: the record that ``--json`` prints, and what the
tables, the page and the exports are made of.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.stages.evaluate.average_precision import ranking
from hoi_distill.stages.evaluate.curves import Ranking
from hoi_distill.stages.evaluate.detections import Detections, parquet_parts, read_detections
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.records import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.stages.evaluate.bootstrap import Interval, Intervals

DATASETS = ("hico-det", "v-coco", "swig-hoi", "folder")
FORMATS = ("auto", "parquet", "qpic", "pocket", "v-coco")


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        dataset: one of DATASETS; "folder" is annotations of one's own (:mod:`hoi_distill.stages.data.folder`) by
            HICO-DET's protocol.
        annotations: the dataset's folder or annotation file.
        detections: the file; ``format`` one of FORMATS, by default known by its kind.
        split: by default the test split.
        convention, switches: HICO-DET's, see :mod:`hoi_distill.stages.evaluate.conventions`.
        image_labels: HICO-DET's ``anno.mat``, where it does not lie beside the annotations.
        zero_shot: a split of the classes, one that their vocabulary has (:func:`hoi_distill.stages.data.splits.splits_of`).
        labelled: rare are the classes with few pairs in the first so many training pictures; default all of them.
        frame: pixels that QPIC-style boxes count from, a key of :data:`hoi_distill.stages.evaluate.qpic_json.FRAMES`; by default
            as the file says.
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


def default_folder(request: Request) -> Path:
    """Where an evaluation is written by default: beside the detections, by the name of a convention other than the official.

    Raises:
        UserError: an unknown convention or switch.
    """
    from hoi_distill.stages.evaluate.conventions import OFFICIAL, convention

    used = convention(request.convention, request.switches) if request.dataset in ("hico-det", "folder") else OFFICIAL
    name = "evaluation" if used.name == OFFICIAL.name else f"evaluation-{used.name}"
    found = request.detections
    return found.with_name(f"{found.stem}-{name}") if found.name else found / name  # a folder such as . has none


LABELS = {"non_rare": "non-rare", "roles_25": "25 roles", "roles_24": "24 roles", "actions_26": "26 actions"}
"""Sets of classes as they are called where their key will not do."""


@dataclass(frozen=True)
class Setting:
    """A line of the result: its means in percent by set of classes, and the ranking behind them, if there is one.

    ``sets``: ``bool [C]`` by the same names as ``means``.
    """

    title: str
    means: Mapping[str, float | None]
    sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    ranking: Ranking | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """An evaluated file.

    Attributes:
        record: what ``--json`` prints; with dataset, split, convention, definition and counts.
        per_class: one flat record a class (or role), for the CSV and the page; with ``name`` and ``ap``.
        settings: by key; the first is the main one.
        image_ids: of the pictures, in the split's order.
        vocabulary: the dataset's.
        detections: what was evaluated.
        annotations: the pairs that it was compared with; None where the protocol compares persons.
        matched, counted: of the stored detections, as :class:`hoi_distill.stages.evaluate.evaluate.Evaluation` has
            them; None where the protocol does not judge pairs one by one.
        grid: recall levels of average precision, None for all points.
        absent_counts: whether a class without annotated pairs enters means, as 0.
        notes: what a reader of the figures must know besides.
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

    def table(self, intervals: Intervals | None = None) -> str:
        """The means as lines of plain text, for a terminal; settings with the same sets share a head.

        intervals: of the means, by setting and set of classes; given in brackets.
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
        told = f"Convention {self.record['convention']}: {self.record['definition']}."
        return "\n".join([*lines, told, f"{counts}.", *self.notes])


def _cell(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if interval is None else f" ({interval.low:.1f}-{interval.high:.1f})")


def evaluate_files(request: Request) -> Judged:
    """Read, check and evaluate.

    Raises:
        UserError: an unknown dataset, format or convention, an option of another dataset, or a bad file; one line.
    """
    if request.dataset not in DATASETS:
        raise UserError(f"--dataset {request.dataset}: there are {', '.join(DATASETS)}")
    if request.format not in FORMATS:
        raise UserError(f"--format {request.format}: there are {', '.join(FORMATS)}")
    if request.dataset not in ("hico-det", "folder"):
        for option in ("image_labels", "zero_shot", "labelled", "switches", "frame"):
            if getattr(request, option):
                name = {"switches": "switch"}.get(option, option).replace("_", "-")
                raise UserError(f"--{name} belongs to hico-det, not to {request.dataset}")
        if request.convention != "official":
            raise UserError(f"--convention {request.convention}: {request.dataset} has its official one only")
    if request.dataset in ("hico-det", "folder"):
        from hoi_distill.stages.evaluate.hico_det_protocol import judge_hico_det

        return judge_hico_det(request)
    if request.dataset == "v-coco":
        from hoi_distill.stages.evaluate.v_coco_protocol import judge_v_coco

        return judge_v_coco(request)
    from hoi_distill.stages.evaluate.swig_hoi_protocol import judge_swig_hoi

    return judge_swig_hoi(request)


def detections_format(request: Request) -> str:
    """The format asked for, or what the file looks like: QPIC's and V-COCO's are JSON (QPIC's own a string of it), pocket's
    are .mat files; a folder is pocket's unless Parquet files lie in it."""
    if request.format != "auto":
        return request.format
    path = request.detections
    if path.is_dir():
        return "parquet" if parquet_parts(path) else "pocket"
    if path.suffix == ".mat":
        return "pocket"
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    except OSError:
        return "parquet"  # whose reader says what is wrong
    if start in (b"[", b"{", b'"'):
        return "v-coco" if request.dataset == "v-coco" else "qpic"
    return "parquet"


def refuse_format(request: Request, form: str) -> UserError:
    return UserError(f"{request.detections}: {request.dataset} has no detections in the format {form}; use --format")


def read_triplets(request: Request, split: Annotations, every_row_classed: bool = True) -> Detections:
    """Detections of a split's pictures, in our Parquet format."""
    words = vocabulary_of(split)
    return read_detections(
        request.detections, split.image_id, words.hois, len(words.objects), len(words.verbs), every_row_classed
    )


def vocabulary_of(annotations: Annotations) -> Vocabulary:
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: pictures without annotated classes cannot be evaluated")
    return annotations.vocabulary


Ties = Mapping[str, Mapping[str, int]]
"""How many detections are tied with others that are right where they are wrong, or the reverse, by setting and figure."""


def ties_of(settings: Mapping[str, Setting]) -> Ties:
    return {
        key: setting.ranking.ties({name: setting.sets[name] for name in setting.means})
        for key, setting in settings.items()
        if setting.ranking is not None
    }


def ties_note(ties: Ties, settings: Mapping[str, Setting], rule: str) -> list[str]:
    """A line on the ties that may move a figure, none where there are none. ``rule`` says how equals rank here."""
    said = [
        f"{settings[key].title} "
        + ", ".join(f"{LABELS.get(name, name)} {count:,}" for name, count in sets.items() if count)
        for key, sets in ties.items()
        if any(sets.values())
    ]
    if not said:
        return []
    return [
        f"Tied detections, of a class and a score, some of them right and some wrong: {'; '.join(said)}. Published code sorts "
        f"equals as it comes, and another order may move the figure; here {rule}."
    ]


def ranked(
    detections: Detections, matched: np.ndarray, counted: np.ndarray, ties: str, annotations: Annotations
) -> Ranking:
    """The counted detections in the order in which a convention judges them (``ties`` as in its switch)."""
    rows = np.flatnonzero(counted)
    order = rows[ranking(detections.hoi[rows], detections.score[rows], detections.image[rows], ties)]
    given = annotations.classified()
    return Ranking(
        order, detections.hoi[order].astype(np.int64), detections.image[order].astype(np.int64), detections.score[order],
        matched[order] >= 0, given.hoi.astype(np.int64), given.pair_image(), len(vocabulary_of(annotations)),
    )  # fmt: skip
