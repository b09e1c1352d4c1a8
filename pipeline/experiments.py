"""A matrix of students: arms against seeds, trained from one cache, and the table of all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from hoi_distill.pipeline.config.documents import Section, read_document, validate
from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
from hoi_distill.pipeline.filling.garbage import register
from hoi_distill.pipeline.filling.run import fill_cache
from hoi_distill.pipeline.graph.builder import refuse_unknown_keys
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.evaluate.pages.report import ZERO_SHOT_SETS, Arm, ExperimentsPage, Run, write_experiments_page
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing


class Changes(Section):
    """Keys that stand in the place of the setup's.

    A section among the keys of the student or a pair teacher (``itm: {family: F3}``) changes the setup's section: keys that
    it does not name stay. A table is replaced as a whole.
    """

    student: dict[str, Any] = Field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pair_teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def overrides(self) -> list[str]:
        """What ``--set`` would be given."""
        student = leaves("student", self.student)
        tables = [(f"tables.{name}", keys) for name, keys in self.tables.items()]
        teachers = leaves("pair_teachers", self.pair_teachers)
        return [f"{key}={json.dumps(value)}" for key, value in [*tables, *teachers, *student]]


class ArmSection(Changes):
    """One line of the table: what it shows, and what makes it."""

    text: str


def leaves(prefix: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}, "c": 2}`` as ("prefix.a.b", 1), ("prefix.c", 2)."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


class Matrix(Changes):
    """A file of experiments. Its own changes hold in every arm. ``table`` is the Markdown file for the figures."""

    name: str = Field(pattern=r"^[^./][^/]*$")
    setup: Path
    about: str = ""
    conclusion: str = ""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    own_teachers: bool = False
    """Each seed trains its own pair teachers, with that seed; without it all seeds share those of the configuration."""
    arms: dict[str, ArmSection] = Field(min_length=1)
    table: Path | None = None

    def overrides_of(self, arm: str, seed: int) -> list[str]:
        """What ``--set`` would be given for one run. The last value of a key counts."""
        changes = [*self.overrides(), *self.arms[arm].overrides()]
        teachers = load_config(self.setup, changes).pair_teachers if self.own_teachers else ()
        return [*changes, *(f"pair_teachers.{name}.seed={seed}" for name in teachers), f"student.seed={seed}"]


def load_matrix(path: Path) -> Matrix:
    """Read and check a matrix.

    Raises:
        UserError: one line with the file, the key, what was given and what is allowed.
    """
    document = read_document(path, "matrix", "name, setup, arms")
    if "dataset" in document and "arms" not in document:
        raise UserError(f"{path}: a configuration, not a matrix of experiments; run: hoi-distill train {path}")
    matrix: Matrix = validate(Matrix, document, f"{path}: ")
    return matrix


def check_arms(matrix: Matrix) -> None:
    """Check the sections and tables of every arm, so that a wrong key is found before the first arm trains.

    Raises:
        UserError: an unknown or wrong key of a student or pair teacher, or an unknown stage or key of a table.
    """
    for arm in matrix.arms:
        config = load_config(matrix.setup, matrix.overrides_of(arm, matrix.seeds[0]))
        sections = {f"pair_teachers.{name}": section for name, section in config.pair_teachers.items()}
        for name, section in {**sections, "student": config.student or {"labelled": None}}.items():
            read_section(section, f"{matrix.setup}: {name}.")
        for name, table in config.tables.items():
            refuse_unknown_keys(table.stage, table.parameters(), f"{matrix.setup}: tables.{name}")


def run_matrix(path: Path) -> None:
    """Train what is not trained yet, seed by seed, and write the page after every run. A killed matrix goes on.

    Cells that an arm wants and the cache lacks are computed before its first training. From then on its tables are no
    garbage.

    Args:
        path: the matrix.

    Raises:
        UserError: a mistake in the matrix or an arm, or cells of an arm stay empty.
        KeyboardInterrupt: the matrix was interrupted. What was trained is kept.
    """
    matrix = load_matrix(path)
    if matrix.table is not None:
        refuse_unwritable(f"{path}: table:", matrix.table)
    check_arms(matrix)
    runs: dict[str, list[Run]] = {arm: [] for arm in matrix.arms}
    for seed in matrix.seeds:
        for arm in matrix.arms:
            print(f"== {arm}, seed {seed}")
            workspace = prepare(matrix.setup, matrix.overrides_of(arm, seed))
            if seed == matrix.seeds[0] or matrix.own_teachers:
                fill_cache(workspace)
                register(workspace, plan_all(workspace))
            with stop_on_interrupt() as stop:
                folder = train_student(workspace, stop)
                if stop.is_set():
                    raise KeyboardInterrupt
            runs[arm].append(finished(folder, seed))
            page = workspace.config.runs / matrix.name / "experiments.html"
            write_tables(matrix, runs, page)
    print(f"Table: {page}" + (f" and {matrix.table}" if matrix.table else ""))


def finished(folder: Path, seed: int) -> Run:
    """The metrics of a trained and evaluated run."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    done = json.loads((folder / "done.json").read_text())
    zero_shot = {key: evaluation["zero_shot"][key] for key, _ in ZERO_SHOT_SETS if "zero_shot" in evaluation}
    return Run(seed, evaluation["default"], evaluation["known_object"], done["cpu_seconds"], zero_shot)


def write_tables(matrix: Matrix, runs: dict[str, list[Run]], page: Path) -> None:
    """Write the HTML page, and the same figures in Markdown once every arm has every seed."""
    arms = [Arm(name, matrix.arms[name].text, done) for name, done in runs.items() if done]
    write_experiments_page(page, ExperimentsPage(matrix.name, matrix.about, arms, matrix.conclusion))
    if matrix.table is not None and all(len(done) == len(matrix.seeds) for done in runs.values()):
        with writing(f"table: {matrix.table}"):
            write_atomically(matrix.table, markdown(matrix, runs))


def markdown(matrix: Matrix, runs: dict[str, list[Run]]) -> str:
    """A table of mean ± sample standard deviation over the seeds, default setting, in percent."""
    unseen = [key for key, _ in ZERO_SHOT_SETS if any(run.zero_shot for done in runs.values() for run in done)]
    heads = ["arm", "full", "rare", "non-rare", *unseen, "known object, full", "CPU s"]
    lines = [
        f"<!-- written by: hoi-distill experiments; seeds {', '.join(map(str, matrix.seeds))} -->",
        f"# {matrix.name}",
        "",
        matrix.about.strip(),
        "",
        f"mAP in percent, HICO-DET's default setting, mean ± sample standard deviation over {len(matrix.seeds)} seeds; "
        "in brackets the seeds' extremes; CPU-seconds of training, mean.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name, done in runs.items():
        cells = [spread([run.default[key] for run in done]) for key in ("full", "rare", "non_rare")]
        cells += [spread([run.zero_shot.get(key) for run in done]) for key in unseen]
        known = spread([run.known_object["full"] for run in done])
        cpu = statistics.mean(run.seconds or 0.0 for run in done)
        lines.append(f"| {name} | {' | '.join(cells)} | {known} | {cpu:.0f} |")
    lines += ["", *(f"* **{name}**: {section.text.strip()}" for name, section in matrix.arms.items()), ""]
    if matrix.conclusion:
        lines += [matrix.conclusion.strip(), ""]
    return "\n".join(lines)


def spread(values: Sequence[float | None]) -> str:
    """``79.8 ± 0.4 (79.4–80.2)``."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = statistics.mean(known)
    if len(known) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(known):.1f} ({min(known):.1f}–{max(known):.1f})"
