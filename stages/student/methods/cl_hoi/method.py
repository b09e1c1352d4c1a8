"""The CL-HOI style as a method: no manual label of an interaction, only what a teacher wrote and answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from hoi_distill.stages.student.method import Needs
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.pairs.method import PairMethod
from hoi_distill.stages.student.student import Columns

if TYPE_CHECKING:
    from hoi_distill.stages.data.vocabulary import Vocabulary

LABELS = {
    "teacher": "what a teacher said of {} images as wholes, no annotation at all",
    "ground_truth": "the annotated image-level interactions of {} images (control: manual labels)",
    "instances": "the annotated pairs of {} images (control: manual labels)",
}


class ClHoiMethod(PairMethod[ClHoiConfig]):
    name = "cl_hoi"
    version = 1
    config = ClHoiConfig

    @override
    def needs(self, config: ClHoiConfig, vocabulary: Vocabulary) -> Needs:
        own = config.labels == "teacher"
        train: dict[str, Columns] = {"detections": None, "features": config.views}
        if own or config.translates:
            train["labels"] = ("value",)
        if config.translates:
            train["context"] = ("value",)
        train |= config.pair_answers.columns(vocabulary)
        return Needs(
            train,
            {"detections": None, "features": config.views[:1]},
            where_asked=("pair_answers",),
            text=True,
            unlabelled=True,
            annotations=not own,
            all_annotations=not own,
            untuned_detector=not config.allow_hoi_tuned_detector,
        )

    @override
    def epochs(self, config: ClHoiConfig, labelled: int, unlabelled: int) -> float:
        return super().epochs(config, 0, labelled + unlabelled)

    @override
    def sized(self, config: ClHoiConfig, labelled: int, unlabelled: int) -> ClHoiConfig:
        return super().sized(config, 0, labelled + unlabelled)

    @override
    def trained_on(self, config: ClHoiConfig, labelled: int, unlabelled: int) -> str:
        words = LABELS[config.labels].format(f"{labelled + unlabelled:,}")
        if config.bridge == "copy" and config.labels != "instances":
            words += ", copied to every pair that could be meant"
        if config.pair_answers.used:
            words += "; with its answers about each pair"
        if config.network.context:
            words += f"; context tokens {'distilled from its texts' if config.distil else 'as they were drawn'}"
        return f"{words}. In the CL-HOI style; looks through the teacher's cached feature maps"

    @override
    def facts(self, config: ClHoiConfig) -> tuple[tuple[str, str], ...]:
        relations = [name for name in ("spatial", "visual", "context") if getattr(config.network, name)]
        stage = f"{config.context_stage.steps:,} of context, " if config.translates else ""
        return (("Steps", f"{stage}{config.steps:,} of interactions"), ("Relations", ", ".join(relations)))
