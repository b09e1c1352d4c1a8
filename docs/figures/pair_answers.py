"""Draw ``pair_answers_gain.png``: ``.venv/bin/python docs/figures/pair_answers.py``.

What a student gains from answers about pairs, as a function of how well the answers tell which pair it is. The gains are read
from the records of ``configs/experiments_pair_answers.yaml``, and the localisation AUC is computed of the tables in the cache. It
prints both.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from hoi_distill.pipeline.experiments import ArmTraining, Matrix, load_matrix
from hoi_distill.pipeline.reports.pair_quality import annotated_records, pair_report, read_pair_answers
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import prepare

MATRIX = Path("configs/experiments_pair_answers.yaml")
OUT = Path(__file__).with_name("pair_answers_gain.png")
BASELINE = "labels only"
SIMULATED = {
    "bound, oracle pair answers, weight 3": "true",
    "bound, a quarter elsewhere, weight 3": "a quarter elsewhere",
    "bound, half elsewhere, weight 3": "half elsewhere",
    "bound, all elsewhere, weight 3": "all elsewhere",
}
"""Arms whose answers are annotations, by what is said beside their point."""
TEACHERS = {
    "teacher with marks, weight 3": "teacher with marks",
    "control, captioner without marks, weight 3": "captioner without marks",
}
Point = tuple[float, float, str]
"""Localisation AUC, gain in points of mAP, and what is said of it."""


def full(matrix: Matrix, arm: str) -> float | None:
    """The mAP of an arm's recorded trainings in percent, mean over seeds; None without one."""
    runs = (
        ArmTraining(matrix, arm, seed, prepare(matrix.setup, matrix.overrides_of(arm, seed))).recorded()
        for seed in matrix.seeds
    )
    found = [run.default["full"] for run in runs if run is not None]
    return float(np.mean(found)) if found else None


def localisation(matrix: Matrix, arm: str) -> float | None:
    """The localisation AUC of the answers that an arm learns from."""
    workspace = prepare(matrix.setup, matrix.overrides_of(arm, matrix.seeds[0]))
    plans = plan_all(workspace)
    records = annotated_records(workspace, plans["pair_answers"], None)
    answers = read_pair_answers(workspace, plans, "pair_answers", records)
    return pair_report(answers, len(records), plans["pair_answers"].node.stage.columns)["localisation"]


def points(matrix: Matrix, arms: dict[str, str]) -> list[Point]:
    """The points of the arms that are recorded, by rising localisation AUC."""
    found, baseline = [], full(matrix, BASELINE)
    for arm, label in arms.items():
        mean = full(matrix, arm)
        if mean is not None and baseline is not None and (told := localisation(matrix, arm)) is not None:
            found.append((told, mean - baseline, label))
            print(f"{label}: localisation AUC {told:.3f}, {mean:.1f} mAP, {mean - baseline:+.1f}")
    return sorted(found)


def draw(simulated: list[Point], teachers: list[Point]) -> None:
    """Write the figure."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, style, found in (("annotations, spoilt", "o-", simulated), ("teachers", "s", teachers)):
        axes.plot([x for x, _, _ in found], [y for _, y, _ in found], style, label=name)
        for x, y, label in found:
            axes.annotate(label, (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.margins(0.12)
    axes.set_xlabel("localisation AUC of the answers")
    axes.set_ylabel("points of mAP over labels only")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(OUT, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    experiments = load_matrix(MATRIX)
    draw(points(experiments, SIMULATED), points(experiments, TEACHERS))
