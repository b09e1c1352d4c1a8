"""The finished runs of a dataset as a viewer reads them: figures, detections, and which kind of error each detection is."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.pipeline.viewer.entries import Entries
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.diagnosis.errors import (
    KINDS,
    MISSES,
    AnnotatedPairs,
    Diagnosis,
    confusions,
    decisive,
    diagnose,
)
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
from hoi_distill.storage.errors import UserError

KEPT = 4
"""Runs whose detections stay in memory."""


@dataclass(frozen=True)
class Run:
    """A trained and evaluated student.

    Attributes:
        name: its folder below the runs' folder: ``pico/337a93487f0a``.
        folder: where it lies.
        student: its ``student.json``.
        evaluation: its ``evaluation.json``.
    """

    name: str
    folder: Path
    student: Mapping[str, Any]
    evaluation: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line for people: name, method, seed, mAP."""
        full = self.evaluation.get("default", {}).get("full")
        seed = self.student.get("student", {}).get("seed")
        said = [str(self.student.get("method", ""))]
        said += [] if seed is None else [f"seed {seed}"]
        said += [] if full is None else [f"mAP {full:.2f}"]
        return f"{self.name} ({', '.join(filter(None, said))})"


def find_runs(runs: Path, dataset: Mapping[str, Any]) -> dict[str, Run]:
    """The finished runs whose dataset is this one, by name, those of one configuration together, the newest first.

    Args:
        runs: the folder of all runs.
        dataset: the ``dataset`` section of the configuration, as ``student.json`` has it.
    """
    found: list[tuple[str, float, Run]] = []
    for file in runs.glob("*/*/evaluation.json"):
        folder = file.parent
        if folder.is_symlink() or not (folder / "detections.parquet").exists():
            continue
        student, evaluation = _json(folder / "student.json"), _json(file)
        if student is None or evaluation is None or student.get("dataset") != dataset:
            continue
        name = f"{folder.parent.name}/{folder.name}"
        found.append((folder.parent.name, -file.stat().st_mtime, Run(name, folder, student, evaluation)))
    return {run.name: run for _, _, run in sorted(found, key=lambda each: each[:2])}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True, eq=False)
class RunErrors:
    """The detections of a run on the test split, D of them, each with its kind of error.

    Attributes:
        run: whose they are.
        detections: ``image`` counts records of the test split.
        entry: ``int64 [D]``, the entry of each detection, -1 for a record whose bytes another record has.
        kind: ``int8 [D]``, position in :data:`~hoi_distill.stages.evaluate.diagnosis.errors.KINDS`, -1: not counted.
        decisive: ``bool [D]``, among the n best of its class, n being the class's annotated pairs.
        found: ``int64 [D]``, the test split's annotated pair that a detection found, or -1.
        pairs: the test split's G annotated pairs.
        pair_entry: ``int64 [G]``, the entry of each.
        miss: ``int8 [G]``, position in :data:`~hoi_distill.stages.evaluate.diagnosis.errors.MISSES`, -1: found.
        hoi: ``int16 [G]``, the class of each.
    """

    run: Run
    detections: HoiDetections
    entry: np.ndarray
    kind: np.ndarray
    decisive: np.ndarray
    found: np.ndarray
    pairs: AnnotatedPairs
    pair_entry: np.ndarray
    miss: np.ndarray
    hoi: np.ndarray

    @functools.cached_property
    def by_entry(self) -> tuple[np.ndarray, np.ndarray]:
        """The detections by entry: their order, and the sorted entries, ``int64 [D]`` each."""
        order = np.lexsort((-self.detections.score, self.entry))
        return order, self.entry[order]

    def of_entry(self, entry: int) -> np.ndarray:
        """``int64``: the detections of one entry, best first."""
        order, sorted_entries = self.by_entry
        return order[slice(*np.searchsorted(sorted_entries, [entry, entry + 1]))]

    def found_share(self, entry_count: int) -> np.ndarray:
        """``float64 [E]``: the share of each image's annotated pairs that were found; NaN where it has none."""
        known = self.pair_entry >= 0
        pairs = np.bincount(self.pair_entry[known], minlength=entry_count)
        hits = np.bincount(self.pair_entry[known & (self.miss < 0)], minlength=entry_count)
        return np.divide(hits, pairs, out=np.full(entry_count, np.nan), where=pairs > 0)

    @functools.cached_property
    def confused(self) -> tuple[np.ndarray, np.ndarray]:
        """Detections of a wrong class that lie on an annotated pair, and that pair, ``int64 [K]`` each."""
        wrong = [list(KINDS).index(name) for name in ("wrong verb", "wrong object", "wrong verb and object")]
        rows = np.flatnonzero(np.isin(self.kind, wrong))
        return confusions(self.detections, self.pairs, rows)


def run_errors(run: Run, entries: Entries) -> RunErrors:
    """Read a run's detections and diagnose them, as ``hoi-distill evaluate`` does.

    Args:
        run: with its folder.
        entries: with the test split's annotations.

    Raises:
        UserError: the file cannot be read, or names other images than the test split's.
    """
    if "test" not in entries.splits:
        raise UserError(f"{run.folder}: this dataset has no test split")
    test = entries.annotations[entries.splits.index("test")]
    path = run.folder / "detections.parquet"
    detections = read_detections(path, test.image_id, entries.vocabulary, object_optional=True)
    evaluation = evaluate_hico_det(test, detections, np.zeros(len(entries.vocabulary), bool))
    pairs = AnnotatedPairs(test.pair_image(), test.human_box, test.object_box, test.object, test.verb)
    diagnosis: Diagnosis = diagnose(detections, pairs, evaluation.matched, evaluation.counted)
    first = np.zeros(len(detections), bool)
    first[evaluation.ranking.row[decisive(evaluation.ranking)]] = True
    entry = entries.of_records("test")
    return RunErrors(
        run=run,
        detections=detections,
        entry=entry[detections.image],
        kind=diagnosis.kind,
        decisive=first,
        found=evaluation.matched,
        pairs=pairs,
        pair_entry=entry[pairs.image],
        miss=diagnosis.miss,
        hoi=test.hoi,
    )


@dataclass(frozen=True)
class KindCount:
    """A line of a run's errors: a kind, what it means, how many detections or pairs, in how many images."""

    name: str
    says: str
    count: int
    images: int


def kind_counts(errors: RunErrors) -> tuple[list[KindCount], list[KindCount]]:
    """The kinds of the decisive detections, and the reasons of the missed pairs."""
    kinds = [
        KindCount(name, text, int(here.sum()), len(np.unique(errors.entry[here])))
        for number, (name, text) in enumerate(KINDS.items())
        for here in [errors.decisive & (errors.kind == number)]
    ]
    misses = [
        KindCount(f"missed: {name}", text, int(here.sum()), len(np.unique(errors.pair_entry[here])))
        for number, (name, text) in enumerate(MISSES.items())
        for here in [errors.miss == number]
    ]
    return kinds, misses


def confusion_counts(errors: RunErrors, most: int = 20) -> list[tuple[int, int, int]]:
    """(annotated class, said class, decisive detections) of the most frequent confusions."""
    rows, pairs = errors.confused
    kept = errors.decisive[rows] & (errors.detections.hoi[rows] >= 0)
    both = np.stack([errors.hoi[pairs[kept]], errors.detections.hoi[rows[kept]]], axis=1)
    if not len(both):
        return []
    classes, counts = np.unique(both, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(*classes[i].tolist(), int(counts[i])) for i in order]
