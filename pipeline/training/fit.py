"""Training as a stage: named by everything that it depends on, run once, evaluated, reported."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.pipeline.console.progress import duration
from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.cells import identity_of, read_text, stream_spec
from hoi_distill.pipeline.training.request import Resolved
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.student import refuse_damaged
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import REMEDIES, InputFailure, StorageError, UserError
from hoi_distill.storage.files.atomic import write_atomically

if TYPE_CHECKING:
    from hoi_distill.stages.data.image import Frame
    from hoi_distill.stages.student.data import TestSet, TrainingSet
    from hoi_distill.stages.student.student import Student

LIBRARIES = ("torch", "accelerate", "transformers", "numpy")


def is_trained(run_dir: Path, fingerprint: str) -> bool:
    """Whether a run has ended as this training, and what it vouches for is there: a damaged record or a checkpoint that has
    gone means the last step again, which the training's state still holds."""
    done = record(run_dir / "done.json") or {}
    if done.get("fingerprint") != fingerprint or not {"wall_seconds", "cpu_seconds"} <= done.keys():
        return False
    left = [run_dir / "student.json", run_dir / "checkpoint" / "config.json"]
    lost = next((f"{path}: not there or damaged" for path in left if record(path) is None), None)
    if lost is None:
        try:
            refuse_damaged(run_dir / "checkpoint")
        except UserError as error:
            lost = str(error)
    if lost is not None:
        print(f"{lost}. The training had ended; it goes on from its last save to write that again.")
    return lost is None


def trained_student(run_dir: Path) -> Student | None:
    """The student of a training that has ended, ready to predict; None where its checkpoint is damaged, which is said."""

    try:
        return load_student(run_dir / "checkpoint")
    except UserError as error:
        print(f"{error}. The training goes on from its last save to write it again.")
        return None


