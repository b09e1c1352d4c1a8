"""V-COCO behind ``hoi-distill evaluate``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from stages.data.v_coco import ACTIONS, ROLE_SLOTS, ROLES, SLOT_ACTION, load_v_coco_people, v_coco_vocabulary
from stages.evaluate.detections import read_detections
from stages.evaluate.protocols import Judged, Request, Setting, detections_format, refuse_format
from stages.evaluate.v_coco import VCocoDetections, from_triplets, v_coco
from stages.evaluate.v_coco_json import read_v_coco_json


def judge_v_coco(request: Request) -> Judged:
    """Read, check and evaluate; see :func:`stages.evaluate.protocols.evaluate_files`."""
    people = load_v_coco_people(request.annotations, request.split)
    found = _read(request, people.image_id)
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
        per_role.append({
            "name": ROLES[role].replace("_", " "),
            "action": ACTIONS[action],
            "ap": _plain(100 * results.scenario_1.ap[role]),
            "ap_scenario_2": _plain(100 * results.scenario_2.ap[role]),
            "agent_ap": _plain(100 * results.agent_ap[action]),
            "pairs": int((people.actions[:, action] & people.role_box[:, role].any(1)).sum()),
            "persons": int(results.persons[action]),
        })  # fmt: skip
    counts = {
        "pictures": len(people.image_id),
        "persons": len(people.box),
        "detected_persons": len(found),
    }
    return Judged(
        record={
            "dataset": "v-coco",
            "split": request.split or "test",
            "convention": "official",
            "definition": "V-COCO's vsrl_eval: role AP, a person and a role from IoU 0.5, all-point",
            "counts": counts,
            "agent": agent,
            **scenarios,
            "per_role": per_role,
            "seconds": round(seconds, 3),
        },
        per_class=per_role,
        settings={
            "scenario_1": Setting("scenario 1", scenarios["scenario_1"], note="an absent role must be predicted empty"),
            "scenario_2": Setting("scenario 2", scenarios["scenario_2"], note="absent roles are ignored"),
            "agent": Setting("agent", {"actions_26": agent}, note="the person and the action alone"),
        },
        image_ids=people.image_id,
        vocabulary=v_coco_vocabulary(),
        detections=found,
    )


def _read(request: Request, image_ids: np.ndarray) -> VCocoDetections:
    form = detections_format(request)
    if form == "v-coco":
        return read_v_coco_json(request.detections, image_ids)
    if form != "parquet":
        raise refuse_format(request, form)
    words = v_coco_vocabulary()
    return from_triplets(
        read_detections(
            request.detections, image_ids, words.hois, len(words.objects), len(words.verbs), object_optional=True
        )
    )


def _plain(percent: float) -> float | None:
    return None if np.isnan(percent) else round(float(percent), 6)
