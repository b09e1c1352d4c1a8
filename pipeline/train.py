"""Training as a stage: named by all that it depends on, run once, evaluated, reported."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.pipeline.config.schema import CrowdDataset, Dataset, SwigHoiDataset, VCocoDataset
from hoi_distill.pipeline.console.log_file import kept_log
from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.checks import check_student
from hoi_distill.pipeline.training.fit import (
    fit,
    is_main_process,
    is_trained,
    on_disk,
    record,
    run_record,
    test_set,
    trained_on,
    trained_student,
    world,
    write_json,
)
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.training.trackers import Trackers, open_trackers, refuse_missing
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.metrics_log import read_metrics
from hoi_distill.stages.student.student import Student
from hoi_distill.storage.errors import UserError, placed
from hoi_distill.storage.files.atomic import link_atomically
from hoi_distill.storage.files.lock import alone

if TYPE_CHECKING:
    from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import HicoDetEvaluation

LOG = "log.txt"


def train_student(
    workspace: Workspace,
    stop: threading.Event | None = None,
    plans: Mapping[str, TablePlan] | None = None,
    *,
    name: str | None = None,
) -> Path:
    """Train, evaluate and report what is not done yet.

    Every step leaves a marker that names what it depends on. A second call with nothing changed does nothing. A call that
    comes while another process trains the same student waits for it.

    Args:
        workspace: the student's section, and the tables that it reads.
        stop: once set, the training is saved and ends.
        plans: of all tables, if they are known.
        name: what the run is called, beside its fingerprint: a link beside ``latest``, and the run's name in trackers.

    Returns:
        The run's folder.

    Raises:
        UserError: the section has a mistake, a cell that the student needs is empty, or the folder cannot be made.
    """
    refuse_unrecorded(workspace, name)
    with Watch("looking at what the tables hold") as watch:
        check_student(workspace)
        plans = plan_all(workspace) if plans is None else plans
        resolved = resolve(workspace, plans)
        folder = workspace.config.runs / workspace.config.name / resolved.fingerprint[:12]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{workspace.path}: runs: {folder}: cannot be made: {error.strerror}") from None
        watch.phase("waiting for another training's end")
        with (
            on_disk(folder),
            alone_in(folder, stop or threading.Event()),
            kept_log(folder / LOG, written=is_main_process()),
        ):
            if world() > 1:
                from accelerate import PartialState

                # Look at the markers only after rank 0 has the lock: then no other process changes them.
                PartialState().wait_for_everyone()
            StudentRun(folder, workspace, plans, resolved, watch, name).go(stop)
    return folder


def finished_run(workspace: Workspace) -> Path | None:
    """The folder of a run that has been trained and evaluated. None where it has not, or cells that it reads are empty."""
    with Watch("looking at what the tables hold") as watch:
        plans = plan_all(workspace)
        try:
            resolved = resolve(workspace, plans)
        except UserError:  # empty cells: a run cannot have read them
            return None
        folder = workspace.config.runs / workspace.config.name / resolved.fingerprint[:12]
        done = record(folder / "done.json") or {}
        run = StudentRun(folder, workspace, plans, resolved, watch)
    return folder if done.get("fingerprint") == resolved.fingerprint and run.is_evaluated() else None


def alone_in(folder: Path, stop: threading.Event) -> AbstractContextManager[None]:
    """Hold the lock of a run.

    Only rank 0 takes it. Under a launcher it fails at once instead of waiting, because the other ranks would then hang at
    the first barrier.

    Raises:
        UserError: under a launcher, another training holds it.
    """
    if not is_main_process():
        return nullcontext()

    def waiting() -> None:
        if world() > 1:
            raise UserError(f"{folder}: another process trains this student; wait for its end and start again")
        print(f"Another process trains this student in {folder}; waiting for it.")

    return alone(folder / "lock", stop, waiting)


@dataclass(frozen=True)
class StudentRun:
    """One training of a student, with its evaluation and its report. No other process is at it.

    Attributes:
        folder: the run's folder.
        workspace: the dataset and the configuration.
        plans: of all tables.
        resolved: the training.
        watch: says what is going on.
        name: what the user calls it.
    """

    folder: Path
    workspace: Workspace
    plans: Mapping[str, TablePlan]
    resolved: Resolved
    watch: Watch
    name: str | None = None

    def go(self, stop: threading.Event | None) -> None:
        """Do what is not done yet. Once ``stop`` is set, the training is saved and ends."""
        trial = self.workspace.limit is not None
        short, trained = self.resolved.fingerprint[:12], is_trained(self.folder, self.resolved.fingerprint)
        if trained and self.is_evaluated():
            print(
                f"Nothing to do: {self.folder} was trained and evaluated with these parameters, rows, labels and cached "
                f"values (fingerprint {short})."
            )
            announce(self.folder, trial=trial, name=self.name)
            return
        with self.workspace.cache.lease("reader", self.resolved.folders()):
            self.watch.phase("loading torch and the trained student")
            student = trained_student(self.folder) if trained else None
            if student is not None:
                print(f"Trained already (fingerprint {short}); evaluating.")
            trackers = self._trackers()
            try:
                if student is None:
                    student = fit(self.workspace, self.resolved, self.folder, stop, self.watch, track=trackers.log)
                if not is_main_process():
                    return
                evaluation = self._evaluate(student)
                trackers.log(test_values(evaluation), self._last_step())
            finally:
                trackers.close()
        announce(self.folder, trial=trial, name=self.name)

    def _trackers(self) -> Trackers:
        """The trackers of the configuration, on the main process."""
        short = self.resolved.fingerprint[:12]
        name = self.name or f"{self.workspace.config.name}, seed {self.resolved.config.seed}, {short}"
        record = run_record(self.resolved, self.workspace.config, len(self.workspace.dataset["test"].path))
        told = {key: record[key] for key in ("name", "method", "fingerprint", "student", "dataset", "pictures")}
        names = self.workspace.config.trackers if is_main_process() else ()
        return open_trackers(names, self.folder, name, told, identity=short)

    def _last_step(self) -> int:
        """The last step that was logged."""
        records, _ = read_metrics(self.folder / "metrics.jsonl")
        return int(max((record["step"] for record in records), default=0))

    def is_evaluated(self) -> bool:
        """Whether its evaluation and its report are there, and of these test images and cells."""
        marker = record(self.folder / "evaluated.json") or {}
        written = record(self.folder / "evaluation.json") is not None and (self.folder / "report.html").exists()
        return written and marker.get("fingerprint") == self.resolved.evaluation

    def _evaluate(self, student: Student) -> HicoDetEvaluation:
        """Predict the test split, evaluate, write the report, and mark the run as evaluated."""
        from hoi_distill.pipeline.reports.run import write_run_report
        from hoi_distill.stages.evaluate.formats.parquet import read_detections
        from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
        from hoi_distill.stages.evaluate.metrics.training_pairs import by_pairs_line

        workspace, labels, folder = self.workspace, self.resolved.labels, self.folder
        self.watch.phase("predicting the test images")
        shared = folder.parent.parent / "shared"
        predictions = student.predict(test_set(workspace, self.resolved), folder, shared, self.watch)
        self.watch.phase("evaluating the predictions")
        test = workspace.dataset["test"]
        found = read_detections(predictions, test.image_id, workspace.vocabulary, object_optional=True)
        # A class is rare by all annotations of the labelled images: the same classes for every split and every draw.
        rare = labels.before < self.resolved.data.rare_below
        evaluation = evaluate_hico_det(test, found, rare, training=labels.seen(), zero_shot=labels.split)
        write_json(folder / "evaluation.json", evaluation.as_json())
        for setting, means in (("default", evaluation.default), ("known object", evaluation.known_object)):
            row = "  ".join(f"{name} {value:.2f}" for name, value in means.items() if value is not None)
            print(f"mAP, {setting}: {row}")
        if evaluation.by_training_pairs:
            print(f"mAP, by training pairs: {by_pairs_line(evaluation.by_training_pairs)}")
        if evaluation.zero_shot is not None:
            print(zero_shot_line(evaluation.zero_shot))
        evaluate_by_own_protocol(workspace.config.dataset, predictions, folder)
        self.watch.phase("writing the report")
        write_run_report(
            workspace,
            self.resolved,
            self.plans,
            folder,
            trained_on=trained_on(self.resolved),
            detections=found,
            evaluation=evaluation,
        )
        write_json(folder / "evaluated.json", {"fingerprint": self.resolved.evaluation})
        return evaluation


def test_values(evaluation: HicoDetEvaluation) -> dict[str, float]:
    """The test's means in percent, as trackers get them: ``test/mAP full``."""
    named = {f"test/mAP {name.replace('_', '-')}": value for name, value in evaluation.default.items()}
    return {name: value for name, value in named.items() if value is not None}


