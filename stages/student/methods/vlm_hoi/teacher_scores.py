"""Before the first step: the teacher's scores at hand, calibrated on the labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi_distill.stages.student.calibration import shuffled_images
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept_array, shared_place
from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig, has_missing_objects
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import ItmColumns, columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import (
    ItmTargets,
    annotated_classes,
    calibrate,
    match_row,
    same_object,
    sentence_mean,
    verb_auc,
)
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.sentence_calibration import SentenceCalibration
from hoi_distill.stages.student.source import in_order


@dataclass(frozen=True)
class ItmSupervision:
    """The ITM scores that are distilled; None where nothing is.

    Attributes:
        labelled: scores of the labelled images.
        unlabelled: scores of the other images.
        lines: lines about the teacher, for people.
    """

    labelled: ItmTargets | None = None
    unlabelled: ItmTargets | None = None
    lines: tuple[str, ...] = ()


def itm_supervision(
    config: VlmHoiConfig, data: TrainingSet, folder: Path, shared: Path | None = None
) -> ItmSupervision:
    """Read and calibrate what the configuration distils.

    Args:
        config: the method's parameters.
        data: the training set.
        folder: keeps the scores, which are read from the cache once.
        shared: keeps them for all trainings of the same cells instead; None: ``folder`` does.

    Raises:
        UserError: a score is missing, or annotated sentences match less than others.
    """

    def place(prompt: str, columns: ItmColumns) -> Path:
        return shared_place(folder / f"itm-{prompt}.npy", shared, data.name_of("itm", columns.prompts))

    lines: list[str] = []
    labelled = None
    if config.on_labelled:
        labelled = _targets(config, config.itm, data, place, lines=lines, which="labelled", distilled=data.labelled)
    unlabelled = None
    if config.on_unlabelled:
        unlabelled = _targets(config, config.f7, data, place, lines=lines, which="unlabelled", distilled=~data.labelled)
    return ItmSupervision(labelled, unlabelled, tuple(lines))


def _targets(
    config: VlmHoiConfig,
    term: ItmConfig,
    data: TrainingSet,
    place: Callable[[str, ItmColumns], Path],
    *,
    lines: list[str],
    which: str,
    distilled: np.ndarray,
) -> ItmTargets:
    """The scores for the rows ``distilled`` (bool ``[N]``). ``place`` says where those of a kind of prompt are kept."""
    columns = columns_for(data.vocabulary, term.prompt, has_missing_objects(data.vocabulary))
    log_odds = match_table(place(term.prompt, columns), data, columns)
    rows = np.flatnonzero(data.labelled)
    known = rows[~np.isnan(log_odds[rows]).all(1)]
    classes = columns.of_classes(log_odds[known])
    present = annotated_classes(data.annotations.take(data.image[known]), columns)
    candidate = None if term.family == "F7" else same_object(present, columns.hois)
    platt = calibrate(classes, present, candidate)
    auc = verb_auc(classes, present, columns.hois)
    lines.append(
        f"itm on {which} images: t = sigmoid({platt.slope:.3f} m {platt.bias:+.3f}); "
        f"AUC of annotated verbs among those of the same object {auc:.3f}"
    )
    by_sentence = None
    if config.teacher == "constant":
        log_odds = np.where(np.isnan(log_odds), np.float32(np.nan), np.float32(platt.base_rate_at()))
        lines.append("itm: one score for all sentences, that of the base rate (control)")
    elif term.calibration == "sentence":
        by_sentence = SentenceCalibration.fit(log_odds, known, columns.column, present, candidate=candidate)
        fitted = columns.of_classes(by_sentence(np.asarray(log_odds[known]), known))
        lines.append(
            f"itm: offsets of {len(columns.prompts)} sentences from {by_sentence.offset[-1].min():+.2f} to "
            f"{by_sentence.offset[-1].max():+.2f}; the same AUC of t, calibrated on other images, "
            f"{verb_auc(fitted, present, columns.hois):.3f}"
        )
    source = None
    if config.teacher == "shuffled":
        source = np.arange(len(log_odds))
        source[distilled] = shuffled_images(np.flatnonzero(distilled), config.seed)
    names = [str(name) for name in data.annotations.image_id[data.image]]
    # The stream refuses cells that should be there and are not: what is NaN here was not to be asked (top-k tables).
    everywhere = annotated_classes(data.annotations.take(data.image), columns) if term.unmatched else None
    return ItmTargets(
        columns, log_odds, platt, sentence_mean(log_odds, rows), names, source,
        strict=False, by_sentence=by_sentence, present=everywhere,
    )  # fmt: skip


def match_table(path: Path, data: TrainingSet, columns: ItmColumns) -> np.ndarray:
    """Match log-odds of every row and sentence, float32 ``[N, P]`` in ``path`` (npy), memory-mapped; NaN where the image
    was not to be asked or is a recorded failure."""

    def fill(table: np.ndarray) -> None:
        table[:] = np.nan
        for sample in in_order(data.source.open({"itm": columns.prompts})):
            name = str(data.annotations.image_id[int(data.image[sample["row"]])])
            table[sample["row"]] = match_row(sample["itm"], columns.prompts, name)

    return kept_array(path, np.float32, (len(data.image), len(columns.prompts)), fill)