def fit(
    workspace: Workspace, resolved: Resolved, run_dir: Path, stop: threading.Event | None, watch: Watch | None = None
) -> Student:
    """Train and mark the run as trained."""
    from hoi_distill.stages.student.method import Extras

    watch = watch or Watch("training")
    write_json(run_dir / "student.json", provenance(workspace, resolved))
    workspace.vocabulary.save(run_dir / "vocabulary.json")
    if resolved.labels.few is not None:
        resolved.labels.few.save(run_dir / "few_shot.json")
    epochs = resolved.method.epochs(resolved.config, int(resolved.labelled.sum()), int((~resolved.labelled).sum()))
    length = f"{epochs:,.1f} epochs" if epochs >= 1 else f"{epochs:.2g} of an epoch"
    print(
        f"Training {workspace.config.name} {resolved.fingerprint[:12]}, seed {resolved.config.seed}, on {trained_on(resolved)}. "
        f"{length}."
    )
    wall, cpu = time.monotonic(), time.process_time()
    extras = Extras(
        shared_dir=run_dir.parent.parent / "shared",
        text_embeddings=None if resolved.text is None else read_text(workspace, resolved.text),
        identities={role: identity_of(workspace, planned) for role, planned in resolved.test.items()},
        stop=stop,
        report=watch,
    )
    watch.phase("training: loading torch and the cells that are learnt from")
    student = resolved.method.train(resolved.config, training_set(workspace, resolved), run_dir, extras)
    seconds = {"wall_seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    if is_main_process():
        if student.origin is not None:
            write_json(run_dir / "student.json", {**provenance(workspace, resolved), "start": student.origin})
        write_json(run_dir / "done.json", {"fingerprint": resolved.fingerprint, **seconds})
        print(f"Trained in {duration(seconds['wall_seconds'])} ({duration(seconds['cpu_seconds'])} of CPU).")
    return student


def trained_on(resolved: Resolved) -> str:
    """Which pictures, which labels, which soft labels: a noun phrase."""
    labelled = int(resolved.labelled.sum())
    unlabelled = len(resolved.labelled) - labelled
    return resolved.method.trained_on(resolved.config, labelled, unlabelled) + resolved.labels.words()


def world() -> int:
    """How many processes a launcher such as ``accelerate launch`` has started, each of which runs this program."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Of those of :func:`world` the one that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def training_set(workspace: Workspace, resolved: Resolved) -> TrainingSet:
    """The training pictures, their annotations and the cells that a method trains on."""
    from hoi_distill.stages.student.data import TrainingSet
    from hoi_distill.stages.student.source import CacheSource

    rows = workspace.sources["images"].splits["train"][resolved.records]
    columns = resolved.train["itm"].cells.columns if "itm" in resolved.train else ()
    return TrainingSet(
        source=CacheSource(stream_spec(workspace, rows, resolved.train)),
        annotations=resolved.labels.annotations,
        image=resolved.records,
        labelled=resolved.labelled,
        prompts=[prompt if prompt in columns else None for prompt in workspace.vocabulary.prompts()],
        read=PictureReader([workspace.sources["images"].uris[i] for i in rows], workspace.dataset["train"].frame),
        identity=resolved.fingerprint,
        values={role: f"{p.table.fingerprint} {p.cells.columns} {p.values}" for role, p in resolved.train.items()},
        unseen=None if resolved.labels.split is None else resolved.labels.split.unseen,
        dropped=resolved.labels.dropped,
    )


def test_set(workspace: Workspace, resolved: Resolved) -> TestSet:
    """The test pictures that can be looked at, and the cells that a student reads to predict them."""
    from hoi_distill.stages.student.data import TestSet
    from hoi_distill.stages.student.source import CacheSource

    rows = workspace.sources["images"].splits["test"][resolved.tested]
    return TestSet(
        source=CacheSource(stream_spec(workspace, rows, resolved.test)),
        image_ids=[str(name) for name in workspace.dataset["test"].image_id[resolved.tested]],
        read=PictureReader([workspace.sources["images"].uris[i] for i in rows], workspace.dataset["test"].frame),
        identity=resolved.evaluation,
    )


@dataclass(frozen=True)
class PictureReader:
    """``read(row) -> uint8 [H, W, 3]``, for students that look at the pictures themselves; goes to loader workers."""

    uris: Sequence[str]
    frame: Frame = "upright"

    def __call__(self, row: int) -> np.ndarray:
        """The picture of a row, ``uint8 [H, W, 3]``.

        Raises:
            UserError: it cannot be read.
        """
        from hoi_distill.stages.data.image import read_picture

        try:
            return np.asarray(read_picture(self.uris[row], self.frame))
        except InputFailure as failure:
            raise UserError(
                f"{self.uris[row]}: {failure}; remove its record, or add a features table, which records it"
            ) from None


def provenance(workspace: Workspace, resolved: Resolved) -> dict[str, Any]:
    """What the report and the checkpoint say about where this run came from."""
    tables = {}
    for role, planned in {
        **resolved.test,
        **resolved.train,
        **({"text": resolved.text} if resolved.text else {}),
    }.items():
        tables[role] = {
            "dir": str(planned.table.dir),
            "fingerprint": planned.table.fingerprint,
            "record": planned.table.record,
            "columns": len(planned.cells.columns),
        }
    return {
        "name": workspace.config.name,
        "method": resolved.method.name,
        "fingerprint": resolved.fingerprint,
        "student": asdict(resolved.config),
        "dataset": workspace.config.dataset.model_dump(mode="json"),
        "pictures": {
            "labelled": int(resolved.labelled.sum()),
            "unlabelled": int((~resolved.labelled).sum()),
            "test": len(workspace.dataset["test"].path),
            **resolved.labels.record(),
        },
        "versions": {library: version(library) for library in LIBRARIES},
        "provenance": tables,
    }


def record(path: Path) -> dict[str, Any] | None:
    """What a step has left, a JSON object; None where it has not finished, or the file is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write whole and durably or not at all."""
    canonical_json(value)  # NaN has no place in a record
    write_atomically(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def on_disk(run_dir: Path) -> Iterator[None]:
    """A full or broken disk under a run in one line.

    Raises:
        StorageError: instead of an OSError of writing.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(
            f"{error.filename or run_dir}: {error.strerror}; {remedy} and start again: the training goes on from its last save"
        ) from error
