"""A report on a teacher's image-level labels, measured against annotations.

It helps to decide whether the questions are good enough, in the CL-HOI style. No training reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, cast

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.label_kinds import IGNORED, NEGATIVE, POSITIVE
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.derived.image_labels import ImageLabels, InteractionLabels
from hoi_distill.stages.derived.triplets import drop_report
from hoi_distill.stages.evaluate.metrics.average_precision import tie_averaged_precision

DOUBTFUL = 0.5
"""Below this precision of positives a user should improve the questions first."""
ENOUGH = 5
"""A class with so many positives is looked at alone."""


class ClassMetrics(TypedDict):
    """Image-level labels compared with the ground truth.

    Attributes:
        positives: the number of positive labels.
        precision: of the positive labels.
        recall: of the positive labels.
        map: average precision of the ranking of all images by a class's target, mean over the classes that occur.
        negatives: the share of the listed negatives that are not annotated.
        ignored: the share of the listed entries that are ignored.
        listed: listed entries of an image, mean.
        missed: the share of the annotated entries that are not listed. No label can say them.
        weak: classes whose positives are mostly wrong, with their precision.
    """

    positives: int
    precision: float | None
    recall: float | None
    map: float | None
    negatives: float | None
    ignored: float | None
    listed: float
    missed: float | None
    weak: dict[str, float]


class LabelMetrics(ClassMetrics, total=False):
    """Metrics over all classes.

    Attributes:
        actions: metrics over the classes that are not no_interaction, if there are both kinds.
    """

    actions: ClassMetrics


class LabelReport(TypedDict):
    """A report on one table of image-level labels.

    Attributes:
        pictures: the number of images.
        triplets: the number of triplets that were read from sentences.
        dropped: the number of dropped phrases, by reason.
        before: metrics before the verification questions.
        after: metrics after them. None without such questions.
    """

    pictures: int
    triplets: int
    dropped: dict[str, int]
    before: LabelMetrics
    after: LabelMetrics | None


def label_report(workspace: Workspace, plans: Mapping[str, TablePlan], name: str, sample: int | None) -> LabelReport:
    """The report on one table of image-level labels.

    Args:
        workspace: with an annotated training split.
        plans: of all tables. The table is filled.
        name: the table's.
        sample: the number of images, drawn with seed 0. None: all.
    """
    table_plan, images = plans[name], workspace.images
    stage = table_plan.node.stage
    assert isinstance(stage, ImageLabels)
    assert table_plan.state is not None
    records = images.distinct_records("train")
    records = records[np.isin(images.splits["train"][records], table_plan.rows[table_plan.state.filled[:, 0]])]
    if sample is not None:
        records = np.sort(np.random.default_rng(0).permutation(records)[:sample])
    rows = images.splits["train"][records]
    gt = workspace.dataset["train"].take(records).image_truth()
    inputs = {up: plans[up].read(rows) for up in stage.inputs}
    if stage.verification is not None:
        answers = inputs[stage.verification]
        inputs[stage.verification] = {question: answers[question] for question in stage.questions}
    dropped: Counter[str] = Counter()
    for text in stage.texts:
        dropped.update(drop_report(inputs[stage.triplets][text].to_pylist()))
    taken = dropped.pop("taken")
    dropped.update(drop["reason"] for row in stage.dropped(inputs) for drop in row)
    names = [" ".join(workspace.vocabulary.hoi_name(hoi)) for hoi in range(len(workspace.vocabulary))]
    return {
        "pictures": len(records),
        "triplets": taken,
        "dropped": dict(dropped.most_common()),
        "before": label_metrics(stage.judged(inputs, verified=False), gt, names),
        "after": None if stage.verification is None else label_metrics(stage.judged(inputs), gt, names),
    }


def label_metrics(judged: InteractionLabels, gt: np.ndarray, names: Sequence[str]) -> LabelMetrics:
    """Compare labels with the ground truth.

    Args:
        judged: the labels of N images and H classes.
        gt: ``bool [N, H]``: the classes that are annotated.
        names: of the H classes.
    """
    actions = np.array([not name.startswith(f"{NO_INTERACTION} ") for name in names], bool)
    metrics = cast(LabelMetrics, _metrics(judged, gt, names))
    if not actions.all():
        parts = (getattr(judged, field.name)[:, actions] for field in fields(judged))
        kept = [name for name, kept in zip(names, actions, strict=True) if kept]
        metrics["actions"] = _metrics(type(judged)(*parts), gt[:, actions], kept)
    return metrics


def labelled_metrics(report: LabelReport, before: str, after: str, actions: str) -> Iterator[tuple[str, ClassMetrics]]:
    """All metrics of a report, each with its label.

    Args:
        report: the report.
        before: the label of metrics before the verification questions.
        after: the label of metrics after them.
        actions: what is added to a label for metrics without no_interaction.
    """
    for label, metrics in ((before, report["before"]), (after, report["after"])):
        if metrics is not None:
            yield label, metrics
            if "actions" in metrics:
                yield f"{label}{actions}", metrics["actions"]


def _metrics(judged: InteractionLabels, gt: np.ndarray, names: Sequence[str]) -> ClassMetrics:
    positive = judged.listed & (judged.kind == POSITIVE)
    negative = judged.listed & (judged.kind == NEGATIVE)
    entries = int(judged.listed.sum())
    tp, positives = (positive & gt).sum(axis=0), positive.sum(axis=0)
    doubtful = np.flatnonzero((positives >= ENOUGH) & (tp < DOUBTFUL * positives))
    weak = {names[hoi]: round(float(tp[hoi] / positives[hoi]), 4) for hoi in doubtful.tolist()}
    occurring = np.flatnonzero(gt.any(axis=0))
    precisions = [tie_averaged_precision(judged.target[:, hoi], gt[:, hoi]) for hoi in occurring]
    return {
        "positives": int(positives.sum()),
        "precision": ratio(tp.sum(), positives.sum()),
        "recall": ratio(tp.sum(), gt.sum()),
        "map": round(float(np.mean(precisions)), 4) if precisions else None,
        "negatives": ratio((negative & ~gt).sum(), negative.sum()),
        "ignored": ratio((judged.listed & (judged.kind == IGNORED)).sum(), entries),
        "listed": round(entries / max(1, len(gt)), 2),
        "missed": ratio((gt & ~judged.listed).sum(), gt.sum()),
        "weak": dict(sorted(weak.items(), key=lambda item: item[1])),
    }


def ratio(part: Any, whole: Any) -> float | None:
    """A share, rounded to four decimals. None where the whole is nothing."""
    return round(float(part) / float(whole), 4) if whole else None
