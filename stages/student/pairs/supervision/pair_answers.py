"""Supervision by a teacher's yes/no answers about single pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.ops.instances import order_without_scores, ordered_pairs, whole_pixels
from hoi_distill.stages.student.calibration import ALL, FOLDS, VerbPlatt, cross_fitted
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept
from hoi_distill.stages.student.pairs.instances import ImageInstances, ImageTable
from hoi_distill.stages.student.pairs.supervision.config import PairAnswerConfig
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss
from hoi_distill.stages.student.source import in_order
from hoi_distill.stages.student.training.processes import mean_of
from hoi_distill.storage.errors import UserError

CONTROL_SEED = 17


@dataclass(frozen=True)
class AnswerTable:
    """What a teacher said of the pairs of N images: E entries, an image's one after another.

    Attributes:
        offsets: int64 ``[N + 1]``; the entries of image i are from ``offsets[i]`` to ``offsets[i + 1]``.
        keys: int32 ``[E]``, ``pair * H + interaction``, rising in each image; pairs counted as in
            :func:`hoi_distill.stages.ops.instances.ordered_pairs` of the student's instances.
        log_odds: float32 ``[E]``, of yes against no.
    """

    offsets: np.ndarray
    keys: np.ndarray
    log_odds: np.ndarray

    def row(self) -> np.ndarray:
        """int64 ``[E]``, the image of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def read_answers(folder: Path, data: TrainingSet, images: ImageTable, how: str = "own") -> AnswerTable:
    """The answers of the table ``pair_answers``, read once and kept in ``folder``.

    Args:
        folder: keeps them, memory-mapped.
        data: the training set.
        images: the instances and pairs of all images.
        how: which answers a pair gets, see :class:`PairAnswerConfig`.

    Raises:
        UserError: the table asks about other boxes than the student puts in pairs.
    """
    names = ("offsets", "keys", "log_odds")

    def read(place: Path) -> AnswerTable:
        found = AnswerTable(*(np.load(place / f"{name}.npy", mmap_mode="r") for name in names))
        if not len(found.keys) == len(found.log_odds) == found.offsets[-1] or len(found.offsets) != len(images) + 1:
            raise ValueError("the answers are not whole")
        return found

    def build(draft: Path) -> None:
        draft.mkdir()
        counts = np.zeros(len(images), np.int64)
        keys, values = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
        for row, key, value in _entries(data, images):
            counts[row] = len(key)
            keys.append(key)
            values.append(controlled(value, key % len(data.vocabulary), how, row))
        found = np.concatenate(([0], counts.cumsum())), np.concatenate(keys), np.concatenate(values)
        for name, array in zip(names, found, strict=True):
            np.save(draft / f"{name}.npy", array)

    return kept(folder, read, build)


def _entries(data: TrainingSet, images: ImageTable) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, int32 keys, float32 log-odds) of each image that was asked about, keys rising."""
    questions, hoi_of = data.vocabulary.pair_questions(), data.vocabulary.hoi_id()
    asked = tuple(questions) if data.pair_questions is None else data.pair_questions
    for sample in in_order(data.source.open({"instances": ("value",), "pair_answers": asked})):
        row, cell = sample["row"], sample["instances"]["value"]
        image = images[row]
        number = _student_numbers(cell, image)
        if number is None:
            name = data.annotations.image_id[int(data.image[row])]
            raise UserError(
                f"image {name}: the boxes of table instances are not those that the student puts in pairs; give both the same "
                "detections, score_threshold, min_instances, max_instances and nms_iou"
            )
        labels = image.labels[image.pairs[:, 1]].astype(np.int64)
        keys, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for column, answers in sample["pair_answers"].items():
            if answers is not None and len(answers["pair"]):
                pair = number[answers["pair"]]
                hoi = hoi_of[questions[column], labels[pair]]
                keys.append(pair * len(data.vocabulary) + hoi)
                values.append(answers["yes"] - answers["no"])
        key, value = np.concatenate(keys), np.concatenate(values)
        order = np.argsort(key)
        yield row, key[order].astype(np.int32), value[order].astype(np.float32)


def _student_numbers(cell: Mapping[str, Any], image: ImageInstances) -> np.ndarray | None:
    """int64 ``[P]``: the student's number of each pair of a cell of the table of boxes; None where these are other boxes."""
    boxes = whole_pixels(image.boxes)
    order = order_without_scores(boxes, image.labels)
    theirs = np.asarray(cell["boxes"], np.int32).reshape(-1, 4)
    if not (np.array_equal(theirs, boxes[order]) and np.array_equal(cell["labels"], image.labels[order])):
        return None
    human, other = order[ordered_pairs(image.humans, len(order))].reshape(-1, 2).T
    numbers: np.ndarray = human * (len(order) - 1) + other - (other > human)
    return numbers


