"""One training: its data, its record, and the markers that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.cells import identity_of, read_text, stream_spec
from hoi_distill.pipeline.training.request import Resolved
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.image import Frame, read_image
from hoi_distill.stages.quantities import duration
from hoi_distill.stages.student.data import TestSet, TrainingSet
from hoi_distill.stages.student.method import Extras, Track, untracked
from hoi_distill.stages.student.source import CacheSource
from hoi_distill.stages.student.student import HeldOut, Student, refuse_damaged
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import REMEDIES, InputFailure, StorageError, UserError
from hoi_distill.storage.files.atomic import write_atomically

LIBRARIES = ("torch", "accelerate", "transformers", "numpy")


def is_trained(run_dir: Path, fingerprint: str) -> bool:
    """Whether a run has ended as this training, and its record and checkpoint are there and sound.

    Where they are not, the training does its last step again, as its saved state still allows.

    Args:
        run_dir: the run's folder.
        fingerprint: the training's.
    """
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
    """The student of a training that has ended, ready to predict. None, and a line, where its checkpoint is damaged."""
    from hoi_distill.stages.student.pretrained import load_student

    try:
        return load_student(run_dir / "checkpoint")
    except UserError as error:
        print(f"{error}. The training goes on from its last save to write it again.")
        return None


def fit(
    workspace: Workspace,
    resolved: Resolved,
    run_dir: Path,
    stop: threading.Event | None,
    watch: Watch,
    *,
    track: Track = untracked,
) -> Student:
    """Train and mark the run as trained.

    Args:
        workspace: the dataset and the configuration.
        resolved: the training.
        run_dir: the run's folder.
        stop: once set, the training is saved and ends.
        watch: says what is going on.
        track: gets what is logged at a step.
    """
    written = run_record(resolved, workspace.config, len(workspace.dataset["test"].path))
    write_json(run_dir / "student.json", written)
    workspace.vocabulary.save(run_dir / "vocabulary.json")
    if resolved.labels.few is not None:
        resolved.labels.few.save(run_dir / "few_shot.json")
    epochs = resolved.method.epochs(resolved.config, int(resolved.labelled.sum()), int((~resolved.labelled).sum()))
    length = f"{epochs:,.1f} epochs" if epochs >= 1 else f"{epochs:.2g} of an epoch"
    print(
        f"Training {workspace.config.name} {resolved.fingerprint[:12]}, seed {resolved.config.seed}, "
        f"on {trained_on(resolved)}. {length}."
    )
    wall, cpu = time.monotonic(), time.process_time()
    text = resolved.text
    prompts, tables = workspace.vocabulary.prompts(), workspace.config.tables
    extras = Extras(
        shared_dir=run_dir.parent.parent / "shared",
        text_embeddings=None if text is None else read_text(text, workspace.sources["texts"], prompts),
        identities={role: identity_of(each.name, workspace.nodes, tables) for role, each in resolved.test.items()},
        stop=stop,
        report=watch,
        track=track,
        held_out=held_out_of(workspace, resolved, run_dir),
    )
    watch.phase("training: loading torch and the cells that are learnt from")
    student = resolved.method.train(resolved.config, training_set(workspace, resolved), run_dir, extras)
    seconds = {"wall_seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    if is_main_process():
        if student.origin is not None:
            write_json(run_dir / "student.json", {**written, "start": student.origin})
        threads = {"threads": _threads()}
        write_json(run_dir / "done.json", {"fingerprint": resolved.fingerprint, **seconds, **threads})
        print(f"Trained in {duration(seconds['wall_seconds'])} ({duration(seconds['cpu_seconds'])} of CPU).")
    return student


def _threads() -> int:
    """CPU threads of the training's arithmetic: their number decides how sums round."""
    import torch

    return torch.get_num_threads()


def held_out_of(workspace: Workspace, resolved: Resolved, run_dir: Path) -> HeldOut | None:
    """The held-out images, and how a student is judged by them; None where none are held out."""
    if not len(resolved.held_out):
        return None
    rows = workspace.images.splits["train"][resolved.held_out]
    annotations = workspace.dataset["train"].take(resolved.held_out)
    test = TestSet(
        source=CacheSource(stream_spec(workspace.images.ids[rows], resolved.validation, workspace.mending_command())),
        image_ids=[str(name) for name in annotations.image_id],
        read=ImageReader([workspace.images.uris[row] for row in rows], annotations.frame),
        identity=f"{resolved.fingerprint} validation",
    )
    never_rare = np.zeros(len(workspace.vocabulary), bool)

    def score(student: Student, folder: Path, device: str) -> float:
        from hoi_distill.stages.evaluate.formats.parquet import read_detections
        from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det

        file = student.predict(test, folder, run_dir.parent.parent / "shared", lambda _: None, device)
        found = read_detections(file, annotations.image_id, workspace.vocabulary, object_optional=True)
        return evaluate_hico_det(annotations, found, never_rare).default["full"] or 0.0

    return HeldOut(len(rows), score, resolved.data.validate_every, resolved.data.patience)


def trained_on(resolved: Resolved) -> str:
    """Which images, labels and soft labels a student learned from: a noun phrase."""
    labelled = int(resolved.labelled.sum())
    unlabelled = len(resolved.labelled) - labelled
    return resolved.method.trained_on(resolved.config, labelled, unlabelled) + resolved.labels.words()


