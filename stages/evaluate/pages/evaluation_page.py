"""The files that ``hoi-distill evaluate`` writes: a page, a table of classes, and the whole record."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS
from hoi_distill.stages.evaluate.diagnosis.summary import ErrorSummary, summarise
from hoi_distill.stages.evaluate.metrics.bootstrap import LEVEL, Interval, Intervals, bootstrap_intervals
from hoi_distill.stages.evaluate.metrics.curves import precision_recall
from hoi_distill.stages.evaluate.pages import charts
from hoi_distill.stages.evaluate.pages.anchors import class_anchor, confusion_anchor, kind_anchor, miss_anchor
from hoi_distill.stages.evaluate.pages.report import environment
from hoi_distill.stages.evaluate.protocols.types import LABELS, EvaluationResult
from hoi_distill.storage.files.atomic import atomic_write
from hoi_distill.storage.files.writable import writing

WORST = 15
LISTED = 1500
"""Classes on the page: a browser can scroll more, but hardly a reader."""


@dataclass(frozen=True)
class HeadlineRow:
    """A setting's line: cells are (figure in percent, its interval)."""

    label: str
    sub: str
    cells: Sequence[tuple[float | None, Interval | None]]
    main: bool


@dataclass(frozen=True)
class Headline:
    """Settings that share their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[HeadlineRow]


@dataclass(frozen=True)
class PageData:
    """The texts of the page; numbers and drawings reach the template beside it."""

    name: str
    about: str
    facts: Sequence[tuple[str, str]]
    headline: Sequence[Headline]
    notes: Sequence[str]
    class_word: tuple[str, str]
    pair_word: str
    second: str
    listed: str
    has_rare: bool
    scatter_name: str
    methods: Sequence[tuple[str, str]]
    switches: Sequence[tuple[str, str]]


def write_evaluation(
    result: EvaluationResult,
    out: Path,
    name: str,
    resamples: int = 1000,
    seed: int = 0,
    *,
    images: str = "",
    errors: ErrorSummary | None = None,
) -> tuple[list[Path], Intervals]:
    """Write ``evaluation.json``, ``per_class.csv`` and ``evaluation.html`` into a folder: all of them or none.

    Args:
        result: of the evaluation.
        out: the folder; it is created.
        name: heading of the page, the detections file's name.
        resamples: for the intervals; 0 leaves them out.
        seed: draws the resamples.
        images: the address, from this folder, of a page with the images behind the figures; "" without one.
        errors: of the result, if they are known already.

    Returns:
        The paths of the files, and the intervals.

    Raises:
        UserError: the folder cannot be written.
    """
    intervals, errors = measure_intervals(result, resamples, seed), errors or measure_errors(result)
    record = dict(result.record)
    if intervals:
        bounds = {
            setting: {key: None if found is None else found.as_json() for key, found in by_set.items()}
            for setting, by_set in intervals.items()
        }
        record["intervals"] = {"level": LEVEL, "resamples": resamples, "seed": seed, **bounds}
    if errors:
        record["errors"] = errors.as_json()
    texts = {
        "evaluation.json": json.dumps(record, indent=1) + "\n",
        "per_class.csv": _classes(result.per_class),
        "evaluation.html": render(result, name, intervals, errors, resamples, images=images),
    }
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as whole:
            for file, text in texts.items():
                whole.enter_context(atomic_write(out / file)).write(text.encode("utf-8", "backslashreplace"))
    return [out / file for file in texts], intervals


def _classes(per_class: Sequence[Mapping[str, Any]]) -> str:
    """CSV, one line a class; an empty cell where there is no figure."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(per_class[0]) if per_class else ["name"])
    writer.writeheader()
    writer.writerows(per_class)
    return text.getvalue()


def measure_intervals(result: EvaluationResult, resamples: int, seed: int) -> Intervals:
    """Bootstrap intervals of every mean that has a ranking, by setting and set of classes, all from the same draws."""
    intervals: dict[str, dict[str, Interval | None]] = {}
    for key, setting in result.settings.items():
        if setting.ranking is None or not resamples or key in intervals:
            continue
        alike = {name: other for name, other in result.settings.items() if other.ranking is setting.ranking}
        wanted = {name: other.sets[name] for other in alike.values() for name in other.means}
        found = bootstrap_intervals(
            setting.ranking, wanted, result.grid, resamples=resamples, seed=seed, absent_counts=result.absent_counts
        )
        intervals |= {name: {part: found[part] for part in other.means} for name, other in alike.items()}
    return intervals


