"""How good the labels are that a teacher gave to whole pictures, measured against annotations.

This is a diagnosis, for deciding whether the questions are good enough (in the CL-HOI style). No training reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan, read_upstream
from hoi_distill.pipeline.workspace import Setup
from hoi_distill.stages.data.label_kinds import IGNORED, NEGATIVE, POSITIVE
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.derived.image_labels import ImageLabels, InteractionLabels
from hoi_distill.stages.derived.triplets import drop_report

DOUBTFUL = 0.5
"""Precision of positives below which questions should be mended first."""
ENOUGH = 5
"""Positives that a class needs to be judged by itself."""


def gate(setup: Setup, plans: Mapping[str, TablePlan], name: str, sample: int | None) -> dict[str, Any]:
    """The figures of one table: ``pictures``, ``dropped`` by reason and, ``before`` and ``after`` verification questions,
    those of :func:`figures`; ``after`` is None where none are asked.

    Args:
        sample: so many pictures, drawn with seed 0; None: all.
    """
    made, source = plans[name], setup.sources["images"]
    stage = made.node.stage
    assert isinstance(stage, ImageLabels)
    assert made.state is not None
    records = np.sort(np.unique(source.splits["train"], return_index=True)[1])
    records = records[np.isin(source.splits["train"][records], made.rows[made.state.filled[:, 0]])]
    if sample is not None:
        records = np.sort(np.random.default_rng(0).permutation(records)[:sample])
    rows = source.splits["train"][records]
    truth = setup.dataset["train"].take(records).image_truth()
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


def figures(judged: InteractionLabels, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
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


def _figures(judged: InteractionLabels, truth: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
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
