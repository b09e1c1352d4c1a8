"""The report of a run: its metrics, and the teacher's answers about the images that it shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.records import SWAP_RECORD
from hoi_distill.pipeline.reports.beside import runs_beside
from hoi_distill.pipeline.reports.label_quality import label_report, labelled_metrics
from hoi_distill.pipeline.training.request import Resolved
from hoi_distill.pipeline.viewer.query import Query
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.bootstrap import Intervals
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import HicoDetEvaluation
from hoi_distill.stages.evaluate.pages.behind import ImagesPage, images_behind, write_images_page
from hoi_distill.stages.evaluate.pages.evaluation_page import measure_errors, write_evaluation
from hoi_distill.stages.evaluate.pages.gallery import EvaluatedSplit, Match, choose_images, gallery_items
from hoi_distill.stages.evaluate.pages.report import LabelCheck, ReportData, write_report
from hoi_distill.stages.evaluate.protocols.hico_det import result_of
from hoi_distill.stages.evaluate.protocols.types import EvaluationResult
from hoi_distill.stages.student.student import VALIDATION_RECORD
from hoi_distill.stages.teacher.training_data import training_data
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef

BEST_PROMPTS = 5
IMAGES, EVALUATION = "images.html", "evaluation"
"""Beside a report: the page of the images behind its figures, and the folder of the evaluation's own page."""
LINKS = (
    ("Errors, curves and confusions", f"{EVALUATION}/evaluation.html"),
    ("Images behind each figure", IMAGES),
    ("Figures of each class (CSV)", f"{EVALUATION}/per_class.csv"),
    ("What was printed", "log.txt"),
)
"""Of a report, from its folder: what it is, and where."""
CHECKED = 500
"""Training images whose image-level labels are compared with annotations."""


def write_run_report(
    workspace: Workspace,
    resolved: Resolved,
    plans: Mapping[str, TablePlan],
    run_dir: Path,
    *,
    trained_on: str,
    detections: HoiDetections,
    evaluation: HicoDetEvaluation,
) -> None:
    """Write ``report.html`` beside ``student.json``, ``metrics.jsonl`` and ``evaluation.json`` of a run.

    Args:
        workspace: the dataset and the configuration.
        resolved: the training.
        plans: of all tables.
        run_dir: the run's folder.
        trained_on: which images and labels the student learned from, a noun phrase.
        detections: of the test split.
        evaluation: of these detections.
    """
    test = workspace.dataset["test"]
    rows = workspace.images.splits["test"]
    split = EvaluatedSplit(test, detections, evaluation.matched)
    chosen = choose_images(split, resolved.tested)
    shown = np.array([pick.image for pick in chosen])
    roles = resolved.data.tables
    captions = captions_of(plans.get(roles.captions or ""), rows[shown])
    matches = matches_of(plans.get(roles.itm), rows[shown], workspace.mending_command())
    matches = ticked(matches, test.take(shown).image_truth(), workspace.vocabulary.prompts())
    gallery = gallery_items(
        split,
        chosen,
        lambda image: test.path[image],
        captions=dict(zip(shown.tolist(), captions, strict=True)),
        matches=dict(zip(shown.tolist(), matches, strict=True)),
    )
    done = json.loads((run_dir / "done.json").read_text())
    data = ReportData.from_run(
        run_dir,
        name=workspace.config.name,
        trained_on=f"Trained on {trained_on}.",
        facts=(
            ("Run", resolved.fingerprint[:12]),
            ("Seed", str(resolved.config.seed)),
            *resolved.method.facts(resolved.config),
            *validation_facts(run_dir / VALIDATION_RECORD),
            *swap_facts(run_dir / SWAP_RECORD),
            ("Training", f"{done['wall_seconds']:.0f} s wall, {done['cpu_seconds']:.0f} s CPU"),
            ("Test images", f"{len(test.path):,}"),
        ),
        skipped=resolved.left_out,
        gallery=gallery,
        labels=label_check(workspace, plans, roles.labels) if "labels" in resolved.train else None,
    )
    intervals = write_figures(run_dir, workspace, result_of(test, detections, evaluation))
    said = replace(
        data,
        rare_below=resolved.data.rare_below,
        commands=next_commands(workspace.path, run_dir),
        tables=[replace(table, learned_from=learned_from(plans.get(table.name))) for table in data.tables],
        intervals=intervals,
        beside=runs_beside(run_dir, test, evaluation),
        images=IMAGES,
        links=[(what, address) for what, address in LINKS if (run_dir / address).exists()],
        teachers=teachers_of({name: plans[name] for name in (roles.captions or "", roles.itm) if name in plans}),
    )
    write_report(run_dir / "report.html", said)