def measure_errors(result: EvaluationResult) -> ErrorSummary | None:
    """The diagnosis of the main setting; None where the protocol evaluates persons."""
    main, given, diagnosis = next(iter(result.settings.values())), result.annotations, result.diagnosis
    if main.ranking is None or given is None or diagnosis is None:
        return None
    averaged, ranking = next(iter(main.sets.values())), main.ranking
    return summarise(
        diagnosis,
        ranking.select(averaged[ranking.klass], averaged[ranking.gt_class]),
        np.flatnonzero(np.append(averaged, False)[given.hoi]),
        grid=result.grid,
        hoi_of=result.vocabulary.hoi_id(),
        averaged=int(averaged.sum()) if result.absent_counts else None,
    )


def render(
    result: EvaluationResult,
    title: str,
    intervals: Intervals,
    errors: ErrorSummary | None,
    resamples: int,
    *,
    images: str = "",
) -> str:
    """The page's HTML."""
    rows = _class_rows(result.per_class)
    with_ap = [row for row in rows if row["ap"] is not None]
    worst = sorted(with_ap, key=lambda row: (row["ap"], -row["pairs"]))[:WORST] if len(rows) > 2 * WORST else []
    is_v_coco = result.record["dataset"] == "v-coco"
    dots, dots_name, band = _dots(result.per_class)
    data = PageData(
        name=title,
        about=_about(result),
        facts=_facts(result),
        headline=_headline(result, intervals),
        notes=result.notes,
        class_word=("role", "roles") if is_v_coco else ("class", "classes"),
        pair_word="persons" if is_v_coco else "pairs",
        second="Scenario 2" if is_v_coco else "Known obj." if any(row["second"] is not None for row in rows) else "",
        listed=""
        if len(rows) == len(result.per_class)
        else f"The {len(rows):,} with most annotated pairs of {len(result.per_class):,}; all are in per_class.csv.",
        has_rare=any(row["tag"] == "rare" for row in rows),
        scatter_name=dots_name.replace("pairs", "persons") if is_v_coco else dots_name,
        methods=_methods(intervals, errors, resamples),
        switches=[(key, str(value)) for key, value in result.record.get("switches", {}).items()],
    )
    counted: dict[str, Any] = {}
    if errors:

        def name(hoi: int) -> str:
            return " ".join(result.vocabulary.hoi_name(hoi)).replace("_", " ")

        counted = {
            "decisive": sum(row.decisive for row in errors.errors),
            "missed": sum(row.pairs for row in errors.misses),
            "annotated": sum(row.pairs for row in errors.misses)
            + errors.errors[0].all,  # a true positive finds one pair
            "confused": [
                (
                    head,
                    [
                        {
                            "annotated": name(r.annotated),
                            "said": name(r.said),
                            "count": r.count,
                            "anchor": confusion_anchor(r.annotated, r.said) if min(r.annotated, r.said) >= 0 else "",
                        }
                        for r in pairs
                    ],
                )
                for head, pairs in (
                    ("Right boxes, wrong verb", errors.verbs),
                    ("Right verb, wrong object", errors.objects),
                )
            ],
        }
    pages = environment(("page.css", "evaluation.css"), ("sort.js", "evaluation.js"))
    pages.filters.update(class_anchor=class_anchor, kind_anchor=kind_anchor, miss_anchor=miss_anchor)
    return pages.get_template("evaluation.html.j2").render(
        data=data,
        images=images,
        errors=errors,
        worst=[row | {"instead": _instead(errors, row["klass"])} for row in worst],
        classes=sorted(rows, key=lambda row: -1.0 if row["ap"] is None else row["ap"], reverse=True),
        scatter=charts.scatter_chart(dots, data.scatter_name, "AP (%)", band) if dots else None,
        plotted=_plotted(result, rows, errors),
        **counted,
    )  # fmt: skip


