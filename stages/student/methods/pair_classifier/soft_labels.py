"""The soft labels that a pair classifier distils: a teacher's calibrated probability that a picture shows an interaction.

How they reach the pairs is :func:`hoi_distill.stages.student.pairs.supervision.soft_labels.image_terms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoi_distill.stages.student.calibration import Platt, fit_platt, match_log_odds, shuffled_pictures
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import intact, kept_array, mapped
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import PictureTable
from hoi_distill.stages.student.pairs.predict import scored
from hoi_distill.stages.student.source import in_order, stacked
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's probability that a picture shows an interaction, for any rows of the training set.

    Attributes:
        values: float ``[N, H]``, memory-mapped: match log-odds if there is a ``platt``, else probabilities. NaN where
            the teacher was not asked.
        source: int64 ``[N]``, whose answers each row is given: its own, unless shuffled.
        distilled: bool ``[N]``, which rows have soft labels at all.
    """

    values: np.ndarray
    source: np.ndarray
    distilled: np.ndarray
    platt: Platt | None = None

    def __call__(self, rows: np.ndarray) -> npt.NDArray[np.float32]:
        """float32 ``[B, H]``; NaN where nothing is to be distilled."""
        values = np.asarray(self.values[self.source[rows]], np.float32)
        soft = values if self.platt is None else self.platt(values)
        return np.where(self.distilled[rows, None], soft, np.float32(np.nan))


def soft_labels(
    folder: Path, data: TrainingSet, pictures: PictureTable, config: PairClassifierConfig
) -> SoftLabels | None:
    """The soft labels of the configured teacher, or None where nothing is distilled.

    For the self-training control ``folder/self.npy`` has been written before, see
    :mod:`hoi_distill.stages.student.methods.pair_classifier.train`.
    """
    if not config.distils:
        return None
    distilled = {"labelled": data.labelled, "unlabelled": ~data.labelled, "both": np.ones_like(data.labelled)}[
        config.itm_on
    ]
    distilled = distilled & pictures.usable()
    source = np.arange(len(pictures))
    if config.teacher == "self":
        return SoftLabels(np.load(folder / "self.npy", mmap_mode="r"), source, distilled)
    if config.teacher == "oracle":
        rows = ((row, data.present(row).astype(np.float32)) for row in np.flatnonzero(distilled).tolist())
        return SoftLabels(_stored(folder / "oracle.npy", data, rows), source, distilled)
    log_odds = _match_table(folder / "itm.npy", data)
    if config.teacher == "shuffled":
        rows_ = np.flatnonzero(distilled)
        source[rows_] = shuffled_pictures(rows_, config.seed)
    return SoftLabels(log_odds, source, distilled, calibrate(log_odds, data, pictures))


def calibrate(log_odds: np.ndarray, data: TrainingSet, pictures: PictureTable) -> Platt:
    """Platt scaling on the labelled pictures, over the interactions that their pairs allow and that were asked for."""
    rows = np.flatnonzero(data.labelled & pictures.usable())
    if len(rows) == 0:
        raise UserError("labelled: calibrating soft labels needs at least one labelled picture with a pair")
    candidate = pictures.shown_objects(len(data.vocabulary.objects))[rows] @ data.valid()
    values = np.asarray(log_odds[rows])
    candidate &= np.isfinite(values)
    present = np.stack([data.present(row) for row in rows.tolist()])
    for place, row in enumerate(rows.tolist() if data.dropped is not None else []):
        dropped = data.dropped_pairs(row)[2]
        candidate[place, dropped] &= present[place, dropped]
    return fit_platt(values[candidate], present[candidate])


def _match_table(path: Path, data: TrainingSet) -> np.ndarray:
    asked = [(hoi, prompt) for hoi, prompt in enumerate(data.prompts) if prompt is not None]
    hois = [hoi for hoi, _ in asked]

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for sample in in_order(data.source.open({"itm": tuple(prompt for _, prompt in asked)})):
            values = np.full(len(data.prompts), np.nan, np.float32)
            values[hois] = match_log_odds(stacked(sample["itm"]))
            yield sample["row"], values

    return _stored(path, data, rows())


def _stored(path: Path, data: TrainingSet, rows: Iterator[tuple[int, np.ndarray]]) -> np.ndarray:
    """float32 ``[N, H]`` in ``path``, memory-mapped; NaN for rows that are not given."""

    def fill(table: np.ndarray) -> None:
        table[:] = np.nan
        for row, values in rows:
            table[row] = values

    return kept_array(path, np.float32, (len(data.source), len(data.prompts)), fill)


def has_picture_probabilities(path: Path, data: TrainingSet) -> bool:
    """Whether ``path`` holds what :func:`picture_probabilities` writes, whole."""
    shape = len(data.source), len(data.prompts)
    return intact(path, lambda place: mapped(place, np.float32, shape)) is not None


def picture_probabilities(
    path: Path, model: nn.Module, pictures: PictureTable, maps: MapReader, *, valid: Tensor, batch: int = 64
) -> None:
    """Write the soft labels of a self-trained student: its own probability that each picture shows each interaction,
    noisy-or over the pairs. float32 ``[N, H]`` in ``path`` (npy), NaN for pictures without pairs."""

    def fill(table: np.ndarray) -> None:
        table[:] = np.nan
        for each in scored(model, pictures, maps, valid, batch):
            log_absent = torch.zeros(len(each.rows), valid.shape[1])
            final = (each.candidates.prior * each.logit.sigmoid()).clamp(max=1 - 1e-7)
            places = each.candidates.image.cpu(), each.candidates.hoi.cpu()
            log_absent.index_put_(places, torch.log1p(-final).cpu(), accumulate=True)
            table[each.rows] = -torch.expm1(log_absent).numpy()

    kept_array(path, np.float32, (len(pictures), valid.shape[1]), fill)
