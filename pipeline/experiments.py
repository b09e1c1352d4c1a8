"""A matrix of students: arms against seeds, trained from one cache, and the table of all."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hoi_distill.pipeline.config.documents import Section, hint, read_document, validate
from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
from hoi_distill.pipeline.filling.garbage import register
from hoi_distill.pipeline.filling.run import fill_cache
from hoi_distill.pipeline.graph.builder import refuse_unknown_keys
from hoi_distill.pipeline.planning.matrix_costs import matrix_costs
from hoi_distill.pipeline.records import Place, file_name, read_recorded, record_of, run_of, write_record
from hoi_distill.pipeline.reports.arms import MarkdownPage, markdown
from hoi_distill.pipeline.train import finished_run, train_student
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.declaration import declaration
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.evaluate.pages.published import Published
from hoi_distill.stages.evaluate.pages.report import Arm, ExperimentsPage, Run, write_experiments_page
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

Percent = Annotated[float | None, Field(ge=0, le=100)]


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


class PublishedFigures(Section):
    """What a paper reports of an arm, in percent; keys of :data:`~hoi_distill.stages.evaluate.pages.published.FIGURES`."""

    source: str = Field(min_length=1)
    full: Percent = None
    rare: Percent = None
    non_rare: Percent = None
    unseen: Percent = None
    seen: Percent = None
    known_object_full: Percent = None
    known_object_rare: Percent = None
    known_object_non_rare: Percent = None
    scenario_1: Percent = None
    scenario_2: Percent = None
    role_ap: Percent = None

    def told(self) -> Published:
        """The figures that are there."""
        figures = self.model_dump(exclude={"source"}, exclude_none=True)
        return Published(self.source, figures)


class ArmSection(Changes):
    """One line of the table: what it shows, and what makes it.

    ``against`` is the arm that it is compared with. ``published`` is what a paper reports of it.
    """

    text: str
    against: str | None = None
    published: PublishedFigures | None = None


def leaves(prefix: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}, "c": 2}`` as ("prefix.a.b", 1), ("prefix.c", 2)."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", value


class Matrix(Changes):
    """A file of experiments. Its own changes hold in every arm.

    ``table`` is the Markdown file for the figures. ``records`` is a folder for small records of finished trainings: what it
    has is not trained again. ``baseline`` is the arm that each other arm is compared with, unless the arm says ``against``.
    """

    name: str = Field(pattern=r"^[^./][^/]*$")
    setup: Path
    about: str = ""
    conclusion: str = ""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    own_teachers: bool = False
    """Each seed trains its own pair teachers, with that seed; without it all seeds share those of the configuration."""
    arms: dict[str, ArmSection] = Field(min_length=1)
    table: Path | None = None
    records: Path | None = None
    baseline: str | None = None

    def against(self, arm: str) -> str | None:
        """The arm that an arm is compared with; None where it is with none."""
        other = self.arms[arm].against or self.baseline
        return None if other == arm else other

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
    named = {"baseline": matrix.baseline, **{f"arms.{arm}.against": matrix.arms[arm].against for arm in matrix.arms}}
    for key, other in named.items():
        if other is not None and other not in matrix.arms:
            raise UserError(f"{path}: {key}: there is no arm {other!r}; {hint(other, matrix.arms)}")
    files: dict[str, str] = {}
    for arm in matrix.arms if matrix.records is not None else ():
        if files.setdefault(file_name(arm), arm) != arm:
            raise UserError(
                f"{path}: arms.{arm}: its record has the name of that of {files[file_name(arm)]!r}; rename it"
            )
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


def print_costs(path: Path) -> None:
    """Print what a matrix needs before it begins, without its images and its checkpoints. Computes nothing.

    Raises:
        UserError: a mistake in the matrix or an arm.
    """
    matrix = load_matrix(path)
    check_arms(matrix)
    configs = {
        f"{arm}, seed {seed}": load_config(matrix.setup, matrix.overrides_of(arm, seed))
        for seed in matrix.seeds
        for arm in matrix.arms
    }
    for line in matrix_costs(configs).lines():
        print(line)


def run_matrix(path: Path, *, train: bool = True) -> None:
    """Train what is not trained or recorded yet, seed by seed, and write the page after every run. A killed matrix goes on.

    Cells that an arm wants and the cache lacks are computed before its first training. From then on its tables are no
    garbage. A training whose record is in the matrix's ``records`` needs neither cache nor training.

    Args:
        path: the matrix.
        train: whether to train. Otherwise the page shows what there is.

    Raises:
        UserError: a mistake in the matrix or an arm, or cells of an arm stay empty.
        KeyboardInterrupt: the matrix was interrupted. What was trained is kept.
    """
    matrix = load_matrix(path)
    if matrix.table is not None:
        refuse_unwritable(f"{path}: table:", matrix.table)
    if matrix.records is not None:
        refuse_unwritable(f"{path}: records:", matrix.records, folder=True)
    check_arms(matrix)
    runs: dict[str, list[Run]] = {arm: [] for arm in matrix.arms}
    page = load_config(matrix.setup, matrix.overrides()).runs / matrix.name / "experiments.html"
    filled: set[tuple[str, ...]] = set()
    for seed in matrix.seeds:
        for arm in matrix.arms:
            print(f"== {arm}, seed {seed}")
            workspace = prepare(matrix.setup, matrix.overrides_of(arm, seed))
            training = ArmTraining(matrix, arm, seed, workspace)
            run = training.recorded()
            if run is None and train:
                tables = (arm, *(each for each in workspace.overrides if not each.startswith("student.")))
                if tables not in filled:
                    fill_cache(workspace)
                    register(workspace, plan_all(workspace))
                    filled.add(tables)
                run = training.trained()
            elif run is None:
                run = training.found()
            if run is not None:
                runs[arm].append(run)
                write_tables(matrix, runs, page)
    if not any(runs.values()):
        raise UserError(f"{path}: nothing of it is trained or recorded yet; run: hoi-distill experiments {path}")
    complete = all(len(done) == len(matrix.seeds) for done in runs.values())
    print(f"Table: {page}" + (f" and {matrix.table}" if matrix.table and complete else ""))


@dataclass(frozen=True)
class ArmTraining:
    """One training of a matrix: where its figures come from.

    Attributes:
        matrix: the matrix.
        arm: the arm's name.
        seed: the training's.
        workspace: of the arm and the seed.
    """

    matrix: Matrix
    arm: str
    seed: int
    workspace: Workspace

    @functools.cached_property
    def place(self) -> Place | None:
        """Where its record is, or will be; None where the matrix keeps none."""
        if self.matrix.records is None:
            return None
        return Place(self.matrix.records, self.matrix.name, self.arm, self.seed, declaration(self.workspace))

    def recorded(self) -> Run | None:
        """Its figures from its record, if it has one that is of this training."""
        run = None if self.place is None else read_recorded(self.place)
        if run is not None:
            print(f"Taken from its record, {run.origin}. Remove the file to train it here.")
        return run

    def trained(self) -> Run:
        """Its figures, after it has been trained and evaluated. Its record is written.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        with stop_on_interrupt() as stop:
            folder = train_student(self.workspace, stop)
            if stop.is_set():
                raise KeyboardInterrupt
        return self._finished(folder)

    def found(self) -> Run | None:
        """Its figures, if a run has been trained and evaluated here. Its record is written."""
        folder = finished_run(self.workspace)
        if folder is None:
            print("Not trained yet.")
        return None if folder is None else self._finished(folder)

    def _finished(self, folder: Path) -> Run:
        place = self.place or Place(folder, self.matrix.name, self.arm, self.seed, "")
        record = record_of(folder, place, self.workspace.dataset["test"])
        if self.place is not None:
            write_record(self.place, record)
        return replace(run_of(record, str(place.path)), origin="")


def write_tables(matrix: Matrix, runs: Mapping[str, Sequence[Run]], page: Path) -> None:
    """Write the HTML page, and the same figures in Markdown once every arm has every seed."""
    arms = [
        Arm(name, arm.text, done, matrix.against(name), None if arm.published is None else arm.published.told())
        for name, done in runs.items()
        if done and (arm := matrix.arms[name])
    ]
    write_experiments_page(page, ExperimentsPage(matrix.name, matrix.about, arms, matrix.conclusion))
    if matrix.table is not None and all(len(done) == len(matrix.seeds) for done in runs.values()):
        text = markdown(MarkdownPage(matrix.name, matrix.about, matrix.conclusion, matrix.seeds), arms)
        with writing(f"table: {matrix.table}"):
            write_atomically(matrix.table, text)
