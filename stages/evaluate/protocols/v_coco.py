"""V-COCO behind ``hoi-distill evaluate``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hoi_distill.stages.data.v_coco.loader import (
    ACTIONS,
    ROLE_SLOTS,
    ROLES,
    SLOT_ACTION,
    UNREPORTED_ROLE,
    People,
    load_v_coco_people,
    v_coco_vocabulary,
)
from hoi_distill.stages.evaluate.detections import VCocoDetections
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.formats.v_coco_json import read_v_coco_json
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.v_coco import RoleResults, from_triplets, v_coco
from hoi_distill.stages.evaluate.protocols.shared import detections_format, refuse_format, ties_note, ties_of
from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest, EvaluationResult, Setting


def evaluate_v_coco_files(request: EvaluationRequest) -> EvaluationResult:
    """Read, check and evaluate; see :func:`hoi_distill.stages.evaluate.protocols.evaluate_files.evaluate_files`."""
    people = load_v_coco_people(request.annotations, request.split)
    return evaluate_persons(_read(request, people.image_id), people, request.split or "test")


def evaluate_persons(detections: VCocoDetections, people: People, split: str) -> EvaluationResult:
    """Evaluate detections that are already read.

    Args:
        detections: of the images of ``people``.
        people: the annotated persons of the split.
        split: its name, for the record.
    """
    began = time.perf_counter()
    results = v_coco(detections, people)
    seconds = time.perf_counter() - began

    means: dict[str, Any] = results.percentages()
    agent = _plain(means["agent"])
    scenarios = {
        name: {key: _plain(value) for key, value in means[name].items()} for name in ("scenario_1", "scenario_2")
    }
    per_role = []
    for role, action in enumerate(SLOT_ACTION[ROLE_SLOTS]):
        doing, tp = int(results.persons[action]), int(results.scenario_1.ranked[role].is_tp.sum())
        per_role.append({
            "name": ROLES[role].replace("_", " "),
            "action": ACTIONS[action],
            "ap": _plain(100 * results.scenario_1.ap[role]),
            "ap_scenario_2": _plain(100 * results.scenario_2.ap[role]),
            "agent_ap": _plain(100 * results.agent_ap[action]),
            "pairs": doing,
            "with_role": int((people.actions[:, action] & people.role_box[:, role].any(1)).sum()),
            "found": tp,
            "recall": _plain(100 * tp / doing) if doing else None,
        })  # fmt: skip
    counts = {
        "pictures": len(people.image_id),
        "persons": len(people.box),
        "detected_persons": len(detections),
    }
    all_roles = np.ones(len(ROLES), bool)
    sets = {"roles_25": all_roles, "roles_24": np.arange(len(ROLES)) != UNREPORTED_ROLE}
    settings = {
        "scenario_1": Setting(
            "scenario 1",
            scenarios["scenario_1"],
            sets,
            _ranking(results.scenario_1, detections.role_score, SLOT_ACTION[ROLE_SLOTS], detections, people),
            "an absent role must be predicted empty",
        ),
        "scenario_2": Setting(
            "scenario 2",
            scenarios["scenario_2"],
            sets,
            _ranking(results.scenario_2, detections.role_score, SLOT_ACTION[ROLE_SLOTS], detections, people),
            "absent roles are ignored",
        ),
        "agent": Setting("agent", {"actions_26": agent}, note="the person and the action alone"),
    }
    agents = _ranking(results.agents, detections.agent_score, np.arange(len(ACTIONS)), detections, people)
    ties = {**ties_of(settings), "agent": agents.ties({"actions_26": np.ones(len(ACTIONS), bool)})}
    return EvaluationResult(
        record={
            "dataset": "v-coco",
            "split": split,
            "convention": "official",
            "definition": "V-COCO's vsrl_eval: role AP, a person and a role from IoU 0.5, all-point",
            "counts": counts,
            "agent": agent,
            **scenarios,
            "per_role": per_role,
            "ties": ties,
            "seconds": round(seconds, 3),
        },
        per_class=per_role,
        settings=settings,
        image_ids=people.image_id,
        vocabulary=v_coco_vocabulary(),
        detections=detections,
        notes=ties_note(ties, settings, "later images come first and, in an image, what is stored first"),
    )


def _ranking(
    results: RoleResults, score: np.ndarray, actions: np.ndarray, detections: VCocoDetections, people: People
) -> Ranking:
    """The ranking of a scenario, roles as classes. The ground truth of a role is every person who does its action.

    Args:
        results: of the scenario, or of the agents.
        score: ``float [P, C]`` of each detected person.
        actions: ``int [C]`` of each class.
        detections: the P detected persons.
        people: the annotated persons.
    """
    row = np.concatenate([role.row for role in results.ranked])
    doing = [np.flatnonzero(people.actions[:, action]) for action in actions]
    roles = np.arange(len(results.ranked))
    klass = np.repeat(roles, [len(role.row) for role in results.ranked])
    return Ranking(
        row=row,
        klass=klass,
        image=detections.image[row].astype(np.int64),
        score=score[row, klass],
        is_tp=np.concatenate([role.is_tp for role in results.ranked]),
        gt_class=np.repeat(roles, [len(part) for part in doing]),
        gt_image=people.image[np.concatenate(doing)].astype(np.int64),
        classes=len(roles),
        images=len(people.image_id),
    )


def _read(request: EvaluationRequest, image_ids: np.ndarray) -> VCocoDetections:
    form = detections_format(request)
    if form == "v-coco":
        return read_v_coco_json(request.detections, image_ids)
    if form != "parquet":
        raise refuse_format(request, form)
    # Several lists of classes are in use; this protocol reads none of them.
    return from_triplets(
        read_detections(request.detections, image_ids, v_coco_vocabulary(), any_class=True, object_optional=True)
    )


def _plain(percent: float) -> float | None:
    return None if np.isnan(percent) else round(float(percent), 6)