def write_figures(run_dir: Path, workspace: Workspace, result: EvaluationResult) -> Intervals:
    """Write the evaluation's page and that of the images behind its figures, and return the intervals of its means.

    Args:
        run_dir: the run's folder.
        workspace: says how the configuration is called.
        result: of the test split.
    """
    run = f"{run_dir.parent.name}/{run_dir.name}"
    errors = measure_errors(result)
    confused = [] if errors is None else [(row.annotated, row.said) for row in (*errors.verbs, *errors.objects)]
    assert result.annotations is not None
    page = ImagesPage(
        name=f"{workspace.config.name}, run {run_dir.name}",
        about=f"What the student of {run} did on the test images, figure by figure.",
        sections=images_behind(result, confused),
        images=result.annotations,
        address=lambda parts: "/" + Query(**{**parts, "run": run}).address(),
    )
    write_images_page(run_dir / IMAGES, page)
    _, intervals = write_evaluation(result, run_dir / EVALUATION, page.name, images=f"../{IMAGES}", errors=errors)
    return intervals


def learned_from(table_plan: TablePlan | None) -> str:
    """What the teacher of a table was trained on; "" where there is none, or the configuration has no such table."""
    return "" if table_plan is None else training_data(table_plan.node.stage)


def teachers_of(plans: Mapping[str, TablePlan]) -> list[tuple[str, str]]:
    """(tables, what their teacher was trained on) of tables that a page quotes, those of one teacher together."""
    named: dict[str, list[str]] = {}
    for name, table_plan in plans.items():
        if data := learned_from(table_plan):
            named.setdefault(data, []).append(name)
    return [(" and ".join(names), data) for data, names in named.items()]


def validation_facts(path: Path) -> tuple[tuple[str, str], ...]:
    """Which student was kept, if held-out images chose it."""
    if not path.exists():
        return ()
    said = json.loads(path.read_text())
    return (
        ("Kept", f"the student of step {said['kept_step']:,}, the best on {said['images']:,} held-out images"),
        ("mAP there", f"{said['map']:.1f} %"),
        ("Ended after", f"step {said['last_step']:,}"),
    )


def swap_facts(path: Path) -> tuple[tuple[str, str], ...]:
    """How often the acting pair of a twin scores higher, if the test images have twins."""
    if not path.exists():
        return ()
    said = json.loads(path.read_text())
    if said["swap_accuracy"] is None:
        return ()
    return (("Swap accuracy", f"{said['swap_accuracy']:.1f} % of {said['compared']:,} questions"),)


def next_commands(config: Path, run_dir: Path) -> list[tuple[str, str]]:
    """What a reader of a report may want next, and what to type for it.

    Args:
        config: the configuration's file.
        run_dir: the run's folder.
    """
    board = run_dir / "tensorboard"
    setup, checkpoint, curves = (shlex.quote(str(path)) for path in (config, run_dir / "checkpoint", board))
    commands = [
        ("All images behind a figure", f"hoi-distill view {setup}"),
        ("This student on other images", f"hoi-distill predict {checkpoint} IMAGE --out predicted"),
    ]
    return [*commands, ("The curves in TensorBoard", f"tensorboard --logdir {curves}")] if board.is_dir() else commands


