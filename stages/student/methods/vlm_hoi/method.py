"""VLM-HOI as a method: MUREN on whole images, distilled from cached image-text matching scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from hoi_distill.stages.student.method import Method, Needs
from hoi_distill.stages.student.methods.vlm_hoi.config import (
    BOOKKEEPING,
    VlmHoiConfig,
    has_missing_objects,
    starting_files,
)
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for

if TYPE_CHECKING:
    from hoi_distill.stages.data.vocabulary import Vocabulary

TEACHERS = {
    "itm": "cached image-text-matching scores",
    "shuffled": "another image's matching scores (control)",
    "constant": "one score for all sentences (control)",
}


class VlmHoiMethod(Method[VlmHoiConfig]):
    name = "vlm_hoi"
    version = 1
    config = VlmHoiConfig
    bookkeeping = BOOKKEEPING

    @override
    def needs(self, config: VlmHoiConfig, vocabulary: Vocabulary) -> Needs:
        missing = has_missing_objects(vocabulary)
        terms = [(config.on_labelled, config.itm), (config.on_unlabelled, config.f7)]
        forms = [term.prompt for active, term in terms if active]
        prompts = dict.fromkeys(prompt for form in forms for prompt in columns_for(vocabulary, form, missing).prompts)
        return Needs(
            {"itm": tuple(prompts)} if prompts else {},
            {},
            unlabelled=config.on_unlabelled,
            failures=("itm", "detections", "features"),
            files=starting_files(config),
        )

    @override
    def epochs(self, config: VlmHoiConfig, labelled: int, unlabelled: int) -> float:
        return config.epochs

    @override
    def distilled(self, config: VlmHoiConfig, labelled: int, unlabelled: int) -> dict[str, int]:
        weights = (
            ("itm", config.itm.weight, labelled),
            ("f7", config.f7.weight, unlabelled if config.unlabelled_per_step else 0),
        )
        return {f"{key}.weight: {weight:g}": images for key, weight, images in weights if weight > 0}

    @override
    def rehearse(self, config: VlmHoiConfig, vocabulary: Vocabulary) -> None:
        from hoi_distill.stages.student.methods.vlm_hoi.train import new_network

        new_network(config, vocabulary)

    @override
    def trained_on(self, config: VlmHoiConfig, labelled: int, unlabelled: int) -> str:
        words = f"the annotated pairs of {labelled:,} images"
        if config.on_labelled:
            words += f", with family {config.itm.family} of {TEACHERS[config.teacher]} on the same images"
        if config.on_unlabelled:
            words += f", and {unlabelled:,} images with family F7 of {TEACHERS[config.teacher]} only"
        return f"{words}. Looks at the images themselves"

    @override
    def facts(self, config: VlmHoiConfig) -> tuple[tuple[str, str], ...]:
        return (("Epochs", f"{config.epochs:g}"),)
