"""V-COCO's official evaluation (Gupta and Malik 2015, their ``vsrl_eval``): agent and role average precision.

A detected person takes the annotated person of the same picture that it overlaps most, IoU at least 1/2, whichever
action is looked at. A person whom the annotators were not asked about takes detections out of the evaluation; so does,
as in the published code, the *first* person of a picture if he is such a one and the detection overlaps nobody.
Detections of pictures without any person are wrong (the published code stops there).

Scenario 1 wants a role that is not there to be predicted as empty; scenario 2 accepts whatever is predicted for it.

Equal scores: published code sorts with ``argsort()[::-1]``, whose ties depend on numpy's build. Here they are as a
stable sort would leave them: a person is claimed by the detection stored last; in the ranking of all pictures later
pictures come first and, in one picture, detections stored first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.data.v_coco.loader import ACTIONS, ROLE_SLOTS, SLOT_ACTION, UNREPORTED_ROLE, People
from hoi_distill.stages.evaluate.detections import Detections, VCocoDetections
from hoi_distill.stages.evaluate.metrics.average_precision import candidates, highest, iou

_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class RoleResults:
    """One scenario: ``ap`` float32 [25], a fraction, NaN for an action that nobody does; ``judged``, each role's counted
    detections as ranked: their rows int64 [K] and whether they are right, bool [K]. Of agents the same of 26 actions."""

    ap: np.ndarray
    judged: tuple[tuple[np.ndarray, np.ndarray], ...]

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
    """Results of the agents, ``persons`` int [26] who do each action, results of both scenarios."""

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
    """Evaluate. Time grows as n log n with the detected persons."""
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

    def judge(action: int, score: np.ndarray, right: np.ndarray | bool) -> tuple[np.float32, np.ndarray, np.ndarray]:
        kept = np.flatnonzero(counted & ~np.isnan(score))
        claim = np.where(actions[claims, action] & right, claims, -1)[kept]
        order, hit = _ranked(score[kept], detections.image[kept], claim)
        return _average_precision(hit, int(persons[action])), kept[order], hit

    agents = [judge(a, detections.agent_score[:, a], True) for a in range(len(ACTIONS))]
    scenarios: tuple[list, list] = ([], [])
    for role, action in enumerate(SLOT_ACTION[ROLE_SLOTS]):
        box, true = detections.role_box[:, role], role_box[person, role]
        empty = (box == 0).all(1) | np.isnan(box).all(1)
        absent = (true == 0).all(1)
        close = ~absent & ~empty & (iou(box, true) >= _THRESHOLD)
        for roles, right in zip(scenarios, (close | (absent & empty), close | absent), strict=True):
            roles.append(judge(action, detections.role_score[:, role], right))
    agent, one, two = (
        RoleResults(np.array([ap for ap, *_ in parts]), tuple((rows, hit) for _, rows, hit in parts))
        for parts in (agents, *scenarios)
    )
    return VCocoResults(agent, persons, one, two)


def from_triplets(detections: Detections) -> VCocoDetections:
    """Scored triplets (verb = slot) as the official evaluation wants them: persons with all their actions and roles.

    Rows of one picture with exactly the same human box are one person. The score of an action is the highest of the
    person's rows with one of its slots. The person's best row of a slot (the first stored of equals) gives the object
    and its score, an all-zero object box an empty role; the second best goes into a second entry for the same person,
    and so on: nothing is dropped, agent scores are in the first entry only, and what is not said is NaN.
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
    """Detections by falling score, int64 [K], and in that order which are right: the first to claim a person, by
    `claim`, the person that each rightly names, or -1."""
    falling, stored = -score.astype(np.float64), np.arange(len(score))
    turn = np.lexsort((-stored, falling))
    turn = turn[claim[turn] >= 0]
    _, earliest = np.unique(claim[turn], return_index=True)
    hit = np.zeros(len(score), bool)
    hit[turn[earliest]] = True
    order = np.lexsort((stored, -image.astype(np.int64), falling))
    return order, hit[order]


def _average_precision(hit: np.ndarray, positives: int) -> np.float32:
    """All-point AP (Pascal VOC since 2010) in float32 of ranked detections."""
    if not positives:
        return np.float32(np.nan)
    found = np.cumsum(hit, dtype=np.float32)
    precision = (found / np.arange(1, len(hit) + 1, dtype=np.float32)).astype(np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], found / np.float32(positives)])
    return np.float32((np.diff(recall) * envelope).sum())


def _mean(ap: np.ndarray) -> float:
    """In double precision, of the single-precision class values."""
    known = ap[~np.isnan(ap)].astype(np.float64)
    return float(known.mean()) if len(known) else float("nan")
