"""A report on a teacher's answers about pairs, measured against annotations, before the whole of them is paid for.

No training reads it. Its first number is the localisation AUC: how often an annotated pair is above another pair of the same
image whose object is of the same class, for the same verb. Answers about whole images get 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.metrics.localisation import area, calibration_error, localisation_area
from hoi_distill.stages.ops.boxes import iou_matrix
from hoi_distill.stages.ops.instances import ordered_pairs
from hoi_distill.stages.student.calibration import FOLDS, cross_fitted
from hoi_distill.stages.teacher.pair_questions import AsksAboutPairs, Form
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.shards.cells import cells

IOU = 0.5
"""Least overlap of both boxes with those of an annotated pair."""
ENOUGH = 5
"""A verb with so many positives is looked at alone."""


class PairReport(TypedDict):
    """A report on one table of answers about pairs.

    Attributes:
        images: the number of images.
        pairs: human-object pairs that were asked about.
        answers: how many answers.
        positives: answers about pairs that are annotated with the verb.
        missed: the share of the annotated (pair, interaction) that no asked pair matches.
        localisation: the localisation AUC.
        comparisons: how many comparisons it rests on.
        verb_area: the AUC of all answers of a verb, mean over the verbs that have both kinds.
        weak: the verbs with the lowest AUC, of those with at least 5 positives.
        said: mean probability that the answer is a yes or a no at all; None of likelihoods.
        yes: the share of answers that are rather yes.
        several: the share of pairs with two or more of these.
        error: expected calibration error of the teacher's own probabilities.
        calibrated: the same after calibration by verb, fitted on other images.
        spared: cells that the gates spared and that were asked all the same; None without gates.
        spared_yes: the share of their answers that are rather yes.
    """

    images: int
    pairs: int
    answers: int
    positives: int
    missed: float | None
    localisation: float | None
    comparisons: int
    verb_area: float | None
    weak: dict[str, float]
    said: float | None
    yes: float | None
    several: float | None
    error: float | None
    calibrated: float | None
    spared: int | None
    spared_yes: float | None


@dataclass(frozen=True)
class ReadAnswers:
    """E answers about the pairs of N images.

    Attributes:
        image: int64 ``[E]``.
        pair: int64 ``[E]``, counted over all images.
        column: int64 ``[E]``.
        hoi: int64 ``[E]`` interactions.
        logs: float64 ``[E, 2]``, logarithms of yes and no.
        shown: bool ``[E]``, whether the pair is annotated with the interaction.
        annotated: how many (pair, interaction) are annotated.
        matched: how many of these are shown by some answer.
        spared: bool ``[N, C]``, the cells that were asked although a gate spared them; None without gates.
    """

    image: np.ndarray
    pair: np.ndarray
    column: np.ndarray
    hoi: np.ndarray
    logs: np.ndarray
    shown: np.ndarray
    annotated: int
    matched: int
    spared: np.ndarray | None

    @property
    def log_odds(self) -> np.ndarray:
        """float64 ``[E]``, of yes against no."""
        found: np.ndarray = self.logs[:, 0] - self.logs[:, 1]
        return found


def read_pair_answers(
    workspace: Workspace, plans: Mapping[str, TablePlan], name: str, records: np.ndarray
) -> ReadAnswers:
    """The answers of a table, beside the annotations.

    Args:
        workspace: with an annotated training split.
        plans: of all tables.
        name: the table's.
        records: int64 ``[N]`` records of the training split whose cells are filled.
    """
    stage = plans[name].node.stage
    assert isinstance(stage, AsksAboutPairs)
    rows, annotations = workspace.images.splits["train"][records], workspace.dataset["train"]
    inputs = {up: plans[up].read(rows) for up in stage.inputs}
    instances = cells(inputs[stage.instances]["value"])
    labels, annotated, width = [], 0, len(workspace.vocabulary)
    hits, whose = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    starts = np.zeros(len(rows) + 1, np.int64)
    for at, record in enumerate(records.tolist()):
        found = instances(at)
        boxes, label = np.asarray(found["boxes"], np.float32).reshape(-1, 4), np.asarray(found["labels"], np.int64)
        human, other = ordered_pairs(int(found["humans"]), len(label)).T
        own = annotations.pairs(record)
        known = np.flatnonzero(annotations.hoi[own] >= 0) + own.start
        hoi = annotations.hoi[known]
        people = iou_matrix(boxes[human], annotations.human_box[known])
        things = iou_matrix(boxes[other], annotations.object_box[known])
        close, own_pair = np.nonzero(np.minimum(people, things) >= IOU)
        annotated += int(np.isin(hoi, np.flatnonzero(workspace.vocabulary.actions())).sum())
        starts[at + 1] = starts[at] + len(human)
        labels.append(label[other])
        hits.append((starts[at] + close) * width + hoi[own_pair])
        whose.append(known[own_pair])
    label_of = np.concatenate([np.empty(0, np.int64), *labels])
    image, pair, column, logs = _flat(plans[name].read(rows), stage.columns)
    pair = starts[image] + pair
    hoi = stage.hoi_of[column, label_of[pair]].astype(np.int64)
    asked, hit = pair * width + hoi, np.concatenate(hits)
    shown = np.isin(asked, hit)
    matched = len(np.unique(np.concatenate(whose)[np.isin(hit, asked)]))
    spared = None
    if stage.gates.gates:
        allowed = stage.allowed(inputs[stage.instances]["value"])
        spared = allowed & ~stage.gates.passed(inputs, len(rows))
    return ReadAnswers(image, pair, column, hoi, logs, shown, annotated, matched, spared)


def _flat(answers: Mapping[str, pa.Array], columns: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Image, pair in it, column (int64 ``[E]`` each) and logarithms (float64 ``[E, 2]``) of all answers."""
    parts: list[list[np.ndarray]] = [[] for _ in range(4)]
    for number, column in enumerate(columns):
        pair = pc.struct_field(answers[column], "pair")
        logs = [
            pc.struct_field(answers[column], name).flatten().to_numpy(zero_copy_only=False) for name in ("yes", "no")
        ]
        parts[0].append(pc.list_parent_indices(pair).to_numpy(zero_copy_only=False).astype(np.int64))
        parts[1].append(pair.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
        parts[2].append(np.full(len(logs[0]), number))
        parts[3].append(np.stack(logs, 1).astype(np.float64))
    return tuple(map(np.concatenate, parts))


def annotated_records(workspace: Workspace, plan: TablePlan, sample: int | None) -> np.ndarray:
    """int64 ``[N]``: annotated records of the training split whose cells of a table are filled.

    Args:
        workspace: with an annotated training split.
        plan: the table's.
        sample: how many are drawn, with seed 0. None: all.

    Raises:
        UserError: there is none.
    """
    images, annotations = workspace.images, workspace.dataset["train"]
    records = images.distinct_records("train")
    records = records[np.diff(annotations.pair_offsets)[records] > 0]
    records = records[plan.readable(images.splits["train"][records])]
    if not len(records):
        raise UserError(
            f"{workspace.path}: tables.{plan.node.name}: no annotated image of the training split has answers; fill some with: "
            f"{workspace.mending_command()} --limit 1000"
        )
    return records if sample is None else np.sort(np.random.default_rng(0).permutation(records)[:sample])


def pair_report(found: ReadAnswers, images: int, columns: tuple[str, ...], form: Form = "yes_no") -> PairReport:
    """The report on a table's answers.

    Args:
        found: the answers.
        images: how many images they are about.
        columns: the table's.
        form: what was answered.
    """
    m, shown, yes = found.log_odds, found.shown, found.log_odds > 0
    interactions = int(found.hoi.max(initial=0)) + 1
    localisation, comparisons = localisation_area(m, shown, found.image * interactions + found.hoi)
    areas = {}
    for column in np.unique(found.column).tolist():
        own = found.column == column
        if (value := area(m[own], shown[own])) is not None:
            areas[columns[column].partition(":")[0]] = value, int(shown[own].sum())
    fold = found.image % FOLDS
    fits = cross_fitted(m, found.column, shown, fold, len(columns))
    scaled = np.zeros(len(m), np.float32)
    for number in range(FOLDS):
        scaled[fold == number] = fits[number](m[fold == number], found.column[fold == number])
    weak = sorted((value, verb) for verb, (value, count) in areas.items() if count >= ENOUGH)[:8]
    spared = None if found.spared is None else found.spared[found.image, found.column]
    asked = np.unique(np.stack((found.image, found.column)), axis=1)
    return {
        "images": images,
        "pairs": len(np.unique(found.pair)),
        "answers": len(m),
        "positives": int(shown.sum()),
        "missed": _share(found.annotated - found.matched, found.annotated),
        "localisation": None if localisation is None else round(localisation, 4),
        "comparisons": comparisons,
        "verb_area": round(float(np.mean([value for value, _ in areas.values()])), 4) if areas else None,
        "weak": {verb: round(value, 4) for value, verb in weak},
        "said": round(float(np.exp(found.logs).sum(1).mean()), 4) if len(m) and form == "yes_no" else None,
        "yes": _share(int(yes.sum()), len(m)),
        "several": _share(int((np.bincount(found.pair[yes]) > 1).sum()), len(np.unique(found.pair))),
        "error": _rounded(calibration_error(expit(m), shown)),
        "calibrated": _rounded(calibration_error(scaled, shown)),
        "spared": None if found.spared is None else int(found.spared[asked[0], asked[1]].sum()),
        "spared_yes": None if spared is None else _share(int(yes[spared].sum()), int(spared.sum())),
    }


def agreement(one: ReadAnswers, other: ReadAnswers) -> dict[str, float | None]:
    """How alike two tables answer what both were asked, in other words say: the correlation of their log-odds, and the share of
    answers on the same side.

    Args:
        one: a table's answers about some images.
        other: another's about the same images, boxes and verbs.
    """
    width = max(int(each.column.max(initial=0)) for each in (one, other)) + 1
    keys = [each.pair * width + each.column for each in (one, other)]
    _, first, second = np.intersect1d(*keys, return_indices=True)
    a, b = one.log_odds[first], other.log_odds[second]
    enough = len(a) > 1 and a.std() > 0 and b.std() > 0
    return {
        "correlation": round(float(np.corrcoef(a, b)[0, 1]), 4) if enough else None,
        "same_side": _share(int(((a > 0) == (b > 0)).sum()), len(a)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
