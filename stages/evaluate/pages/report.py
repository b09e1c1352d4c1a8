"""The pages for people: one self-contained HTML file for a run, or a matrix of experiments.

A page holds its styles, its images and its one small script. A content security policy forbids the browser to load
anything else. Texts pass through jinja2 with autoescape on, so that a browser shows markup in a teacher's answer as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.evaluate.metrics.bootstrap import Intervals
from hoi_distill.stages.evaluate.metrics.differences import Difference, difference
from hoi_distill.stages.evaluate.metrics.outcomes import Outcomes
from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUP_LABELS, means_by_pairs
from hoi_distill.stages.evaluate.metrics_log import read_metrics
from hoi_distill.stages.evaluate.pages import charts
from hoi_distill.stages.evaluate.pages.anchors import class_anchor
from hoi_distill.stages.evaluate.pages.gallery import GalleryItem
from hoi_distill.stages.evaluate.pages.images import data_uri, draw_pairs, load_image, numbered
from hoi_distill.stages.evaluate.pages.published import Published, beside_papers
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import writing

SHOWN = ("loss/", "validation/")
"""Logged quantities that become curves, beside the loss and the learning rate."""
SETTINGS = (("default", "Default"), ("known_object", "Known object"))
SETS = (("full", "Full"), ("rare", "Rare"), ("non_rare", "Non-rare"))
ZERO_SHOT_SETS = (("unseen", "Unseen"), ("seen", "Seen"))
PAIR_SETS = tuple(PAIR_GROUP_LABELS.items())
Sets = Sequence[tuple[str, str]]
"""Sets of classes: key and title."""


@dataclass(frozen=True)
class TableRead:
    """A cache table that a run read.

    Attributes:
        name: its name.
        fingerprint: 32 hex digits.
        record: what the fingerprint is made of.
        columns: the number of columns that were read.
        learned_from: what its teacher was trained on, as far as is known; "" for a table without a teacher.
    """

    name: str
    fingerprint: str
    record: Mapping[str, Any]
    columns: int | None = None
    learned_from: str = ""


@dataclass(frozen=True)
class Curve:
    """One logged quantity over training steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class LabelCheck:
    """A comparison of a teacher's image-level labels with annotations. No training reads it.

    Attributes:
        images: number of training images that were compared.
        rows: (which labels, precision, recall, mean average precision), fractions, None where there is none.
        dropped: number of phrases of the teacher's texts that became no label, by reason.
    """

    pictures: int
    rows: Sequence[tuple[str, float | None, float | None, float | None]]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """Another run, beside which a report sets its own.

    Attributes:
        title: which one it is, "the run before".
        name: of its folder.
        means: of its default setting, in percent, by set of classes.
        differences: the report's run less this one, by set of classes; None where there is none.
        changed: (parameter, value there, value here) of what was trained otherwise.
        address: of its report, from this one.
    """

    title: str
    name: str
    means: Mapping[str, float | None]
    differences: Mapping[str, Difference | None]
    changed: Sequence[tuple[str, str, str]]
    address: str