def ticked(matches: Sequence[Sequence[Match]], gt: np.ndarray, prompts: Sequence[str]) -> list[Sequence[Match]]:
    """Mark the matches of annotated classes. A sentence of no class keeps ``annotated=None``.

    Args:
        matches: of N images.
        gt: ``bool [N, H]``: the interactions annotated in each.
        prompts: the sentence of each class.
    """
    marked: list[Sequence[Match]] = []
    for found, row in zip(matches, gt.tolist(), strict=True):
        true: dict[str, bool] = {}
        for prompt, there in zip(prompts, row, strict=True):
            true[prompt] = there or true.get(prompt, False)
        marked.append([replace(match, annotated=true.get(match.prompt)) for match in found])
    return marked


def label_check(workspace: Workspace, plans: Mapping[str, TablePlan], name: str) -> LabelCheck | None:
    """The report on a table of image-level labels, of :data:`CHECKED` random training images. None without annotations.

    It is made after the training, and reads all annotations.

    Args:
        workspace: the dataset.
        plans: of all tables.
        name: the table's.
    """
    if not len(workspace.dataset["train"].hoi):
        return None
    report = label_report(workspace, plans, name, CHECKED)
    found = labelled_metrics(report, "of the texts alone", "of texts and yes/no answers", ", without no_interaction")
    rows = [(label, metrics["precision"], metrics["recall"], metrics["map"]) for label, metrics in found]
    return LabelCheck(report["pictures"], rows, report["dropped"])


def captions_of(table_plan: TablePlan | None, rows: np.ndarray) -> list[list[tuple[str, str]]]:
    """The answers of each row: ``(question, answer)``, a yes/no answer with its score.

    Args:
        table_plan: a table of captions. None: there is none.
        rows: ``int64 [r]`` rows of the images. A row with an empty or failed cell gets no answers.
    """
    answers: list[list[tuple[str, str]]] = [[] for _ in rows]
    if table_plan is None:
        return answers
    chosen = np.flatnonzero(table_plan.readable(rows))
    values = table_plan.read(rows[chosen]) if len(chosen) else {}
    for question, cells in values.items():
        for position, cell in zip(chosen, cells.to_pylist(), strict=True):
            if cell is None:  # this question was not asked about this row
                continue
            score = "" if cell["score"] is None else f" ({cell['score']:.2f})"
            answers[position].append((question, f"{cell['text']}{score}"))
    return answers


def matches_of(table_plan: TablePlan | None, rows: np.ndarray, mending_command: str) -> list[Sequence[Match]]:
    """The :data:`BEST_PROMPTS` prompts that match each row best, with the softmax probability of a match.

    Args:
        table_plan: a table of matching scores. None: there is none.
        rows: ``int64 [r]`` rows of the images. A row with an empty or failed cell gets no matches.
        mending_command: what a user types to fill the cache, for messages.
    """
    matches: list[Sequence[Match]] = [[] for _ in rows]
    chosen = np.flatnonzero(table_plan.readable(rows)) if table_plan is not None else ()
    if table_plan is None or table_plan.table is None or not len(chosen):
        return matches
    cells = table_plan.cells_of(rows[chosen])
    ref = TableRef(str(table_plan.table.dir), table_plan.table.fingerprint, cells)
    spec = StreamSpec(cells.row_ids, {"itm": ref}, mending_command)
    for sample in SampleStream(spec).__getitems__(range(len(chosen))):
        logits = {prompt: pair for prompt, pair in sample["itm"].items() if pair is not None}
        odds = np.diff(np.array(list(logits.values()), np.float64).reshape(-1, 2))[:, 0]
        top, prompts = np.argsort(-odds, kind="stable")[:BEST_PROMPTS], list(logits)
        matches[chosen[sample["row"]]] = [Match(prompts[i], float(1 / (1 + np.exp(-odds[i])))) for i in top]
    return matches
