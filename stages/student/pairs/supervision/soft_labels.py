"""Supervision by soft labels of whole images: a teacher's probability that an image shows an interaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.calibration import UNCALIBRATED, Platt, fit_platt, match_log_odds, shuffled_images
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept_array
from hoi_distill.stages.student.pairs.instances import ImageTable
from hoi_distill.stages.student.pairs.regions import Groups
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss
from hoi_distill.stages.student.source import in_order, stacked
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class SoftTargets:
    """The soft labels of a batch.

    Attributes:
        groups: the candidates that a soft label is known for.
        soft: float32 ``[G]``, the soft label of each group.
    """

    groups: Groups
    soft: Tensor


@dataclass(frozen=True)
class SoftLabelTerm(Term):
    """Soft labels of whole images, on the noisy-or of an image's pairs, see :func:`image_terms`.

    Attributes:
        soft: from rows of the training set (int64 ``[B]``) to float32 ``[B, H]`` probabilities; NaN where nothing is
            distilled.
        weight: weight of the loss after the ramp.
        ramp: steps over which the weight grows from 0.
        of: the noisy-or is over ``sigmoid(O)`` (``interaction``) or over final probabilities.
    """

    name: ClassVar[str] = "itm"

    soft: Callable[[np.ndarray], np.ndarray]
    weight: float
    ramp: int = 0
    of: Literal["interaction", "final"] = "interaction"

    @override
    def targets(self, batch: BatchImages) -> SoftTargets:
        """The soft labels of the images that have candidates."""
        soft, candidates = torch.from_numpy(self.soft(batch.rows)), batch.candidates
        groups = Groups.of(candidates, ~torch.isnan(soft[candidates.image, candidates.hoi]), soft.shape[1])
        return SoftTargets(groups, soft[groups.image, groups.hoi])

    @override
    def losses(self, predictions: Predictions, targets: SoftTargets, step: int) -> list[WeightedLoss]:
        """The loss, divided by the expected number of interactions that the images of the global batch show, at least 1."""
        groups, soft = targets.groups, targets.soft
        logit = predictions.final[-1] if self.of == "final" else predictions.logit[-1].float()
        terms = image_terms(logit[groups.positions], groups.member, soft)
        value = terms.sum() / predictions.processes.normaliser(soft.sum())
        return [WeightedLoss(self.name, self.weight * min(1.0, (step + 1) / max(self.ramp, 1)), value)]


def image_terms(logit: Tensor, group: Tensor, soft_label: Tensor) -> Tensor:
    """Cross-entropy between "some pair of the image shows the class" and the teacher's probability of it.

    The image's probability is the noisy-or ``S = 1 - prod(1 - s_p)`` of its pairs ``s_p = sigmoid(logit_p)``
    (multiple-instance learning, Zhang et al. 2005). Its gradient on ``logit_p`` is ``s_p - t * s_p / S``: just that of a
    pair-level cross-entropy against ``t * s_p / S``, the pair's posterior share of the teacher's probability. So the
    image-level loss *is* the consistent pair-level assignment, without a second term.

    Args:
        logit: float ``[N]`` interaction (or final) logits of candidates.
        group: int64 ``[N]``, the (image, class) that each candidate belongs to. Every group has a candidate.
        soft_label: float ``[G]`` in [0, 1], t of each (image, class).

    Returns:
        float32 ``[G]``.
    """
    log_absent = logit.new_zeros(len(soft_label)).index_add(0, group, -F.softplus(logit))
    # log(1 - exp(x)), exact for any x < 0; x = 0 is met only where every sigmoid has underflowed.
    log_present = torch.log(-torch.expm1(log_absent.clamp(max=-torch.finfo(torch.float32).tiny)))
    return -(soft_label * log_present + (1 - soft_label) * log_absent)


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's probability that an image shows an interaction, for any rows of the training set.

    Attributes:
        values: float ``[N, H]``, memory-mapped: match log-odds if there is a ``platt``, else probabilities. NaN where
            the teacher was not asked.
        source: int64 ``[N]``, the row whose values each row gets: its own, unless shuffled.
        distilled: bool ``[N]``, which rows have soft labels at all.
        platt: the calibration of match log-odds.
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


def calibration_line(platt: Platt) -> str:
    """What a training says of the calibration of its matching scores."""
    how = "" if platt.fitted else "; not calibrated, as the labelled images tell nothing apart: label more"
    return f"soft labels: sigmoid({platt.slope:.3f} m {platt.bias:+.3f}){how}"


def itm_soft_labels(
    path: Path,
    data: TrainingSet,
    images: ImageTable,
    distilled: np.ndarray,
    *,
    shuffle_seed: int | None = None,
    calibrated: bool = True,
) -> SoftLabels:
    """Soft labels of the ``itm`` table: calibrated probabilities of image-text matching.

    Args:
        path: keeps the log-odds (npy), which are read from the table once.
        data: the training set.
        images: the instances and pairs of all images.
        distilled: bool ``[N]``, the rows that have soft labels.
        shuffle_seed: each of these rows gets another one's values (a control); None: its own.
        calibrated: off: the teacher's own probabilities, the softmax of its two logits.

    Raises:
        UserError: no labelled image has a pair, so that nothing can be calibrated.
    """
    log_odds, source = _match_log_odds(path, data), np.arange(len(images))
    if shuffle_seed is not None:
        rows = np.flatnonzero(distilled)
        source[rows] = shuffled_images(rows, shuffle_seed)
    platt = calibrate(log_odds, data, images) if calibrated else UNCALIBRATED
    return SoftLabels(log_odds, source, distilled, platt)


def calibrate(log_odds: np.ndarray, data: TrainingSet, images: ImageTable) -> Platt:
    """Platt scaling on the labelled images, over the interactions that their pairs allow and that were asked for.

    Where these are all present, or all absent, nothing can be fitted, and the teacher's own probability stands.

    Args:
        log_odds: float ``[N, H]``, NaN where the teacher was not asked.
        data: the training set.
        images: the instances and pairs of all images.

    Raises:
        UserError: no labelled image has a pair.
    """
    rows = np.flatnonzero(data.labelled & images.usable())
    if len(rows) == 0:
        raise UserError("labelled: calibrating soft labels needs at least one labelled image with a pair")
    candidate = images.shown_objects(len(data.vocabulary.objects))[rows] @ data.valid()
    values = np.asarray(log_odds[rows])
    candidate &= np.isfinite(values)
    present = np.stack([data.present(row) for row in rows.tolist()])
    for place, row in enumerate(rows.tolist() if data.dropped is not None else []):
        dropped = data.dropped_pairs(row)[2]
        candidate[place, dropped] &= present[place, dropped]
    shown = present[candidate]
    if shown.all() or not shown.any():  # of a few images, which tell nothing apart
        return Platt(1.0, 0.0, len(shown), int(shown.sum()))
    return fit_platt(values[candidate], shown)


def _match_log_odds(path: Path, data: TrainingSet) -> np.ndarray:
    columns = [(hoi, prompt) for hoi, prompt in enumerate(data.prompts) if prompt is not None]
    hois = [hoi for hoi, _ in columns]

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for sample in in_order(data.source.open({"itm": tuple(prompt for _, prompt in columns)})):
            values = np.full(len(data.prompts), np.nan, np.float32)
            values[hois] = match_log_odds(stacked(sample["itm"]))
            yield sample["row"], values

    return kept_rows(path, data, rows())


def kept_rows(path: Path, data: TrainingSet, rows: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """One value for each image and interaction, kept in ``path`` (npy) and memory-mapped.

    Args:
        path: the file. ``rows`` are read only where it is not there whole.
        data: the training set.
        rows: (row, float ``[H]``).

    Returns:
        float32 ``[N, H]``; NaN for rows that are not given.
    """

    def fill(table: np.ndarray) -> None:
        table[:] = np.nan
        for row, values in rows:
            table[row] = values

    return kept_array(path, np.float32, (len(data.source), len(data.prompts)), fill)