@dataclass(frozen=True)
class ReportData:
    """Everything on a run's page.

    Attributes:
        name: of the configuration.
        trained_on: one sentence: which images, which labels, which teacher tables.
        evaluation: the record of
            :meth:`hoi_distill.stages.evaluate.metrics.hico_det_evaluation.HicoDetEvaluation.as_json`.
        facts: short (label, value) pairs under the title: seed, steps, seconds ...
        curves: logged quantities.
        tables: the cache tables that the training read.
        skipped: number of images left out of training, by reason; None where the run recorded nothing about it.
        parameters: the resolved parameters, shown folded.
        gallery: test images.
        labels: of a student that learns from image-level labels of a teacher.
        rare_below: a class with fewer annotated training pairs is rare.
        commands: (what it does, what to type) of what a reader may want next.
        intervals: of the means.
        beside: other runs of the same test images.
        links: (what it is, its address from the report's folder) of other files of the run.
        images: the address of the page with the images behind each class; "" without one.
        teachers: (tables, what their teacher was trained on) of the teachers that the gallery quotes.
    """

    name: str
    trained_on: str
    evaluation: Mapping[str, Any]
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[TableRead] = ()
    skipped: Mapping[str, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    gallery: Sequence[GalleryItem] = ()
    labels: LabelCheck | None = None
    rare_below: int = RARE_BELOW
    commands: Sequence[tuple[str, str]] = ()
    intervals: Intervals = field(default_factory=dict)
    beside: Sequence[Beside] = ()
    links: Sequence[tuple[str, str]] = ()
    images: str = ""
    teachers: Sequence[tuple[str, str]] = ()

    @classmethod
    def from_run(
        cls,
        folder: Path,
        name: str,
        trained_on: str,
        *,
        facts: Sequence[tuple[str, str]] = (),
        skipped: Mapping[str, int] | None = None,
        gallery: Sequence[GalleryItem] = (),
        labels: LabelCheck | None = None,
    ) -> ReportData:
        """Read ``student.json``, ``evaluation.json`` and, if there is one, ``metrics.jsonl`` of a run's folder.

        Args:
            folder: of the run.
            name: of the configuration.
            trained_on: which images, which labels, which teacher tables.
            facts: short (label, value) pairs under the title.
            skipped: number of images left out of training, by reason.
            gallery: test images.
            labels: of a student that learns from image-level labels of a teacher.

        Raises:
            UserError: one of the first two files is missing or is not JSON.
        """
        student = _read_json(folder / "student.json")
        return cls(
            name=name,
            trained_on=trained_on,
            evaluation=_read_json(folder / "evaluation.json"),
            facts=facts,
            curves=read_curves(folder / "metrics.jsonl"),
            tables=[
                TableRead(table, read["fingerprint"], read.get("record", {}), read.get("columns"))
                for table, read in sorted(student.get("provenance", {}).items())
            ],
            skipped=skipped,
            parameters={key: value for key, value in student.items() if key != "provenance"},
            gallery=gallery,
            labels=labels,
        )


@dataclass(frozen=True)
class Run:
    """One trained student.

    Attributes:
        seed: of its training.
        default: figures in percent, ``{"full": ..., "rare": ..., "non_rare": ...}``.
        known_object: the same of the known-object setting.
        seconds: CPU-seconds of its training.
        zero_shot: of a zero-shot student ``{"unseen": ..., "seen": ...}``, default setting.
        by_training_pairs: default setting, ``{group: {"classes": number, "map": percent}}``
            (:mod:`hoi_distill.stages.evaluate.metrics.training_pairs`).
        outcomes: of the bootstrap of its test images, for differences; None if it was not drawn.
        origin: where the figures come from, if not from a run here: the file of a record.
        protocol: means by the dataset's own protocol, where it is not HICO-DET's, ``{setting: {set: percent}}``: V-COCO's
            ``scenario_1`` and ``scenario_2``; SWiG-HOI's stand in the place of ``default`` and ``zero_shot``.
        swap_accuracy: over the twins of a crowd, in percent; None of other worlds.
    """

    seed: int
    default: Mapping[str, float | None]
    known_object: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    zero_shot: Mapping[str, float | None] = field(default_factory=dict)
    by_training_pairs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    origin: str = ""
    protocol: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    swap_accuracy: float | None = None

    @property
    def settings(self) -> dict[str, Mapping[str, float | None]]:
        """All means, as a paper on this dataset would count them."""
        own = {"default": self.default, "known_object": self.known_object, "zero_shot": self.zero_shot}
        return {**own, **self.protocol}

    @property
    def pair_means(self) -> dict[str, float | None]:
        """The means of ``by_training_pairs`` alone."""
        return {name: group["map"] for name, group in self.by_training_pairs.items()}


@dataclass(frozen=True)
class Arm:
    """One line of the experiments: the same training with several seeds.

    Attributes:
        name: its name.
        text: what it is and what it shows.
        runs: one a seed.
        against: the name of the arm that it is compared with; None if with none.
        published: what a paper reports of it; None where nothing is known.
    """

    name: str
    text: str
    runs: Sequence[Run]
    against: str | None = None
    published: Published | None = None

    def outcomes(self) -> list[Outcomes]:
        """Of the runs that have them."""
        return [run.outcomes for run in self.runs if run.outcomes is not None]

    def recorded(self) -> list[int]:
        """The seeds whose figures come from a record."""
        return [run.seed for run in self.runs if run.origin]


@dataclass(frozen=True)
class ExperimentsPage:
    """Arms against seeds; each arm that has an ``against`` is compared with it."""

    name: str
    about: str
    arms: Sequence[Arm]
    conclusion: str = ""


def write_report(path: Path, data: ReportData) -> None:
    """Write a run's page."""
    per_class = data.evaluation["per_class"]
    dots = [
        charts.Point(
            row["training_pairs"],
            row["ap"],
            f"{class_name(row)}: AP {row['ap']:.1f}, {row['training_pairs']} training pairs",
            row["rare"],
            data.images and data.images + class_anchor(row["hoi"]),
        )
        for row in per_class
        if row["ap"] is not None and row.get("training_pairs") is not None
    ]
    if not any(row.get("training_pairs") for row in per_class):
        dots = []  # nothing is told apart by annotations that the training did not have
    page = environment().get_template("report.html.j2").render(
        data=data,
        settings=SETTINGS,
        sets=SETS,
        zero_shot_sets=(*ZERO_SHOT_SETS, SETS[0]),
        by_pairs=means_by_pairs(per_class),
        pair_labels=PAIR_GROUP_LABELS,
        rare_below=data.rare_below,
        curves=[(curve.name, charts.line_chart(curve.steps, curve.values, curve.name)) for curve in data.curves],
        scatter=charts.scatter_chart(dots, "annotated training pairs", "AP (%)", data.rare_below) if dots else None,
        per_class=sorted(per_class, key=lambda row: -1.0 if row["ap"] is None else row["ap"], reverse=True),
        gallery=[_card(item, number) for number, item in enumerate(data.gallery)],
        told=any(item.captions or item.matches for item in data.gallery),
    )  # fmt: skip
    write_page(path, page)


def write_page(path: Path, page: str) -> None:
    """Write a page atomically. Characters that are not UTF-8, such as bytes of a file's name, become ``\\udcf1``.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode("utf-8", "backslashreplace"))


def write_experiments_page(path: Path, data: ExperimentsPage) -> None:
    """Write the table of arms and seeds. ``sd`` is the sample standard deviation over seeds (n - 1)."""
    settings: list[tuple[str, str, Sets]] = [
        *((*named, SETS) for named in SETTINGS),
        ("zero_shot", "Zero-shot", ZERO_SHOT_SETS),
        ("pair_means", "By training pairs", PAIR_SETS),
    ]
    tables = []
    for setting, title, sets in settings:
        rows = [(arm, {key: Spread.of(arm, setting, key) for key, _ in sets}) for arm in data.arms]
        if setting not in dict(SETTINGS):
            rows = [row for row in rows if any(spread.values for spread in row[1].values())]
        if any(spread.values for _, spreads in rows for spread in spreads.values()):
            heads = [(key, f"{label}{_classes_of(rows, key)}") for key, label in sets]
            tables.append((title, heads, rows))
    plots = [
        (
            label,
            charts.dot_chart(
                [charts.DotRow(arm.name, Spread.of(arm, "default", key).values) for arm in data.arms], label
            ),
        )
        for key, label in SETS
    ]
    compared, differences = differences_of(data.arms)
    page = environment().get_template("experiments.html.j2").render(
        data=data, tables=tables, plots=plots, difference_sets=compared, differences=differences,
        papers=beside_papers(data.arms),
    )  # fmt: skip
    write_page(path, page)


def _classes_of(rows: Sequence[tuple[Arm, Any]], key: str) -> str:
    """How many classes a group holds, if it is the same number in every run: " (3 classes)"."""
    counts = {
        run.by_training_pairs[key]["classes"] for arm, _ in rows for run in arm.runs if key in run.by_training_pairs
    }
    return f" ({counts.pop()} classes)" if len(counts) == 1 else ""


def differences_of(arms: Sequence[Arm]) -> tuple[list[tuple[str, str]], list[tuple[Arm, list[Difference | None]]]]:
    """Each arm less the arm that it is compared with.

    Args:
        arms: all lines of the experiments.

    Returns:
        The (key, title) of each set of classes for which there is a difference, and for each arm that is compared its
        difference in each of these sets, None where the two are not comparable.
    """
    named = {arm.name: arm for arm in arms}
    compared = [arm for arm in arms if arm.against in named]
    found = {
        key: [difference(arm.outcomes(), named[str(arm.against)].outcomes(), key) for arm in compared]
        for key, _ in (*SETS, *PAIR_SETS, *ZERO_SHOT_SETS)
    }
    kept = [(key, label) for key, label in (*SETS, *PAIR_SETS, *ZERO_SHOT_SETS) if any(found[key])]
    return kept, [(arm, [found[key][row] for key, _ in kept]) for row, arm in enumerate(compared)]


@dataclass(frozen=True)
class Spread:
    """The values of one mean average precision over an arm's seeds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, arm: Arm, setting: str, key: str) -> Spread:
        """The spread of one mean (``key``) of a setting over the runs of an arm."""
        means = [getattr(run, setting).get(key) for run in arm.runs]
        return cls(tuple(float(mean) for mean in means if mean is not None))

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1), None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def read_curves(path: Path) -> list[Curve]:
    """The curves of a ``metrics.jsonl``: total loss, its terms, validation and the learning rate.

    A resumed run logs some steps twice; the later line counts. A line that is no record is passed over.
    """
    lines: dict[float, dict[str, Any]] = {}
    for record in read_metrics(path)[0]:
        lines.setdefault(record["step"], {}).update(record)
    wanted = {key for line in lines.values() for key in line if key in ("loss", "lr") or key.startswith(SHOWN)}
    curves = []
    for key in sorted(wanted, key=lambda key: (key != "loss", key == "lr", key)):
        logged = [(step, line[key]) for step, line in sorted(lines.items()) if isinstance(line.get(key), int | float)]
        title = {"loss": "loss, total", "lr": "learning rate"}.get(key, key.replace("/", ": "))
        curves.append(Curve(title, [step for step, _ in logged], [float(value) for _, value in logged]))
    return curves


