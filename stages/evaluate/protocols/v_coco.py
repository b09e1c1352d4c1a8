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
from hoi_distill.stages.evaluate.protocols.types import Judged, Request, Setting


def judge_v_coco(request: Request) -> Judged:
    """Read, check and evaluate; see :func:`hoi_distill.stages.evaluate.protocols.evaluate_files.evaluate_files`."""
    people = load_v_coco_people(request.annotations, request.split)
    return judge_persons(_read(request, people.image_id), people, request.split or "test")


def judge_persons(found: VCocoDetections, people: People, split: str) -> Judged:
    """What is left when files are read."""
    began = time.perf_counter()
    results = v_coco(found, people)
    seconds = time.perf_counter() - began

    figures: dict[str, Any] = results.percentages()
    agent = _plain(figures["agent"])
    scenarios = {
        name: {key: _plain(value) for key, value in figures[name].items()} for name in ("scenario_1", "scenario_2")
    }
    per_role = []
    for role, action in enumerate(SLOT_ACTION[ROLE_SLOTS]):
        doing, right = int(results.persons[action]), int(results.scenario_1.judged[role][1].sum())
        per_role.append({
            "name": ROLES[role].replace("_", " "),
            "action": ACTIONS[action],
            "ap": _plain(100 * results.scenario_1.ap[role]),
            "ap_scenario_2": _plain(100 * results.scenario_2.ap[role]),
            "agent_ap": _plain(100 * results.agent_ap[action]),
            "pairs": doing,
            "with_role": int((people.actions[:, action] & people.role_box[:, role].any(1)).sum()),
            "found": right,
            "recall": _plain(100 * right / doing) if doing else None,
        })  # fmt: skip
    counts = {
        "pictures": len(people.image_id),
        "persons": len(people.box),
        "detected_persons": len(found),
    }
    all_roles = np.ones(len(ROLES), bool)
    sets = {"roles_25": all_roles, "roles_24": np.arange(len(ROLES)) != UNREPORTED_ROLE}
    settings = {
        "scenario_1": Setting(
            "scenario 1",
            scenarios["scenario_1"],
            sets,
            _ranking(results.scenario_1, found.role_score, SLOT_ACTION[ROLE_SLOTS], found, people),
            "an absent role must be predicted empty",
        ),
        "scenario_2": Setting(
            "scenario 2",
            scenarios["scenario_2"],
            sets,
            _ranking(results.scenario_2, found.role_score, SLOT_ACTION[ROLE_SLOTS], found, people),
            "absent roles are ignored",
        ),
        "agent": Setting("agent", {"actions_26": agent}, note="the person and the action alone"),
    }
    agents = _ranking(results.agents, found.agent_score, np.arange(len(ACTIONS)), found, people)
    ties = {**ties_of(settings), "agent": agents.ties({"actions_26": np.ones(len(ACTIONS), bool)})}
    return Judged(
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
        detections=found,
        notes=ties_note(ties, settings, "later pictures come first and, in a picture, what is stored first"),
    )


def _ranking(
    results: RoleResults, score: np.ndarray, actions: np.ndarray, found: VCocoDetections, people: People
) -> Ranking:
    """A scenario's judged detections, roles as classes; what a role can find is every person who does its action.

    score: ``float [P, C]`` of each detected person; actions: ``int [C]`` of each class.
    """
    rows = [rows for rows, _ in results.judged]
    row = np.concatenate(rows)
    doing = [np.flatnonzero(people.actions[:, action]) for action in actions]
    roles = np.arange(len(rows))
    klass = np.repeat(roles, [len(part) for part in rows])
    return Ranking(
        row, klass, found.image[row].astype(np.int64), score[row, klass],
        np.concatenate([hit for _, hit in results.judged]), np.repeat(roles, [len(part) for part in doing]),
        people.image[np.concatenate(doing)].astype(np.int64), len(rows),
    )  # fmt: skip


def _read(request: Request, image_ids: np.ndarray) -> VCocoDetections:
    form = detections_format(request)
    if form == "v-coco":
        return read_v_coco_json(request.detections, image_ids)
    if form != "parquet":
        raise refuse_format(request, form)
    words = v_coco_vocabulary()
    sizes = len(words.objects), len(words.verbs)
    # Several lists of classes are in use; nothing here is judged by them.
    return from_triplets(read_detections(request.detections, image_ids, None, *sizes, object_optional=True))


def _plain(percent: float) -> float | None:
    return None if np.isnan(percent) else round(float(percent), 6)
