"""Training as a stage: named by everything that it depends on, run once, evaluated, reported."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.pipeline.config.schema import SwigHoiDataset, VCocoDataset
from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.checks import check_student
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import link_atomically
from hoi_distill.storage.files.lock import alone

if TYPE_CHECKING:
    from hoi_distill.stages.student.student import Student
from typing import TYPE_CHECKING

from hoi_distill.pipeline.training.fit import fit, is_main_process, is_trained, on_disk, record, trained_student, world

if TYPE_CHECKING:
    from hoi_distill.stages.student.student import Student
from hoi_distill.pipeline.training.fit import test_set, trained_on, write_json


def train_student(workspace: Workspace, stop: threading.Event | None = None) -> Path:
    """Train, evaluate and report what is not done yet; returns the run's folder.

    Every step leaves a marker that names what it was made from: a second call with nothing changed does nothing, and one that
    comes while another trains the same student waits for it.
    """
    with Watch("looking at what the tables hold") as watch:
        check_student(workspace)
        plans = plan_all(workspace)
        resolved = resolve(workspace, plans)
        run_dir = workspace.config.runs / workspace.config.name / resolved.fingerprint[:12]
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{workspace.path}: runs: {run_dir}: cannot be made: {error.strerror}") from None
        watch.phase("waiting for another training's end")
        with on_disk(run_dir), alone_in(run_dir, stop or threading.Event()):
            if world() > 1:
                from accelerate import PartialState

                PartialState().wait_for_everyone()  # what is done is looked at once nobody else can be at it
            return train_in(run_dir, workspace, plans, resolved, stop=stop, watch=watch)


def alone_in(run_dir: Path, stop: threading.Event) -> AbstractContextManager[None]:
    """Of the processes of a launcher the first one holds the run's lock for all of them. They do not wait, as the others would
    wait for the first.

    Raises:
        UserError: under a launcher, another training holds it.
    """
    if not is_main_process():
        return nullcontext()

    def waiting() -> None:
        if world() > 1:
            raise UserError(f"{run_dir}: another process trains this student; wait for its end and start again")
        print(f"Another process trains this student in {run_dir}; waiting for it.")

    return alone(run_dir / "lock", stop, waiting)


def train_in(
    run_dir: Path,
    workspace: Workspace,
    plans: Mapping[str, TablePlan],
    resolved: Resolved,
    *,
    stop: threading.Event | None,
    watch: Watch,
) -> Path:
    """:func:`train_student` where nobody else trains."""
    trained = is_trained(run_dir, resolved.fingerprint)
    evaluated = (record(run_dir / "evaluated.json") or {}).get("fingerprint") == resolved.evaluation
    evaluated &= record(run_dir / "evaluation.json") is not None and (run_dir / "report.html").exists()
    if trained and evaluated:
        print(
            f"Nothing to do: {run_dir} was trained and evaluated with these parameters, rows, labels and cached values "
            f"(fingerprint {resolved.fingerprint[:12]})."
        )
        return reported(workspace, run_dir)
    read = [*resolved.train.values(), *resolved.test.values(), *([resolved.text] if resolved.text else [])]
    used = sorted({planned.table.dir for planned in read})
    with workspace.cache.lease("reader", used):
        watch.phase("loading torch and the trained student")
        student = trained_student(run_dir) if trained else None
        if student is not None:
            print(f"Trained already (fingerprint {resolved.fingerprint[:12]}); evaluating.")
        else:
            student = fit(workspace, resolved, run_dir, stop, watch)
        if not is_main_process():
            return run_dir
        evaluate_run(run_dir, workspace, plans, resolved, student, watch=watch)
    return reported(workspace, run_dir)


def reported(workspace: Workspace, run_dir: Path) -> Path:
    """Say where the report is. The newest training that was asked for is ``latest``, done before or not, but for trial runs."""
    latest = run_dir.parent / "latest"
    if is_main_process() and (workspace.limit is None or not latest.exists()):
        try:
            link_atomically(latest, run_dir.name)
        except OSError as error:  # a folder of that name, or a file system that knows no links
            print(f"{latest}: not made ({error.strerror}); the run is in {run_dir}")
    print(f"Report: {run_dir / 'report.html'}")
    return run_dir


def evaluate_run(
    run_dir: Path,
    workspace: Workspace,
    plans: Mapping[str, TablePlan],
    resolved: Resolved,
    student: Student,
    *,
    watch: Watch,
) -> None:
    """Predict the test split, evaluate, write the report, and mark the run as evaluated."""
    from hoi_distill.pipeline.reports.run import write_run_report
    from hoi_distill.stages.data.sampling.splits import RARE_BELOW
    from hoi_distill.stages.evaluate.formats.parquet import read_detections
    from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det

    watch.phase("predicting the test pictures")
    predictions = student.predict(test_set(workspace, resolved), run_dir, run_dir.parent.parent / "shared", watch)
    watch.phase("evaluating the predictions")
    test, labels = workspace.dataset["test"], resolved.labels
    found = read_detections(predictions, test.image_id, workspace.vocabulary, object_optional=True)
    # Which classes are rare is said by the labelled pictures, so that every split and every draw means the same classes.
    rare = labels.before < RARE_BELOW
    evaluation = evaluate_hico_det(test, found, rare, training=labels.seen(), zero_shot=labels.split)
    write_json(run_dir / "evaluation.json", evaluation.as_json())
    for setting, means in (("default", evaluation.default), ("known object", evaluation.known_object)):
        row = "  ".join(f"{name} {value:.2f}" for name, value in means.items() if value is not None)
        print(f"mAP, {setting}: {row}")
    if evaluation.zero_shot is not None:
        print(zero_shot_line(evaluation.zero_shot))
    evaluate_by_own_protocol(workspace, predictions, run_dir)
    watch.phase("writing the report")
    write_run_report(
        workspace, resolved, plans, run_dir, trained_on=trained_on(resolved), detections=found, evaluation=evaluation
    )
    write_json(run_dir / "evaluated.json", {"fingerprint": resolved.evaluation})


def zero_shot_line(means: Mapping[str, Any]) -> str:
    """A line for people of an evaluation's ``zero_shot``."""
    row = "  ".join(f"{name} {value:.2f}" for name, value in means.items() if name != "split" and value is not None)
    return f"mAP, zero-shot {means['split']}: {row}"


def evaluate_by_own_protocol(workspace: Workspace, predictions: Path, run_dir: Path) -> None:
    """Evaluate by the dataset's own protocol too, where it has one: print the result and write ``official.json``."""
    dataset = workspace.config.dataset
    if not isinstance(dataset, VCocoDataset | SwigHoiDataset):
        return
    from hoi_distill.stages.evaluate.protocols.evaluate_files import evaluate_files
    from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest

    result = evaluate_files(EvaluationRequest(dataset=dataset.kind, annotations=dataset.root, detections=predictions))
    write_json(run_dir / "official.json", result.record)
    print(result.table())