def class_name(row: Mapping[str, Any]) -> str:
    """The words of a class, "ride bicycle"."""
    return f"{row['verb']} {row['object']}".replace("_", " ")


def _card(item: GalleryItem, number: int) -> dict[str, Any]:
    """A gallery item with its drawings made. Both drawings show one stored image, which ``number`` names."""
    image = load_image(item.image, item.frame)
    uri, annotated = data_uri(image), numbered(item.annotated)
    predictions = numbered(item.predictions, annotated)
    return {
        "item": item,
        "uri": uri,
        "annotated": annotated,
        "predictions": predictions,
        "drawn_annotated": draw_pairs(
            uri, image.size, annotated, f"{item.title} with its annotated pairs", name=f"p{number}"
        ),
        "drawn_predictions": draw_pairs(
            f"#p{number}", image.size, predictions, f"{item.title} with the predicted pairs"
        ),
    }


def environment(styles: Sequence[str] = ("page.css",), scripts: Sequence[str] = ("sort.js",)) -> jinja2.Environment:
    """What pages are rendered with: autoescape, and the named style sheets and scripts of ``templates`` inside the page."""
    folder = Path(__file__).parent / "templates"
    style, script = (
        "\n".join((folder / name).read_text(encoding="utf-8") for name in names) for names in (styles, scripts)
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        style=style,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    environment.filters.update(
        class_name=class_name,
        class_anchor=class_anchor,
        percent=lambda value: "–" if value is None else f"{value:.2f}",
        signed=lambda value: f"{value:+.2f}".replace("-", "−"),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        brief=_brief,
    )
    return environment


def _brief(record: Mapping[str, Any], most: int = 5) -> list[tuple[str, str]]:
    """The plain entries of a fingerprint record that tell tables of a kind apart: parameters first, values clipped."""
    entries = [
        (key.removeprefix("parameters."), str(value) if len(str(value)) <= 34 else f"{str(value)[:32]}…")
        for key, value in sorted(record.items(), key=lambda entry: not entry[0].startswith("parameters."))
        if isinstance(value, str | int | float | bool) and key not in ("stage", "source")
    ]
    return entries[:most]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a finished run's folder holds it") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); remove the run's folder to train again") from None
