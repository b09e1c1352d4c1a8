"""HICO-DET, any dataset in its layout, and annotations of one's own, behind ``hoi-distill evaluate``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.data.sampling.splits import RARE_BELOW, ZeroShotSplit, hico_training_pairs
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.data.zero_shot import split_of
from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL, SWITCHES, Convention, convention
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import (
    HicoDetEvaluation,
    evaluate_hico_det,
    training_pairs,
)
from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUP_LABELS
from hoi_distill.stages.evaluate.protocols.shared import (
    detections_format,
    read_triplets,
    refuse_format,
    ties_note,
    ties_of,
    vocabulary_of,
)
from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest, EvaluationResult, Setting
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.stages.evaluate.detections import HoiDetections


def evaluate_hico_det_files(request: EvaluationRequest) -> EvaluationResult:
    """Read, check and evaluate; see :func:`hoi_distill.stages.evaluate.protocols.evaluate_files.evaluate_files`."""
    chosen = convention(request.convention, request.switches)
    test = open_annotations(
        request.dataset, request.annotations, request.split, images=False, image_labels=request.image_labels
    ).classified()
    words = vocabulary_of(test)
    split = None if request.zero_shot is None else _split(request, words)
    found = _read(request, test)
    result = evaluate_triplets(test, found, _training_pairs(request, words), chosen, split)
    if words == hico_vocabulary():
        return result
    counted = "all" if request.labelled is None else f"the first {request.labelled:,}"
    rare = f"Rare: fewer than {RARE_BELOW} annotated pairs in {counted} training images (--labelled N: in the first N)."
    return replace(result, notes=[*result.notes, rare])


def evaluate_triplets(
    test: Annotations,
    detections: HoiDetections,
    training: np.ndarray,
    chosen: Convention = OFFICIAL,
    split: ZeroShotSplit | None = None,
) -> EvaluationResult:
    """Evaluate detections that are already read.

    Args:
        test: the annotated split.
        detections: ``image`` counts its images.
        training: ``int64 [H]`` training pairs of each class, which say what is rare.
        chosen: the convention.
        split: a zero-shot split of the classes.
    """
    began = time.perf_counter()
    found = evaluate_hico_det(
        test, detections, training < RARE_BELOW, training=training, convention=chosen, zero_shot=split
    )
    seconds = time.perf_counter() - began
    result = result_of(test, detections, found)
    return replace(result, record={**result.record, "seconds": round(seconds, 3)})


def result_of(test: Annotations, detections: HoiDetections, found: HicoDetEvaluation) -> EvaluationResult:
    """What the page of an evaluation shows of one that was made.

    Args:
        test: the annotated split.
        detections: what was evaluated; ``image`` counts the split's images.
        found: the evaluation.
    """
    settings = {
        "default": Setting("default", found.default, found.sets, found.ranking, "all images"),
        "known_object": Setting(
            "known object", found.known_object, found.sets, found.known_object_ranking, "images showing the object"
        ),
    }
    if found.zero_shot is not None:
        means = {key: value for key, value in found.zero_shot.items() if key != "split"}
        settings["zero_shot"] = Setting(
            f"zero-shot {found.zero_shot['split']}", means, found.sets, found.ranking, "default setting"
        )
    ties = ties_of(settings)
    notes = ties_note(ties, settings, SWITCHES["ties"][found.convention.ties])
    if grouped := found.by_training_pairs:
        means = {name: group["map"] for name, group in grouped.items()}
        settings["by_training_pairs"] = Setting(
            "by training pairs", means, found.sets, found.ranking, "default setting"
        )
        counts = ", ".join(f"{PAIR_GROUP_LABELS[name]} {group['classes']}" for name, group in grouped.items())
        notes.append(f"Classes by training pairs: {counts}.")
    if found.known_object_from == "annotated pairs":
        why = "so the convention has it"
        if test.image_hois is None:
            why = "no image-level labels" + (": give --image-labels" if test.name == "hico-det" else "")
        notes.append(f"Known-object image sets are taken from the annotated pairs ({why}).")
    return EvaluationResult(
        record={**found.as_json(), "ties": ties},
        per_class=[{"name": f"{row['verb']} {row['object']}".replace("_", " ")} | row for row in found.per_class],
        settings=settings,
        image_ids=test.image_id,
        vocabulary=vocabulary_of(test),
        detections=detections,
        annotations=test,
        matched=found.matched,
        counted=found.counted,
        grid=RECALL_GRIDS[found.convention.recall_grid],
        notes=notes,
    )


def _split(request: EvaluationRequest, words: Vocabulary) -> ZeroShotSplit:
    """The split of the vocabulary that ``--zero-shot`` names."""
    try:
        return split_of(words, request.zero_shot or "")
    except UserError as error:
        raise UserError(f"--zero-shot: {request.annotations}: {error}") from None


def _read(request: EvaluationRequest, test: Annotations) -> HoiDetections:
    """Read detections of any of the three formats."""
    form = detections_format(request)
    if request.frame is not None and form != "qpic":
        raise UserError(
            f"--frame {request.frame}: {form} files say which pixels a box begins and ends with; leave it out"
        )
    if form == "qpic":
        from hoi_distill.stages.evaluate.formats.qpic_json import FRAMES, read_qpic_json

        if request.frame not in (None, *FRAMES):
            raise UserError(f"--frame {request.frame}: there are {', '.join(FRAMES)}")
        return read_qpic_json(request.detections, test, request.frame)
    if form == "pocket":
        from hoi_distill.stages.evaluate.formats.pocket_mat import read_pocket_mat

        return read_pocket_mat(request.detections, test.image_id, vocabulary_of(test))
    if form == "parquet":
        return read_triplets(request, test)
    raise refuse_format(request, form)


def _training_pairs(request: EvaluationRequest, words: Vocabulary) -> np.ndarray:
    """``int64 [H]``: HICO-DET's published counts for its own classes, else those of the dataset's training split."""
    if request.dataset == "hico-det" and request.labelled is None and words == hico_vocabulary():
        return hico_training_pairs()
    return training_pairs(
        open_annotations(request.dataset, request.annotations, "train", images=False, limit=request.labelled)
    )