def _class_rows(per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the list of classes shows of each; at most LISTED of them, those with most annotated pairs."""
    kept = sorted(range(len(per_class)), key=lambda index: (-per_class[index]["pairs"], index))[:LISTED]
    rows = []
    for index, row in enumerate(per_class[which] for which in sorted(kept)):
        rows.append({
            "index": index,
            "klass": row.get("hoi", index),
            "name": row["name"],
            "tag": "unseen" if row.get("unseen") else "rare" if row.get("rare") else "",
            "ap": row["ap"],
            "second": row.get("ap_known_object", row.get("ap_scenario_2")),
            "recall": row["recall"],
            "pairs": row["pairs"],
            "found": row["found"],
        })  # fmt: skip
    return rows


def _dots(per_class: Sequence[Mapping[str, Any]]) -> tuple[list[charts.Point], str, int]:
    """Average precision against training pairs where those are known, else against annotated test pairs; what the axis
    is called, and up to where its classes are rare."""
    known = any(row.get("training_pairs") is not None for row in per_class)
    key, title, band = (
        ("training_pairs", "annotated training pairs", RARE_BELOW) if known else ("pairs", "annotated pairs", 0)
    )
    points = [
        charts.Point(row[key], row["ap"], f"{row['name']}: AP {row['ap']:.1f}, {row[key]} pairs", bool(row.get("rare")))
        for row in per_class
        if row["ap"] is not None and row.get(key) is not None
    ]
    return points, title, band


def _headline(result: EvaluationResult, intervals: Intervals) -> list[Headline]:
    tables: list[Headline] = []
    for key, setting in result.settings.items():
        bounds = intervals.get(key, {})
        columns = [LABELS.get(name, name).capitalize() for name in setting.means]
        cells = [(value, bounds.get(name)) for name, value in setting.means.items()]
        row = HeadlineRow(setting.title[:1].upper() + setting.title[1:], setting.note, cells, main=not tables)
        if tables and list(tables[-1].columns) == columns:
            row = HeadlineRow(row.label, row.sub, cells, main=False)
            tables[-1] = Headline(tables[-1].title, columns, [*tables[-1].rows, row])
        else:
            tables.append(Headline("mAP, percent", columns, [row]))
    return tables


def _about(result: EvaluationResult) -> str:
    record = result.record
    return f"{record['dataset']}, {record['split']} split. Evaluated as {record['definition']}."


def _facts(result: EvaluationResult) -> list[tuple[str, str]]:
    counts = [
        (name.replace("pictures", "images").replace("_", " "), f"{number:,}")
        for name, number in result.record["counts"].items()
        if number
    ]
    return [("convention", result.record["convention"]), *counts]


def _methods(intervals: Intervals, errors: ErrorSummary | None, resamples: int) -> list[tuple[str, str]]:
    methods = []
    if intervals:
        methods.append((
            "Intervals",
            f"95 %, by bootstrap over images: the test images are drawn with replacement {resamples:,} times and the "
            "figure is computed anew; the bounds are the figure plus the 2.5th and 97.5th percentile of (outcome less "
            "the mean of the outcomes). They say what another draw of test images would change, not what another "
            "training would.",
        ))  # fmt: skip
    if errors:
        methods.append((
            "Errors",
            "Kinds exclude one another and are tried in the order of the table. A box is on an annotated one from an "
            "intersection over union of 0.5, near it from 0.1, whatever the convention; what is right is the "
            "convention's own verdict.",
        ))  # fmt: skip
    return methods


def _instead(errors: ErrorSummary | None, index: int, most: int = 3) -> str:
    """The most frequent kinds of a class's wrong decisive detections: "background 12, wrong verb 3"."""
    if errors is None:
        return ""
    counts = errors.class_kinds[index]
    names = list(KINDS)
    order = [kind for kind in np.argsort(-counts, kind="stable") if kind and counts[kind]][:most]
    return ", ".join(f"{names[kind]} {counts[kind]}" for kind in order) or "not detected often enough to tell"


def _plotted(
    result: EvaluationResult, rows: Sequence[Mapping[str, Any]], errors: ErrorSummary | None
) -> dict[str, Any]:
    """What the script draws: curves in thousandths, and the composition of each class's decisive detections."""
    main, is_v_coco = next(iter(result.settings.values())), result.record["dataset"] == "v-coco"
    curves = [] if main.ranking is None else precision_recall(main.ranking)
    second, noun = ("scenario 2", "persons") if is_v_coco else ("known object", "pairs")
    classes = []
    for row in rows:
        shown = [("AP", row["ap"]), (second, row["second"]), ("recall", row["recall"])]
        classes.append({
            "name": row["name"],
            "about": f"{row['found']:,} of {row['pairs']:,} {noun} found",
            "facts": [(label, f"{value:.1f}") for label, value in shown if value is not None],
            "curve": [(round(1000 * recall), round(1000 * high)) for recall, high in curves[row["klass"]]],
            "mix": errors.class_kinds[row["klass"]].tolist() if errors else [],
        })  # fmt: skip
    first = max(range(len(rows)), key=lambda index: rows[index]["pairs"], default=0)
    return {"classes": classes, "kinds": list(KINDS), "first": first}