def world() -> int:
    """How many processes a launcher such as ``accelerate launch`` has started. Each of them runs this program."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def without_launcher() -> dict[str, str]:
    """The environment of a program that is not one of a launcher's processes, though this one may be."""
    return {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}


def is_main_process() -> bool:
    """Whether this is the process that writes and reports, of those of :func:`world`."""
    return os.environ.get("RANK", "0") == "0"


def training_set(workspace: Workspace, resolved: Resolved) -> TrainingSet:
    """The training images, their annotations and the cells that a method trains on."""
    images = workspace.images
    rows = images.splits["train"][resolved.records]
    columns = resolved.train["itm"].cells.columns if "itm" in resolved.train else ()
    return TrainingSet(
        source=CacheSource(stream_spec(images.ids[rows], resolved.train, workspace.mending_command())),
        annotations=resolved.labels.annotations,
        image=resolved.records,
        labelled=resolved.labelled,
        prompts=[prompt if prompt in columns else None for prompt in workspace.vocabulary.prompts()],
        read=ImageReader([images.uris[row] for row in rows], workspace.dataset["train"].frame),
        identity=resolved.fingerprint,
        values={role: f"{p.table.fingerprint} {p.cells.columns} {p.values}" for role, p in resolved.train.items()},
        unseen=None if resolved.labels.split is None else resolved.labels.split.unseen,
        dropped=resolved.labels.dropped,
        pair_questions=resolved.train["pair_answers"].cells.columns if "pair_answers" in resolved.train else None,
    )


def test_set(workspace: Workspace, resolved: Resolved) -> TestSet:
    """The test images that can be read, and the cells that a student reads to predict them."""
    images = workspace.images
    rows = images.splits["test"][resolved.tested]
    return TestSet(
        source=CacheSource(stream_spec(images.ids[rows], resolved.test, workspace.mending_command())),
        image_ids=[str(name) for name in workspace.dataset["test"].image_id[resolved.tested]],
        read=ImageReader([images.uris[row] for row in rows], workspace.dataset["test"].frame),
        identity=resolved.evaluation,
    )


@dataclass(frozen=True)
class ImageReader:
    """Reads images for students that look at them. It is sent to loader workers.

    Attributes:
        uris: the files, by row.
        frame: whether annotations are of the image as it is stored, or as it stands upright.
    """

    uris: Sequence[str]
    frame: Frame = "upright"

    def __call__(self, row: int) -> np.ndarray:
        """The image of a row, ``uint8 [H, W, 3]``.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return np.asarray(read_image(self.uris[row], self.frame))
        except InputFailure as failure:
            raise UserError(
                f"{self.uris[row]}: {failure}; remove its record, or add a features table, which records it"
            ) from None


class TableRecord(TypedDict):
    """A table that a run read, as ``student.json`` says it.

    Attributes:
        dir: its folder.
        fingerprint: its fingerprint.
        record: what the fingerprint is made of.
        columns: how many of its columns were read.
    """

    dir: str
    fingerprint: str
    record: Mapping[str, Any]
    columns: int


class RunRecord(TypedDict):
    """Where a run comes from: ``student.json``, which the report and the checkpoint repeat.

    Attributes:
        name: the configuration's.
        method: the method's name.
        fingerprint: of the trained weights.
        student: the method's parameters.
        dataset: the ``dataset`` section.
        images: how many images training and evaluation look at, and which annotations were taken away.
        versions: of the libraries.
        provenance: the tables, by role.
    """

    name: str
    method: str
    fingerprint: str
    student: Mapping[str, Any]
    dataset: Mapping[str, Any]
    pictures: Mapping[str, Any]
    versions: Mapping[str, str]
    provenance: Mapping[str, TableRecord]


def run_record(resolved: Resolved, config: Config, tested: int) -> RunRecord:
    """What ``student.json`` says about a run.

    Args:
        resolved: the training.
        config: the configuration.
        tested: the number of test images.
    """
    tables: dict[str, TableRecord] = {
        role: {
            "dir": str(planned.table.dir),
            "fingerprint": planned.table.fingerprint,
            "record": planned.table.record,
            "columns": len(planned.cells.columns),
        }
        for role, planned in resolved.tables().items()
    }
    return {
        "name": config.name,
        "method": resolved.method.name,
        "fingerprint": resolved.fingerprint,
        "student": asdict(resolved.config),
        "dataset": config.dataset.model_dump(mode="json"),
        "pictures": {
            "labelled": int(resolved.labelled.sum()),
            "unlabelled": int((~resolved.labelled).sum()),
            "test": tested,
            **resolved.labels.record(),
        },
        "versions": {library: version(library) for library in LIBRARIES},
        "provenance": tables,
    }


def record(path: Path) -> dict[str, Any] | None:
    """The JSON object that a step has written. None where the step has not finished, or the file is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole and durably, or not at all."""
    canonical_json(value)  # NaN has no place in a record
    write_atomically(path, json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def on_disk(run_dir: Path) -> Iterator[None]:
    """Say in one line that the disk under a run is full or broken.

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
