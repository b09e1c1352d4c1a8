"""V-COCO's official evaluation (Gupta and Malik 2015, their ``vsrl_eval``): agent and role average precision.

A detected person takes the annotated person of the same image that it overlaps most, if the IoU is at least 1/2. The
action does not matter for that. Some annotated persons have no annotated actions. Detections that overlap such a person
leave the evaluation. As in the published code, so do detections that overlap nobody if the *first* person of the image
is such a person. Detections in images without any person are false positives (the published code stops there).

In scenario 1 a role that is absent must be predicted as empty. Scenario 2 accepts every prediction for an absent role.

Equal scores: published code sorts with ``argsort()[::-1]``, whose order of equals depends on numpy's build. Here equals
rank as a stable sort leaves them. The detection stored last claims a person first. In the ranking of all images later
images come first and, in one image, detections stored first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.data.v_coco.loader import ACTIONS, ROLE_SLOTS, SLOT_ACTION, UNREPORTED_ROLE, People
from hoi_distill.stages.evaluate.detections import HoiDetections, VCocoDetections
from hoi_distill.stages.evaluate.metrics.average_precision import (
    all_point_precision,
    candidates,
    highest,
    iou,
)

_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class RankedRole:
    """The counted detections of a role (or of an action's agents), in rank order.

    Attributes:
        ap: a fraction; NaN if nobody does the action.
        row: ``int64 [K]`` detected persons.
        is_tp: ``bool [K]`` whether each is a true positive.
    """

    ap: np.float32
    row: np.ndarray
    is_tp: np.ndarray


@dataclass(frozen=True, eq=False)
class RoleResults:
    """One scenario, or the agents.

    Attributes:
        ranked: one entry for each of 25 roles, or of 26 actions.
    """

    ranked: tuple[RankedRole, ...]

    @property
    def ap(self) -> np.ndarray:
        """``float32 [25]`` (agents: [26]), fractions; NaN for an action that nobody does."""
        return np.array([role.ap for role in self.ranked])

    @property
    def mean(self) -> float:
        """Over all roles."""
        return _mean(self.ap)

    @property
    def mean_24(self) -> float:
        """Without ``point_instr``, as most papers report."""
        return _mean(np.delete(self.ap, UNREPORTED_ROLE))


@dataclass(frozen=True, eq=False)
class VCocoResults:
    """V-COCO's results.

    Attributes:
        agents: person and action alone.
        persons: ``int [26]`` annotated persons who do each action.
        scenario_1: an absent role must be predicted empty.
        scenario_2: absent roles are ignored.
    """

    agents: RoleResults
    persons: np.ndarray
    scenario_1: RoleResults
    scenario_2: RoleResults

    @property
    def agent_ap(self) -> np.ndarray:
        """``float32 [26]``."""
        return self.agents.ap

    @property
    def agent(self) -> float:
        """Mean over 26 actions."""
        return self.agents.mean

    def percentages(self) -> dict[str, float | dict[str, float]]:
        """{"agent", "scenario_1": {"roles_25", "roles_24"}, "scenario_2": {...}}, in percent."""
        return {"agent": 100 * self.agent} | {
            name: {"roles_25": 100 * part.mean, "roles_24": 100 * part.mean_24}
            for name, part in (("scenario_1", self.scenario_1), ("scenario_2", self.scenario_2))
        }


def v_coco(detections: VCocoDetections, people: People) -> VCocoResults:
    """Evaluate by both scenarios. Time grows as n log n with the detected persons."""
    overlap, person = np.zeros(len(detections)), np.full(len(detections), -1)
    detection, candidate = candidates(detections.image, people.image)
    overlaps = iou(detections.person_box[detection], people.box[candidate])
    best = highest(detection, overlaps)
    overlap[detection[best]], person[detection[best]] = overlaps[best], candidate[best]
    annotated, actions, role_box = (  # with a last row for "nobody", person -1
        np.concatenate([column, np.full((1, *column.shape[1:]), nobody, column.dtype)])
        for column, nobody in ((people.annotated, True), (people.actions, False), (people.role_box, 0))
    )
    counted = annotated[person]
    claims = np.where(overlap >= _THRESHOLD, person, -1)
    persons = people.actions.sum(0)

    def ranked(action: int, score: np.ndarray, accepted: np.ndarray | None = None) -> RankedRole:
        """Rank by ``score`` float [P]; a detection where ``accepted`` bool [P] is False claims nobody."""
        kept = np.flatnonzero(counted & ~np.isnan(score))
        claims_doer = actions[claims, action] if accepted is None else actions[claims, action] & accepted
        order, is_tp = _ranked(score[kept], detections.image[kept], np.where(claims_doer, claims, -1)[kept])
        return RankedRole(all_point_precision(is_tp, int(persons[action])), kept[order], is_tp)

    agents = [ranked(action, detections.agent_score[:, action]) for action in range(len(ACTIONS))]
    scenario_1: list[RankedRole] = []
    scenario_2: list[RankedRole] = []
    for role, action in enumerate(SLOT_ACTION[ROLE_SLOTS]):
        box, gt_box, score = detections.role_box[:, role], role_box[person, role], detections.role_score[:, role]
        empty = (box == 0).all(1) | np.isnan(box).all(1)
        absent = (gt_box == 0).all(1)
        close = ~absent & ~empty & (iou(box, gt_box) >= _THRESHOLD)
        scenario_1.append(ranked(action, score, close | (absent & empty)))
        scenario_2.append(ranked(action, score, close | absent))
    agent, one, two = (RoleResults(tuple(roles)) for roles in (agents, scenario_1, scenario_2))
    return VCocoResults(agent, persons, one, two)


def from_triplets(detections: HoiDetections) -> VCocoDetections:
    """Turn scored triplets (verb = slot) into persons with all their actions and roles, as the official code reads them.

    Rows of one image with exactly the same human box are one person. The score of an action is the highest of the
    person's rows with one of its slots. The person's best row of a slot (the first stored of equals) gives the object
    and its score; an all-zero object box is an empty role. The second best row goes into a second entry of the same
    person, and so on, so that no row is lost. Agent scores are in the first entry only. Missing scores are NaN.

    Args:
        detections: ``verb`` counts V-COCO's slots.
    """
    order = np.lexsort(
        (-detections.score.astype(np.float64), detections.verb, *detections.human_box.T[::-1], detections.image)
    )
    image, box, slot = detections.image[order], detections.human_box[order], detections.verb[order]
    new_person = np.ones(len(order), bool)
    new_person[1:] = (image[1:] != image[:-1]) | (box[1:] != box[:-1]).any(1)
    new_slot = new_person.copy()
    new_slot[1:] |= slot[1:] != slot[:-1]
    person = np.cumsum(new_person) - 1
    place = np.arange(len(order)) - np.flatnonzero(new_slot)[np.cumsum(new_slot) - 1]  # 0: the slot's best
    entries = np.zeros(int(new_person.sum()), np.int64)
    np.maximum.at(entries, person, place + 1)
    start = np.cumsum(entries) - entries
    total = int(entries.sum())

    score = detections.score[order]
    agent = np.full((total, len(ACTIONS)), -np.inf, score.dtype)
    np.maximum.at(agent, (start[person], SLOT_ACTION[slot]), score)
    role_of_slot = np.full(len(SLOT_ACTION), -1)
    role_of_slot[ROLE_SLOTS] = np.arange(len(ROLE_SLOTS))
    with_role = np.flatnonzero(role_of_slot[slot] >= 0)
    at = (start[person] + place)[with_role], role_of_slot[slot[with_role]]
    role_box = np.full((total, len(ROLE_SLOTS), 4), np.nan, np.float32)
    role_score = np.full((total, len(ROLE_SLOTS)), np.nan, score.dtype)
    role_box[at], role_score[at] = detections.object_box[order][with_role], score[with_role]
    first_row = np.repeat(np.flatnonzero(new_person), entries)
    return VCocoDetections(
        image[first_row].astype(np.int32), box[first_row], np.where(np.isneginf(agent), score.dtype.type(np.nan), agent),
        role_box, role_score,
    )  # fmt: skip


def _ranked(score: np.ndarray, image: np.ndarray, claim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Detections by falling score, ``int64 [K]``, and in that order which are true positives, ``bool [K]``.

    ``claim`` is the annotated person that a detection may take, or -1. The first to claim a person takes it.
    """
    falling, stored = -score.astype(np.float64), np.arange(len(score))
    turn = np.lexsort((-stored, falling))
    turn = turn[claim[turn] >= 0]
    _, earliest = np.unique(claim[turn], return_index=True)
    is_tp = np.zeros(len(score), bool)
    is_tp[turn[earliest]] = True
    order = np.lexsort((stored, -image.astype(np.int64), falling))
    return order, is_tp[order]


def _mean(ap: np.ndarray) -> float:
    """The mean of the single-precision class values, in double precision."""
    known = ap[~np.isnan(ap)].astype(np.float64)
    return float(known.mean()) if len(known) else float("nan")