def refuse_unrecorded(workspace: Workspace, name: str | None) -> None:
    """Refuse, before any work, a training that could not be kept as it is wanted.

    Args:
        workspace: says where runs are, and names the trackers.
        name: the run's. None: it has none.

    Raises:
        UserError: a tracker is not installed, or the name cannot be that of a link.
    """
    with placed(f"{workspace.path}: "):
        refuse_missing(workspace.config.trackers)
    folder = workspace.config.runs / workspace.config.name
    if name is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "latest":
        raise UserError(f"--name {name}: a run's name has letters, digits, '_', '-' and '.', and is not latest")
    if (folder / name).exists() and not (folder / name).is_symlink():
        raise UserError(f"--name {name}: {folder / name} is there already and no link to a run; choose another name")


def announce(folder: Path, *, trial: bool, name: str | None = None) -> None:
    """Link ``latest``, and the run's own name, to a run, also if nothing was to be done, and say where its report is.

    Args:
        folder: the run's.
        trial: whether it is a trial run (``--limit``), to which ``latest`` is linked only if there is no other.
        name: what the user calls it.
    """
    latest = folder.parent / "latest"
    links = [latest] if not trial or not latest.exists() else []
    for link in [*links, *([] if name is None else [folder.parent / name])] if is_main_process() else []:
        try:
            link_atomically(link, folder.name)
        except OSError as error:  # a folder of that name, or a file system without links
            print(f"{link}: not made ({error.strerror}); the run is in {folder}")
    print(f"Report: {folder / 'report.html'}")


