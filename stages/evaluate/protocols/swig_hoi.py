"""SWiG-HOI behind ``hoi-distill evaluate``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency
from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS
from hoi_distill.stages.evaluate.metrics.conventions import SWITCHES
from hoi_distill.stages.evaluate.metrics.swig_hoi import CONVENTION, swig_hoi
from hoi_distill.stages.evaluate.protocols.shared import (
    detections_format,
    read_triplets,
    refuse_format,
    ties_note,
    ties_of,
    vocabulary_of,
)
from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest, EvaluationResult, Setting

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.evaluate.detections import HoiDetections


def evaluate_swig_hoi_files(request: EvaluationRequest) -> EvaluationResult:
    """Read, check and evaluate; see :func:`hoi_distill.stages.evaluate.protocols.evaluate_files.evaluate_files`."""
    test = open_annotations("swig-hoi", request.annotations, request.split, images=False)
    form = detections_format(request)
    if form != "parquet":
        raise refuse_format(request, form)
    return evaluate_triplets(test, read_triplets(request, test))


def evaluate_triplets(test: Annotations, detections: HoiDetections) -> EvaluationResult:
    """Evaluate detections that are already read."""
    began = time.perf_counter()
    results = swig_hoi(detections, test)
    seconds = time.perf_counter() - began

    means = {name: round(value, 6) for name, value in results.percentages().items()}
    evaluated, frequency, words = swig_evaluated(), swig_frequency(), vocabulary_of(test)
    sets = {"full": evaluated} | {
        name: evaluated & (frequency == rank) for name, rank in (("non_rare", 2), ("rare", 1), ("unseen", 0))
    }
    chosen = np.flatnonzero(evaluated)
    per_class = []
    for hoi in chosen.tolist():
        verb, obj = words.hoi_name(hoi)
        pairs, tp = int(results.pairs[hoi]), int(results.found[hoi])
        per_class.append({
            "name": f"{verb} {obj}".replace("_", " "),
            "hoi": hoi, "verb": verb, "object": obj,
            "rare": bool(frequency[hoi] == 1), "unseen": bool(frequency[hoi] == 0),
            "pairs": pairs, "detections": int(results.detections[hoi]), "found": tp,
            "recall": round(100 * tp / pairs, 6) if pairs else None,
            "ap": round(100 * float(results.ap[hoi]), 6),
        })  # fmt: skip
    matched = np.append(np.flatnonzero(test.hoi >= 0), -1)[results.matched]
    settings = {"full": Setting("all images", means, sets, results.ranking)}
    ties = ties_of(settings)
    return EvaluationResult(
        record={
            "dataset": "swig-hoi",
            "split": test.split,
            "convention": CONVENTION.name,
            "definition": "SWiG-HOI's authors do it: best match, min IoU >= 0.5, 11 points, 19,999 detections a class",
            "counts": {
                "pictures": len(test),
                "pairs": len(test.hoi),
                "detections": len(detections),
                "classes": len(chosen),
            },
            **means,
            "per_class": per_class,
            "ties": ties,
            "seconds": round(seconds, 3),
        },
        per_class=per_class,
        settings=settings,
        image_ids=test.image_id,
        vocabulary=words,
        detections=detections,
        annotations=test,
        matched=matched,
        counted=results.counted,
        grid=RECALL_GRIDS[CONVENTION.recall_grid],
        absent_counts=True,
        notes=ties_note(ties, settings, SWITCHES["ties"][CONVENTION.ties]),
    )
