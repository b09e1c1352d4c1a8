"""No manual label may reach a training that claims to use none: neither as an annotation nor inside a table.

What the training is handed is :func:`hoi_distill.pipeline.training.annotations.without_annotations`; this module looks
at where its tables come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hoi_distill.pipeline.config.schema import Dataset, SwigHoiDataset, VCocoDataset
from hoi_distill.pipeline.config.student import DataSection
from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.stage import Stage
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError

INTERACTION_DATASETS = re.compile(r"hico|v[-_]?coco|swig|hoi-?a", re.IGNORECASE)
"""Datasets of interactions, in the names that checkpoints fine-tuned on them go by."""


def refuse_leaks(nodes: Mapping[str, Node], data: DataSection, method: str, needs: Needs, where: str) -> None:
    """Refuse manual labels that a training claims not to use.

    Args:
        nodes: the tables.
        data: which images, annotations and tables the student gets.
        method: the name of the student's method.
        needs: what the method reads.
        where: how a message begins: the file and the section.

    Raises:
        UserError: the method reads no labelled images and there are some, or it reads some and there are none, or
            somebody has learned from annotated interactions in a table or below it.
    """
    suffice = needs.all_annotations or needs.unlabelled_suffice
    if data.labelled == 0 and needs.annotations and not suffice:
        raise UserError(f"{where}labelled: 0; {method} learns from annotated images, label at least 1")
    for key in ("zero_shot", "few_shot", "validation"):
        if data.labelled == 0 and getattr(data, key) is not None:
            raise UserError(
                f"{where}{key}: chooses among the annotations of labelled images, and labelled is 0; remove it"
            )
    if needs.annotations and (data.labelled != 0 or needs.all_annotations):
        return
    if data.labelled != 0:
        said = "null" if data.labelled is None else data.labelled
        raise UserError(f"{where}labelled: {said}; {method} reads no annotation here, write 0")
    roles = [*needs.train, *needs.test]
    for name in dict.fromkeys(upstream(nodes, map(data.tables.name_of, roles))):
        stage = nodes[name].stage
        if getattr(stage, "teacher", None) is not None:
            raise UserError(f"{where}tables: {name} is answered by a pair teacher, which learned from annotations")
        if stage.name == "pair_answers" and stage.parameters()["teacher"] == "annotations":
            raise UserError(f"{where}tables: {name} is read off the annotations")
        if needs.untuned_detector and (reason := tuned(stage)):
            raise UserError(
                f"{where}tables: the boxes of {name} owe something to annotated interactions ({reason}); use a detector of "
                f"COCO's boxes, or write allow_hoi_tuned_detector: true and say so with the results"
            )


def refuse_annotated_vocabulary(
    dataset: Dataset, vocabulary: Vocabulary, method: str, needs: Needs, where: str
) -> None:
    """Raises UserError, beginning with ``where``, for a list of interactions that was read off annotations, whatever it is
    called. HICO-DET's 600 are the task's own; which objects go with an action of V-COCO or SWiG-HOI nobody but their
    annotators has said."""
    if needs.annotations:
        return
    if isinstance(dataset, SwigHoiDataset):
        raise UserError(
            f"{where}dataset.kind: swig-hoi; its list of interactions is read off its annotations, and {method} reads none here"
        )
    if names_of(vocabulary) == names_of(v_coco_vocabulary("trainval")):
        said = f"combinations: {dataset.combinations}" if isinstance(dataset, VCocoDataset) else "vocabulary"
        raise UserError(
            f"{where}dataset.{said}; which objects an action goes with is read off V-COCO's annotations, and "
            f"{method} reads none here; write all, or a vocabulary file that a language model's answers fill"
        )


def names_of(vocabulary: Vocabulary) -> set[tuple[str, ...]]:
    """Its interactions by name, in no order."""
    return {tuple(vocabulary.hoi_name(hoi)) for hoi in range(len(vocabulary))}


def upstream(nodes: Mapping[str, Node], names: Iterator[str]) -> Iterator[str]:
    """These tables and all that they are computed from."""
    for name in names:
        if name in nodes:
            yield name
            yield from upstream(nodes, iter(nodes[name].stage.inputs))


def tuned(stage: Stage) -> str | None:
    """Why a stage's boxes are taken to come from annotated interactions; None where nothing says so, or it gives no boxes.

    Judged by what the weights' folder and file are called, by the name that their ``config.json`` keeps, and by
    ``hico_tuned``. Of a detections file only its own name is looked at: it may well lie beside the dataset.
    """
    if stage.name != "detections":
        return None
    if stage.parameters().get("detector") == "annotations":
        return "they are the annotated boxes"
    provenance: dict[str, Any] = stage.provenance()
    if provenance.get("hico_tuned"):
        return "hico_tuned"
    checkpoint = getattr(stage, "checkpoint", None)
    paths = [Path(provenance[key]) for key in ("checkpoint", "weights", "config") if provenance.get(key)]
    told = ["/".join(path.parts[-2:]) for path in paths] + [Path(file).name for file in provenance.get("files", ())]
    told += [] if checkpoint is None else [str(checkpoint.config.get("_name_or_path", ""))]
    return next((each for each in told if INTERACTION_DATASETS.search(each)), None)
