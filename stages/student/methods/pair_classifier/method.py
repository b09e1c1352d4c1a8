"""The pair classifier as a method: detected boxes in pairs, on feature maps of the teacher or of a small CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from hoi_distill.stages.student.method import Needs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.pairs.method import PairMethod
from hoi_distill.stages.student.student import Columns

if TYPE_CHECKING:
    from hoi_distill.stages.data.vocabulary import Vocabulary

ARMS = {
    "none": "the annotated pairs of {labelled} images alone",
    "labelled": "{labelled} annotated images, with soft labels from {teacher} on the same images",
    "unlabelled": "{labelled} annotated images, and {unlabelled} images with soft labels from {teacher} only",
    "both": "{labelled} annotated images with soft labels from {teacher}, and {unlabelled} images with soft labels only",
}
TEACHERS = {
    "itm": "cached image-text-matching scores",
    "shuffled": "another image's image-text-matching scores (control)",
    "oracle": "the image-level annotations (upper bound)",
    "self": "a student trained on the annotations alone (control)",
}
EYES = {"teacher": "the teacher's cached feature maps", "region_cnn": "a small frozen CNN of the student's own"}


class PairClassifierMethod(PairMethod[PairClassifierConfig]):
    name = "pair_classifier"
    version = 1
    config = PairClassifierConfig
    zero_shot = True
    validates = True

    @override
    def needs(self, config: PairClassifierConfig, vocabulary: Vocabulary) -> Needs:
        train: dict[str, Columns] = {"detections": None}
        if config.encoder == "teacher":
            train["features"] = config.views
        test = {**train, **({"features": config.views[:1]} if config.encoder == "teacher" else {})}
        if config.distils and config.teacher in ("itm", "shuffled"):
            # An answer about no_interaction is none, so soft labels leave it out; annotations still teach it.
            train["itm"] = tuple(vocabulary.prompt(hoi) for hoi in np.flatnonzero(vocabulary.actions()).tolist())
        train |= config.pair_answers.columns(vocabulary)
        return Needs(
            train,
            test,
            where_asked=("itm", "pair_answers"),
            text=True,
            # the student's own encoder learns from the boxes of every image
            unlabelled=(config.distils and config.itm_on in ("unlabelled", "both"))
            or config.pair_answers.unlabelled
            or config.encoder == "region_cnn",
            all_annotations=config.teacher == "oracle",
        )

    @override
    def distilled(self, config: PairClassifierConfig, labelled: int, unlabelled: int) -> dict[str, int]:
        others = unlabelled if config.unlabelled_per_step else 0
        on = {"labelled": labelled, "unlabelled": others, "both": labelled + others}
        found = {f"itm_on: {config.itm_on}": on[config.itm_on]} if config.distils else {}
        if config.pair_answers.used:
            found[f"pair_answers.images: {config.pair_answers.images}"] = config.pair_answers.count(labelled, others)
        return found

    @override
    def trained_on(self, config: PairClassifierConfig, labelled: int, unlabelled: int) -> str:
        arm = ARMS[config.itm_on if config.itm_weight else "none"]
        words = arm.format(labelled=f"{labelled:,}", unlabelled=f"{unlabelled:,}", teacher=TEACHERS[config.teacher])
        if config.pair_answers.used:
            words += f"; with the teacher's answers about each pair (images: {config.pair_answers.images})"
        return f"{words}. Looks through {EYES[config.encoder]}"
