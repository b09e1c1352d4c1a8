"""LINK as a method: detected boxes in pairs on a VLM's cached map, distilled from the pair teachers of an earlier phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from hoi_distill.stages.student.method import Needs
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.pairs.method import PairMethod
from hoi_distill.stages.student.student import Columns
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.stages.student.methods.link.teacher_stages import TrainedTeacher

SOURCES = {
    "soft_labels": "cached image-text-matching scores",
    "text_labels": "labels from the teacher's text",
    "pair_answers": "the teacher's answers about each pair",
}
LEVELS = {"logit": "logits", "query": "queries", "map": "maps"}


class LinkMethod(PairMethod[LinkConfig]):
    name = "link"
    version = 1
    config = LinkConfig
    zero_shot = True
    validates = True
    attends = True

    @override
    def needs(self, config: LinkConfig, vocabulary: Vocabulary) -> Needs:
        kd = config.kd
        teachers: dict[str, Columns] = dict.fromkeys(kd.tables, config.views)
        if config.soft_labels.used:
            # An answer about no_interaction is none, so soft labels leave it out; annotations still teach it.
            teachers["itm"] = tuple(vocabulary.prompt(hoi) for hoi in np.flatnonzero(vocabulary.actions()).tolist())
        if config.text_labels.used:
            teachers["labels"] = ("value",)
        teachers |= config.pair_answers.columns(vocabulary)
        scaled = any(term.used and term.calibrated for term in (config.soft_labels, config.pair_answers))
        written = {
            **dict.fromkeys(kd.pairs if kd.reads_pairs else (), ("kd.pairs", "link_pairs")),
            **dict.fromkeys(kd.maps if kd.reads_maps else (), ("kd.maps", "link_maps")),
        }
        return Needs(
            {"detections": None, "features": config.views, **teachers},
            {"detections": None, "features": config.views[:1]},
            where_asked=("itm", "pair_answers"),
            text=True,
            unlabelled=config.uses_unlabelled,
            unlabelled_suffice=not scaled and any(getattr(config, key).unlabelled for key in SOURCES),
            stages=written,
        )

    @override
    def distilled(self, config: LinkConfig, labelled: int, unlabelled: int) -> dict[str, int]:
        others, found = unlabelled if config.unlabelled_per_step else 0, {}
        if config.kd.on:
            found["kd"] = labelled
            if config.kd.unlabelled:
                found["kd.unlabelled: true"] = others
        for key in SOURCES:
            if (term := getattr(config, key)).used:
                found[f"{key}.images: {term.images}"] = term.count(labelled, others)
        return found

    @override
    def pair_teacher(
        self, name: str, config: LinkConfig, detections: str, features: str, maps: tuple[int, ...]
    ) -> TrainedTeacher:
        from hoi_distill.stages.student.methods.link.network_config import LinkShape
        from hoi_distill.stages.student.methods.link.teacher_stages import TrainedTeacher

        if config.kd.reads_pairs or config.kd.reads_maps:
            raise UserError("kd: a pair teacher learns from annotations alone; set its weights to 0")
        for key in SOURCES:
            if getattr(config, key).used:
                raise UserError(f"{key}: a pair teacher learns from annotations alone; set images: none")
        channels, *grid = maps
        LinkShape(channels, None, config.network)
        return TrainedTeacher(name, detections, features, config.network.width, (grid[0], grid[1]))

    @override
    def trained_on(self, config: LinkConfig, labelled: int, unlabelled: int) -> str:
        words = f"the annotated pairs of {labelled:,} images" if labelled else "no annotation"
        if config.kd.on:
            levels = " and ".join(word for name, word in LEVELS.items() if getattr(config.kd, name) > 0)
            teachers = len(config.kd.pairs if config.kd.reads_pairs else config.kd.maps)
            words += f", with {levels} of {teachers} pair teacher{'s' if teachers > 1 else ''} on every pair"
            if config.kd.unlabelled:
                words += f" of these and of {unlabelled:,} images without annotations"
        for term, source in SOURCES.items():
            chosen = getattr(config, term)
            if chosen.used:
                images = {"labelled": "the same images", "unlabelled": f"{unlabelled:,} images without annotations"}
                words += f", with {source} of {images.get(chosen.images, 'all images')}"
                if term == "soft_labels" and chosen.teacher == "shuffled":
                    words += " (control: each image has those of another)"
        return f"{words}. Looks through the teacher's cached feature maps"