def zero_shot_line(means: Mapping[str, Any]) -> str:
    """A line for people of an evaluation's ``zero_shot``."""
    row = "  ".join(f"{name} {value:.2f}" for name, value in means.items() if name != "split" and value is not None)
    return f"mAP, zero-shot {means['split']}: {row}"


def evaluate_by_own_protocol(dataset: Dataset, predictions: Path, folder: Path) -> None:
    """Evaluate by the dataset's own protocol too, where it has one: print the result and write ``official.json``, of a crowd
    ``swap_accuracy.json``.

    Args:
        dataset: of the configuration.
        predictions: the detections file.
        folder: the run's.
    """
    from hoi_distill.pipeline.records import SWAP_RECORD
    from hoi_distill.stages.evaluate.protocols.evaluate_files import evaluate_files
    from hoi_distill.stages.evaluate.protocols.twins import evaluate_twins
    from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest

    if isinstance(dataset, CrowdDataset) and (dataset.root / "twins_test2015.json").exists():
        found = evaluate_twins(dataset.root, predictions)
        write_json(folder / SWAP_RECORD, found)
        if found["compared"]:
            print(f"Swap accuracy: {found['swap_accuracy']:.1f} % of {found['compared']} questions")
    if not isinstance(dataset, VCocoDataset | SwigHoiDataset):
        return

    result = evaluate_files(EvaluationRequest(dataset=dataset.kind, annotations=dataset.root, detections=predictions))
    write_json(folder / "official.json", result.record)
    print(result.table())