def controlled(log_odds: np.ndarray, hoi: np.ndarray, how: str, row: int) -> np.ndarray:
    """The answers of one image, or a control's in their place.

    Args:
        log_odds: float32 ``[e]``.
        hoi: int ``[e]``, the interactions. One names verb and object, so its entries are the pairs of one class of objects.
        how: see :class:`PairAnswerConfig`.
        row: the image's row. It says how answers are permuted.

    Returns:
        float32 ``[e]``.
    """
    if how == "own":
        return log_odds
    told, draw = log_odds.copy(), np.random.default_rng([CONTROL_SEED, row])
    for each in np.unique(hoi):
        places = np.flatnonzero(hoi == each)
        told[places] = log_odds[places].mean() if how == "mean" else log_odds[draw.permutation(places)]
    return told


@dataclass(frozen=True)
class PairTargets:
    """The calibrated answers that count in a batch.

    Attributes:
        positions: int64 ``[A]``, rising, of candidates.
        probability: float32 ``[A]``, the teacher's of each.
        weight: float32 ``[A]``, the prior to its power.
    """

    positions: Tensor
    probability: Tensor
    weight: Tensor


class PairAnswerTerm(Term):
    """Calibrated answers about pairs, on the interaction logits: the teacher has seen no detection score.

        mean over the asked entries of P^power KL(Bernoulli(t) || Bernoulli(sigmoid(O)))

    Args:
        config: how much, on which images.
        table: the answers.
        probability: float32 ``[E]``, the calibrated ones.
        distilled: bool ``[N]``, the rows that are distilled on.
        labelled: bool ``[N]``, the rows with annotations.
        interactions: H.
    """

    name: ClassVar[str] = "pair_answers"

    def __init__(
        self,
        config: PairAnswerConfig,
        table: AnswerTable,
        probability: np.ndarray,
        *,
        distilled: np.ndarray,
        labelled: np.ndarray,
        interactions: int,
    ) -> None:
        self.config, self.table, self.probability = config, table, probability
        self.distilled, self.labelled, self.interactions = distilled, labelled, interactions

    @override
    def targets(self, batch: BatchImages) -> PairTargets:
        """The answers about the candidates of the batch; on labelled images about those that are not annotated as shown."""
        candidates, pairs = batch.candidates, np.array([len(image.pairs) for image in batch.instances], np.int64)
        first_pair = np.cumsum(pairs) - pairs
        key = ((candidates.pair.numpy() - first_pair[candidates.image.numpy()]) * self.interactions).astype(np.int64)
        key += candidates.hoi.numpy()
        ends = np.searchsorted(candidates.image.numpy(), np.arange(len(batch.rows) + 1))
        places, found = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for number, (row, image) in enumerate(zip(batch.rows.tolist(), batch.instances, strict=True)):
            own = slice(*self.table.offsets[row : row + 2])
            known = np.asarray(self.table.keys[own])
            wanted = key[ends[number] : ends[number + 1]]
            if not self.distilled[row] or not len(known):
                continue
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            asked = known[at] == wanted
            if self.labelled[row]:
                asked &= ~np.isin(wanted, image.positives @ (self.interactions, 1))
            places.append(ends[number] + np.flatnonzero(asked))
            found.append(np.asarray(self.probability[own])[at[asked]])
        positions = torch.from_numpy(np.concatenate(places))
        weight = candidates.prior[positions].float() ** self.config.prior_power
        return PairTargets(positions, torch.from_numpy(np.concatenate(found)), weight)

    @override
    def losses(self, predictions: Predictions, targets: PairTargets, step: int) -> list[WeightedLoss]:
        """The loss of the last decoder layer."""
        logit = predictions.logit[-1].float().index_select(0, targets.positions)
        t = targets.probability
        entropy = torch.special.entr(t) + torch.special.entr(1 - t)
        divergence = F.binary_cross_entropy_with_logits(logit, t, reduction="none") - entropy
        value = mean_of(targets.weight * divergence, predictions.processes)
        weight = self.config.weight * min(1.0, (step + 1) / max(self.config.ramp, 1))
        return [WeightedLoss(self.name, weight, value)]


