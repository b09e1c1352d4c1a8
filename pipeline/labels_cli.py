"""``hoi-distill labels``: how good the labels are that a teacher gave to whole pictures, measured against annotations.

This is a diagnosis, for deciding whether the questions are good enough (CL-HOI style, section "gate"). Nothing here is read
by a training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from stages.data.prompts import NO_INTERACTION

if TYPE_CHECKING:
    from pipeline.plan import TablePlan
    from pipeline.setup import Setup
    from stages.teacher.image_labels import Judged

DOUBTFUL = 0.5
"""Precision of positives below which questions should be mended first."""
ENOUGH = 5
"""Positives that a class needs to be judged by itself."""


def labels(
    config: Annotated[Path, typer.Argument(help="The setup, with a table of stage image_labels.")],
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many random pictures of the training split; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")] = False,
) -> None:
    """Compare the teacher's image-level labels with the annotations of the training split, and count what was dropped."""
    from pipeline.pair_teachers import plan_all
    from pipeline.setup import prepare
    from stages.teacher.image_labels import ImageLabels
    from storage.errors import UserError

    setup = prepare(config)
    plans = plan_all(setup)
    tables = [name for name, made in plans.items() if isinstance(made.node.stage, ImageLabels)]
    if not tables:
        raise UserError(f"{config}: no table of stage image_labels; add one under tables")
    if "train" not in setup.dataset or not len(setup.dataset["train"].hoi):
        raise UserError(f"{config}: the training split has no annotations to compare with")
    if unfilled := [name for name in tables if not plans[name].complete()]:
        raise UserError(f"tables.{unfilled[0]} has empty cells; fill it with: {setup.mending_command()}")
    found = {name: gate(setup, plans, name, sample) for name in tables}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, report in found.items():
        show(name, report)


def gate(setup: Setup, plans: dict[str, TablePlan], name: str, sample: int | None) -> dict[str, Any]:
    """The figures of one table: ``pictures``, ``dropped`` by reason and, ``before`` and ``after`` verification questions,
    those of :func:`figures`; ``after`` is None where none are asked.

    Args:
        sample: so many pictures, drawn with seed 0; None: all.
    """
    from pipeline.plan import read_upstream
    from stages.teacher.image_labels import ImageLabels
    from stages.teacher.triplets import drop_report

    made, source = plans[name], setup.sources["images"]
    stage = made.node.stage
    assert isinstance(stage, ImageLabels)
    assert made.state is not None
    records = np.sort(np.unique(source.splits["train"], return_index=True)[1])
    records = records[np.isin(source.splits["train"][records], made.rows[made.state.filled[:, 0]])]
    if sample is not None:
        records = np.sort(np.random.default_rng(0).permutation(records)[:sample])
    rows = source.splits["train"][records]
    truth = image_truth(setup, records)
    inputs = {up: read_upstream(plans[up], rows, source) for up in stage.inputs}
    if stage.verification is not None:
        answers = inputs[stage.verification]
        inputs[stage.verification] = {question: answers[question] for question in stage.questions}
    dropped: Counter[str] = Counter()
    for text in stage.texts:
        dropped.update(drop_report(inputs[stage.triplets][text].to_pylist()))
    taken = dropped.pop("taken")
    dropped.update(drop["reason"] for row in stage.dropped(inputs) for drop in row)
    names = [" ".join(setup.vocabulary.hoi_name(hoi)) for hoi in range(len(setup.vocabulary))]
    return {
        "pictures": len(records),
        "triplets": taken,
        "dropped": dict(dropped.most_common()),
        "before": figures(stage.judged(inputs, verified=False), truth, names),
        "after": None if stage.verification is None else figures(stage.judged(inputs), truth, names),
    }


def image_truth(setup: Setup, records: np.ndarray) -> np.ndarray:
    """bool ``[N, H]``: the interactions annotated in these pictures of the training split."""
    annotations = setup.dataset["train"].take(records)
    truth = np.zeros((len(records), len(setup.vocabulary)), bool)
    known = annotations.hoi >= 0
    truth[annotations.pair_image()[known], annotations.hoi[known]] = True
    return truth if annotations.image_hois is None else truth | annotations.image_hois


