"""Records of finished trainings: a few kB for each arm and seed of a matrix, made to lie in a repository.

A record holds what the tables need: the figures, the average precision of each class, and what the bootstrap of the test images
made of them. So a matrix goes on on another machine, without the runs. A record counts while its
:func:`~hoi_distill.pipeline.training.declaration.declaration` is that of the arm; else the arm is trained, and its record
written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.sampling.splits import ZeroShotSplit
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
from hoi_distill.stages.evaluate.metrics.outcomes import Outcomes, draw_outcomes, read_outcomes
from hoi_distill.stages.evaluate.metrics.training_pairs import means_by_pairs, training_pairs_of
from hoi_distill.stages.evaluate.pages.report import ZERO_SHOT_SETS, Run
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import writing

FIGURES = ("dataset", "split", "counts", "default", "known_object", "zero_shot")
"""What a record keeps of ``evaluation.json`` as it stands there."""
SWAP_RECORD = "swap_accuracy.json"
"""In a run's folder: the swap accuracy on test images that have twins."""
CLASSES = ("rare", "unseen", "training_pairs", "pairs", "ap")
"""What it keeps of each class, where it is said: as one list of all classes each."""


@dataclass(frozen=True)
class Place:
    """Where the record of one training is, and what it must say to count.

    Attributes:
        folder: of the matrix's records.
        matrix: the matrix's name.
        arm: the arm's name.
        seed: the training's.
        declaration: the training's.
    """

    folder: Path
    matrix: str
    arm: str
    seed: int
    declaration: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{file_name(self.arm)}-seed-{self.seed}.json"


def file_name(arm: str) -> str:
    """An arm's name as a file's: ``A1, plain attention`` is ``a1-plain-attention``."""
    return re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")


def read_recorded(place: Place) -> Run | None:
    """A training as its record has it, whatever the arm was called when that was written.

    Returns:
        None where the folder has no record of this training.

    Raises:
        UserError: a file of that name is no record.
    """
    for path in [place.path, *sorted(place.folder.glob("*.json"))]:
        record = read_record(path, place.declaration)
        if record is not None:
            return replace(run_of(record, str(path)), seed=place.seed)
    return None


def read_record(path: Path, declaration: str = "") -> dict[str, Any] | None:
    """The JSON of a record.

    Args:
        path: the file.
        declaration: of the training; "" takes any.

    Returns:
        None where there is no such file, or it is of another training.

    Raises:
        UserError: the file is no record.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if declaration not in text:  # before the rest is read: a folder has hundreds
            return None
        record: dict[str, Any] = json.loads(text)
        if not {"declaration", "arm", "seed", "default", "known_object", "classes", "outcomes"} <= record.keys():
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: not a record of a training; remove it, and it is written anew") from None
    return record if declaration in ("", record["declaration"]) else None


def run_of(record: Mapping[str, Any], where: str) -> Run:
    """What the tables show of a record.

    Args:
        record: from :func:`read_record`.
        where: the file, for messages and as the run's origin.

    Raises:
        UserError: its bootstrap is damaged.
    """
    columns = record["classes"]
    per_class = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Run(
        seed=record["seed"],
        default=record["default"],
        known_object=record["known_object"],
        seconds=record.get("cpu_seconds"),
        zero_shot={key: record["zero_shot"][key] for key, _ in ZERO_SHOT_SETS if "zero_shot" in record},
        by_training_pairs=means_by_pairs(per_class),
        outcomes=read_outcomes(record["outcomes"], where),
        origin=where,
        protocol=record.get("protocol", {}),
        swap_accuracy=record.get("swap_accuracy", {}).get("swap_accuracy"),
    )


def record_of(run_dir: Path, place: Place, test: Annotations) -> dict[str, Any]:
    """The record of a trained and evaluated run.

    Args:
        run_dir: the run's folder.
        place: where the record will be.
        test: the annotated test images.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    evaluation, done, student = (read_json(run_dir / f"{name}.json") for name in ("evaluation", "done", "student"))
    rows = evaluation["per_class"]
    return {
        "matrix": place.matrix,
        "arm": place.arm,
        "seed": place.seed,
        "declaration": place.declaration,
        "fingerprint": done["fingerprint"],
        "method": student["method"],
        "student": student["student"],
        "versions": student["versions"],
        "cpu_seconds": done["cpu_seconds"],
        "wall_seconds": done["wall_seconds"],
        "threads": done.get("threads"),
        **{key: evaluation[key] for key in FIGURES if key in evaluation},
        **protocol_of(run_dir),
        **({"swap_accuracy": read_json(twins)} if (twins := run_dir / SWAP_RECORD).exists() else {}),
        "classes": {key: [_short(row[key]) for row in rows] for key in CLASSES if key in rows[0]},
        "outcomes": outcomes_of(run_dir, evaluation, test).as_json(),
    }


def protocol_of(run_dir: Path) -> dict[str, Any]:
    """``{"protocol": means}`` as :class:`Run` has them; {} where the dataset has no protocol of its own."""
    if not (run_dir / "official.json").exists():
        return {}
    found = read_json(run_dir / "official.json")
    if "scenario_1" in found:
        return {"protocol": {name: found[name] for name in ("scenario_1", "scenario_2")}}
    means = {name: found[name] for name in ("full", "rare", "non_rare")}
    return {"protocol": {"default": means, "zero_shot": {"unseen": found["unseen"]}}}


def write_record(place: Place, record: Mapping[str, Any]) -> None:
    """Write a record: a line for each of its keys.

    Raises:
        UserError: it cannot be written.
    """
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    with writing(f"records: {place.path}"):
        place.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place.path, "{\n" + lines + "\n}\n")


def outcomes_of(run_dir: Path, evaluation: Mapping[str, Any], test: Annotations) -> Outcomes:
    """The bootstrap of a run's test images, from its detections.

    Args:
        run_dir: the run's folder.
        evaluation: its ``evaluation.json``, which says what is rare, unseen, and how often a class was seen.
        test: the annotated test images.

    Raises:
        UserError: the detections are missing, damaged or of other images, or the figures are of other annotations.
    """
    rows = evaluation["per_class"]
    split = None
    if "zero_shot" in evaluation:
        split = ZeroShotSplit(evaluation["zero_shot"]["split"], np.array([row["unseen"] for row in rows], bool))
    assert test.vocabulary is not None
    found = read_detections(run_dir / "detections.parquet", test.image_id, test.vocabulary, object_optional=True)
    rare = np.array([row["rare"] for row in rows], bool)
    again = evaluate_hico_det(test, found, rare, training=training_pairs_of(rows), zero_shot=split)
    if not np.isclose(again.default["full"] or 0.0, evaluation["default"]["full"] or 0.0, rtol=0, atol=1e-4):
        raise UserError(
            f"{run_dir / 'evaluation.json'}: its figures are not those of its detections and these annotations; "
            "train it again, or give the run's own dataset"
        )
    return draw_outcomes(again.ranking, again.sets, RECALL_GRIDS[OFFICIAL.recall_grid], name_of(test))


def name_of(test: Annotations) -> str:
    """32 digits that name test images, in their order, and their annotations."""
    names = "\n".join(map(str, test.image_id)).encode()
    return content_name(names + test.digests().tobytes())


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else round(value, 4) if isinstance(value, float) else value


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run's folder.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or damaged; train again to write it") from None
    return found
