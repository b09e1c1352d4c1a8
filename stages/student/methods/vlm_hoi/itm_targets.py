"""The cached teacher's scores of a batch: from one ITM table to match log-odds of every verb with every object.

One quantity is used everywhere, the match log-odds ``m = z1 - z0``, and ``t = sigmoid((m - b) / tau)``, its calibration
on the labelled images. (The released code of VLM-HOI reads z0, that is "no match".)

Shapes: B images, Q queries, P sentences, V verbs, O objects, H interactions of the vocabulary, C classes: the H
interactions, then V classes "verb v, no visible object" (V-COCO has them). Object O means "no visible object".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.student.calibration import Platt, fit_platt, match_log_odds
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import ItmColumns
from hoi_distill.stages.student.methods.vlm_hoi.sentence_calibration import SentenceCalibration
from hoi_distill.stages.student.source import stacked
from hoi_distill.storage.errors import UserError


def match_row(cells: Mapping[str, Any], prompts: Sequence[str], image: str) -> npt.NDArray[np.float32]:
    """One image's cells of the ``itm`` table, raw (z0, z1) by prompt, to log-odds of a match, float32 ``[P]``.

    A cell of None, which this image does not want, becomes NaN.

    Raises:
        UserError: a sentence is no column of the table.
    """
    if absent := [prompt for prompt in prompts if prompt not in cells]:
        raise _no_score(image, absent[0])
    if list(cells) != list(prompts):
        cells = {prompt: cells[prompt] for prompt in prompts}
    return match_log_odds(stacked(cells))


def annotated_classes(annotations: Annotations, columns: ItmColumns) -> npt.NDArray[np.bool_]:
    """bool ``[N, C]``: the classes that the annotations of N images find in each; never one without a sentence."""
    present = np.zeros((len(annotations), len(columns.hois)), bool)
    if annotations.image_hois is not None:
        present[:, : annotations.image_hois.shape[1]] = annotations.image_hois
    things = np.where(annotations.object < 0, columns.hoi_id.shape[1] - 1, annotations.object)
    classes = columns.hoi_id[annotations.verb, things]
    present[annotations.pair_image()[classes >= 0], classes[classes >= 0]] = True
    return present & (columns.column >= 0)


@dataclass(frozen=True)
class ItmScores:
    """The teacher's scores of B images and C classes, or any selection of them. NaN: not computed, not wanted, or no class.

    Attributes:
        log_odds: float32 ``[B, C]``, m.
        soft: float32 ``[B, C]``, calibrated probability t.
        centred: float32 ``[B, C]``, m minus its sentence's mean over the training images.
        present: bool ``[B, C]``, the classes that the images' annotations have; None where that is not asked.
    """

    log_odds: Tensor
    soft: Tensor
    centred: Tensor
    present: Tensor | None = None

    def of_verbs(self, image: Tensor, objects: Tensor, hoi_id: Tensor) -> ItmScores:
        """The scores of every verb with one object: fields ``[Q, V]``.

        Args:
            image: int64 ``[Q]``, places in the batch.
            objects: int64 ``[Q]`` in 0..O.
            hoi_id: int64 ``[V, O + 1]`` of :class:`ItmColumns`.
        """
        return self._select(image, hoi_id.T[objects])

    def of_objects(self, image: Tensor, hoi_id: Tensor) -> ItmScores:
        """The scores of every verb with every object: fields ``[Q, O + 1, V]``."""
        return self._select(image, hoi_id.T[None].expand(len(image), -1, -1))

    def _select(self, image: Tensor, classes: Tensor) -> ItmScores:
        rows = image.reshape(-1, *[1] * (classes.ndim - 1))

        def chosen(values: Tensor) -> Tensor:
            return torch.where(classes >= 0, values[rows, classes.clamp(min=0)], torch.nan)

        present = None if self.present is None else (classes >= 0) & self.present[rows, classes.clamp(min=0)]
        return ItmScores(chosen(self.log_odds), chosen(self.soft), chosen(self.centred), present)


@dataclass(frozen=True, eq=False)
class ItmTargets:
    """The teacher's scores of N training images, for any batch of rows.

    Attributes:
        columns: the P sentences and the classes that they stand for.
        log_odds: float ``[N, P]``, may be memory-mapped; NaN where the teacher has no score.
        platt: the calibration of log-odds.
        mean: float32 ``[P]``, see :func:`sentence_mean`.
        names: names of the N images, for messages.
        source: int64 ``[N]``, the row whose scores each row gets; None: its own (another's in the shuffled control).
        strict: every image must have a score of every sentence. Without it NaN scores are not wanted and are left out of
            the losses (a table of each image's top-k sentences), but a row without any score is an error all the same.
        by_sentence: a calibration with an offset of each sentence, in the place of ``platt``.
        present: bool ``[N, C]``, see :class:`ItmScores`.
    """

    columns: ItmColumns
    log_odds: np.ndarray
    platt: Platt
    mean: np.ndarray
    names: Sequence[str]
    source: np.ndarray | None = None
    strict: bool = True
    by_sentence: SentenceCalibration | None = None
    present: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> ItmScores:
        """Fields ``[B, C]`` of int64 ``rows [B]``. Raises UserError where scores are missing: never zeros instead."""
        taken = rows if self.source is None else self.source[rows]
        values = np.asarray(self.log_odds[taken], np.float32).reshape(len(rows), len(self.columns.prompts))
        absent = np.isnan(values) if self.strict else np.isnan(values).all(1, keepdims=True)
        if values.size and absent.any():
            row, column = np.argwhere(absent)[0]
            raise _no_score(self.names[int(taken[row])], self.columns.prompts[column])
        calibrated = self.platt(values) if self.by_sentence is None else self.by_sentence(values, taken)
        log_odds, soft, centred = (
            torch.from_numpy(self.columns.of_classes(field)) for field in (values, calibrated, values - self.mean)
        )
        present = None if self.present is None else torch.from_numpy(self.present[rows])
        return ItmScores(log_odds, soft, centred, present)


def _no_score(image: str, prompt: str) -> UserError:
    return UserError(f"itm: {image} has no score for '{prompt}'; fill the table with hoi-distill run")


def sentence_mean(log_odds: np.ndarray, rows: np.ndarray) -> npt.NDArray[np.float32]:
    """Each sentence's mean m over images ``rows``: float ``[N, P]`` to float32 ``[P]``, 0 for a sentence without scores.

    Sentences differ in how well they match any image; without its mean a short or common one wins everywhere (F4).
    """
    values = np.asarray(log_odds[rows], np.float64)
    known = ~np.isnan(values)
    return (np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)).astype(np.float32)


def calibrate(
    log_odds: np.ndarray, present: np.ndarray, candidate: np.ndarray | None = None, what: str = "itm"
) -> Platt:
    """``t = sigmoid((m - b) / tau)`` by maximum likelihood (slope = 1 / tau, bias = -b / tau), each dataset its own.

    Args:
        log_odds: float ``[N, C]`` of labelled training images; NaN entries are left out.
        present: bool ``[N, C]``, classes that the annotations find in the image.
        candidate: bool ``[N, C]``, entries to fit on: for t of matched queries :func:`same_object`, because
            these read scores of annotated objects only; default all, which F7 reads.
        what: begins an error's message.

    Raises:
        UserError: the scores are oriented the wrong way (:func:`check_orientation`), or nothing is present or absent.
    """
    check_orientation(log_odds, present, what)
    chosen = ~np.isnan(log_odds) if candidate is None else candidate & ~np.isnan(log_odds)
    try:
        return fit_platt(log_odds[chosen], present[chosen])
    except ValueError as error:
        raise UserError(f"{what}: {error}; label more training images") from error


def same_object(present: np.ndarray, hois: np.ndarray) -> npt.NDArray[np.bool_]:
    """bool ``[N, C]``: classes of an object that is in an annotated class of the image. hois: int ``[C, 2]``."""
    of_object = (hois[:, 1] == np.arange(hois[:, 1].max(initial=0) + 1)[:, None]).astype(np.float32)
    return (present.astype(np.float32) @ of_object.T > 0) @ of_object > 0


def check_orientation(log_odds: np.ndarray, present: np.ndarray, what: str = "itm") -> float:
    """The mean AUC, within images, of annotated against other classes; NaN where none can be compared.

    Raises:
        UserError: it is below 0.5, so that annotated sentences match less than others: no-match logits, or z0 and z1
            swapped, or another dataset's table.
    """
    rows, classes = np.nonzero(~np.isnan(log_odds))
    auc = grouped_auc(log_odds[rows, classes], present[rows, classes], rows)
    if auc < 0.5:
        raise UserError(f"{what}: AUC {auc:.3f} of annotated interactions is below 0.5; are z0 and z1 swapped?")
    return auc


def verb_auc(log_odds: np.ndarray, present: np.ndarray, hois: np.ndarray) -> float:
    """The same between verbs of one object of one image: the gate before training. Near 0.5 the teacher says which
    objects are there, but nothing about verbs. float ``[N, C]``, bool ``[N, C]``, int ``[C, 2]``; NaN if none compare."""
    rows, classes = np.nonzero(~np.isnan(log_odds))
    group = rows * (hois[:, 1].max(initial=0) + 1) + hois[classes, 1]
    return grouped_auc(log_odds[rows, classes], present[rows, classes], group)


def grouped_auc(score: np.ndarray, positive: np.ndarray, group: np.ndarray) -> float:
    """Mean over groups of the chance that a positive outscores a negative of its group (ties count half).

    Args:
        score: float ``[E]``.
        positive: bool ``[E]``.
        group: int ``[E]``. Groups of one kind only do not count.

    Returns:
        NaN if no group has both.
    """
    order = np.lexsort((score, group))
    score, positive, group = score[order], positive[order], np.unique(group[order], return_inverse=True)[1]
    new_run = np.append(True, (np.diff(score) != 0) | (np.diff(group) != 0))[: len(score)]
    start = np.flatnonzero(new_run)
    rank = np.repeat(start + (np.diff(np.append(start, len(score))) - 1) / 2, np.diff(np.append(start, len(score))))
    positives = np.bincount(group, positive)
    negatives = np.bincount(group) - positives
    first = np.cumsum(positives + negatives) - positives - negatives
    above = np.bincount(group, np.where(positive, rank, 0)) - positives * (first + (positives - 1) / 2)
    both = (positives > 0) & (negatives > 0)
    return float(np.mean(above[both] / (positives * negatives)[both])) if both.any() else float("nan")