def pair_answer_term(
    config: PairAnswerConfig, folder: Path, data: TrainingSet, images: ImageTable
) -> tuple[PairAnswerTerm, VerbPlatt]:
    """The term, and how its answers are calibrated on images without annotations.

    Args:
        config: how much, on which images.
        folder: keeps what is read of the tables once.
        data: the training set.
        images: the instances and pairs of all images.

    Raises:
        UserError: the table asks about other boxes, or no labelled image has an answer to calibrate on.
    """
    table = read_answers(folder / "pair_answers", data, images, config.answers)
    row, interactions = table.row(), len(data.vocabulary)
    verb = data.vocabulary.hois[np.asarray(table.keys) % interactions, 0].astype(np.int64)
    fold = np.full(len(images), ALL)
    fold[data.labelled] = np.arange(int(data.labelled.sum())) % FOLDS
    fits = [VerbPlatt.none(len(data.vocabulary.verbs))] * (FOLDS + 1)
    if config.calibrated:
        entry, shown = calibration_entries(table, row, data, images)
        if not len(entry):
            raise UserError(
                "pair_answers.calibrated: no labelled image has an answer about a person who is annotated; label more images, or "
                "write calibrated: false"
            )
        fits = cross_fitted(
            np.asarray(table.log_odds)[entry], verb[entry], shown, fold[row[entry]], len(data.vocabulary.verbs)
        )
    probability = np.empty(len(row), np.float32)
    for number, fit in enumerate(fits):
        own = fold[row] == number
        probability[own] = fit(np.asarray(table.log_odds)[own], verb[own])
    term = PairAnswerTerm(
        config,
        table,
        probability,
        distilled=config.rows(data.labelled),
        labelled=data.labelled,
        interactions=interactions,
    )
    return term, fits[ALL]


def calibration_entries(
    table: AnswerTable, row: np.ndarray, data: TrainingSet, images: ImageTable
) -> tuple[np.ndarray, np.ndarray]:
    """The entries to calibrate on: those of labelled images about people who are annotated with something, for of the others
    the annotations may just not speak, and of interactions that training may see.

    Args:
        table: the answers.
        row: int64 ``[E]``, the image of each.
        data: the training set.
        images: the instances and pairs of all images.

    Returns:
        int64 ``[e]`` positions, and bool ``[e]``, whether the annotations find the interaction in the pair.
    """
    interactions = len(data.vocabulary)
    places, shown = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for image in np.unique(row[data.labelled[row]]).tolist():
        found = images[image]
        start, stop = table.offsets[image : image + 2].tolist()
        key = np.asarray(table.keys[start:stop], np.int64)
        others = max(len(found.labels) - 1, 1)
        annotated = np.isin(key // interactions // others, found.positives[:, 0] // others)
        told = annotated & data.seen[key % interactions] & ~np.isin(key, found.ignored @ (interactions, 1))
        places.append(start + np.flatnonzero(told))
        shown.append(np.isin(key[told], found.positives @ (interactions, 1)))
    return np.concatenate(places), np.concatenate(shown)


def pair_calibration_line(fit: VerbPlatt) -> str:
    """What a training says of the calibration of its answers about pairs."""
    how = "" if fit.entries else "; not calibrated, as the labelled images tell nothing apart: label more"
    spread = float(fit.offset.std())
    return f"pair answers: sigmoid({fit.slope:.3f} m {fit.bias:+.3f} + verb), verbs {spread:.3f} apart{how}"