def figures(judged: Judged, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How labels compare with the truth, bool ``[N, H]``, of the classes ``names``.

    Returns:
        ``positives`` (how many), ``precision`` and ``recall`` of them; ``map``: average precision of the ranking of all
        pictures by a class's target, mean over the classes that occur; ``negatives``: share of the listed negatives that
        are none in truth; ``ignored``: share of the listed entries; ``listed`` entries a picture; ``missed``: share of the
        true ones that are not listed, so that no label could say them; ``weak``: classes whose positives are mostly wrong,
        with their precision. All of them again for ``actions``, the classes that are not no_interaction, where some are.
    """
    actions = np.array([not name.startswith(f"{NO_INTERACTION} ") for name in names], bool)
    found = _figures(judged, truth, names)
    if not actions.all():
        parts = (getattr(judged, field.name)[:, actions] for field in fields(judged))
        kept = [name for name, kept in zip(names, actions, strict=True) if kept]
        found["actions"] = _figures(type(judged)(*parts), truth[:, actions], kept)
    return found


def _figures(judged: Judged, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    from stages.teacher.image_labels import IGNORED, NEGATIVE, POSITIVE

    positive = judged.listed & (judged.kind == POSITIVE)
    negative = judged.listed & (judged.kind == NEGATIVE)
    entries = int(judged.listed.sum())
    right, said = (positive & truth).sum(axis=0), positive.sum(axis=0)
    doubtful = np.flatnonzero((said >= ENOUGH) & (right < DOUBTFUL * said))
    weak = {names[hoi]: round(float(right[hoi] / said[hoi]), 4) for hoi in doubtful.tolist()}
    occurring = np.flatnonzero(truth.any(axis=0))
    precisions = [average_precision(judged.target[:, hoi], truth[:, hoi]) for hoi in occurring]
    return {
        "positives": int(said.sum()),
        "precision": ratio(right.sum(), said.sum()),
        "recall": ratio(right.sum(), truth.sum()),
        "map": round(float(np.mean(precisions)), 4) if precisions else None,
        "negatives": ratio((negative & ~truth).sum(), negative.sum()),
        "ignored": ratio((judged.listed & (judged.kind == IGNORED)).sum(), entries),
        "listed": round(entries / max(1, len(truth)), 2),
        "missed": ratio((truth & ~judged.listed).sum(), truth.sum()),
        "weak": dict(sorted(weak.items(), key=lambda item: item[1])),
    }


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the true ones of the precision among all that score at least as much, so that equal scores have no order.

    Args:
        scores: ``[N]``. truth: bool ``[N]``, with at least one that is true.
    """
    values, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, weights=truth, minlength=len(values))
    precision = hits.cumsum() / np.bincount(group, minlength=len(values)).cumsum()
    return float((precision * hits).sum() / hits.sum())


def ratio(part: Any, whole: Any) -> float | None:
    return round(float(part) / float(whole), 4) if whole else None


def show(name: str, report: Mapping[str, Any]) -> None:
    """Print one table's figures for people, with a warning where the labels are mostly wrong."""
    print(f"{name}: {report['pictures']:,} pictures of the training split, compared with their annotations")
    columns = ("positives", "precision", "recall", "map", "negatives", "ignored", "listed", "missed")
    print(" " * 20 + "".join(f"{column:>11}" for column in columns))
    for when, label in (("before", "text alone"), ("after", "verified")):
        for part, of in ((report[when], ""), ((report[when] or {}).get("actions"), ", actions")):
            if part is not None:
                print(f"  {label + of:<18}" + "".join(f"{_shown(part[column]):>11}" for column in columns))
    print(f"{report['triplets']:>12,}  triplets read from the text; dropped phrases:")
    for reason, count in report["dropped"].items():
        print(f"{count:>12,}  {reason}")
    last = report["after"] or report["before"]
    if last["weak"]:
        listed = ", ".join(f"{key} {value:.2f}" for key, value in list(last["weak"].items())[:8])
        print(f"  precision below {DOUBTFUL} in {len(last['weak'])} classes: {listed}")
    if last["precision"] is not None and last["precision"] < DOUBTFUL:
        print(
            f"WARNING: precision {last['precision']:.2f} is below {DOUBTFUL}: mend the questions before training on this"
        )


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
