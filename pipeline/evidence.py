"""The page of evidence: for each claim of a paper what was found in which world, from the records of finished trainings.

A file of claims says which arms of which matrix a claim is about. Every figure comes from records that are of these arms as the
matrix has them now; what has none is said to have no record. Nothing is trained.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hoi_distill.pipeline.config.documents import Section, hint, read_document, validate
from hoi_distill.pipeline.experiments import ArmTraining, Matrix, load_matrix
from hoi_distill.pipeline.reports.arms import group_title
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.evaluate.metrics.differences import Difference, difference
from hoi_distill.stages.evaluate.metrics.outcomes import Outcomes
from hoi_distill.stages.evaluate.pages.report import PAIR_SETS, SETS, ZERO_SHOT_SETS
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

GROUPS = {
    **{key: label.lower() for key, label in (*SETS, *ZERO_SHOT_SETS)},
    **{key: group_title(key) for key, _ in PAIR_SETS},
}
"""Titles of the sets of classes."""
Group = Literal[
    "full", "rare", "non_rare", "unseen", "seen", "pairs_0", "pairs_1_5", "pairs_6_20", "pairs_21"
]  # fmt: skip


FEWEST = 2
"""Trainings of each arm for a verdict: of one, nobody knows how far another would lie."""


class Measurement(Section):
    """Two arms of a matrix. ``arm`` less ``less`` is what a claim is about, over each of ``groups`` of classes."""

    world: str
    matrix: Path
    arm: str
    less: str
    groups: tuple[Group, ...] = Field(("full", "rare"), min_length=1)


class Claim(Section):
    """What a paper says.

    ``source`` is its place there, ``figure`` the published one. ``expects`` is what the first arm of each measurement should
    have. ``open`` is what only the paper's own dataset can tell.
    """

    text: str
    source: str
    figure: str = ""
    expects: Literal["more", "less"] = "more"
    measured: tuple[Measurement, ...] = ()
    open: str = ""


class Paper(Section):
    """A paper and its claims."""

    name: str
    about: str = ""
    claims: tuple[Claim, ...] = Field(min_length=1)


class Evidence(Section):
    """A file of claims. ``table`` is the Markdown file that is written."""

    name: str
    about: str = ""
    table: Path
    papers: tuple[Paper, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Finding:
    """What the records say of one measurement over a group of classes.

    Attributes:
        measurement: the two arms.
        groups: of classes: one, or all for which there is no difference.
        difference: None where an arm has no record, or the two have no such classes in common.
        trainings: of each arm.
    """

    measurement: Measurement
    groups: Sequence[str]
    difference: Difference | None
    trainings: tuple[int, int]

    def verdict(self, expects: str) -> str:
        """What it means for a claim."""
        if self.difference is None:
            return f"no record yet: `hoi-distill experiments {self.measurement.matrix}`"
        if min(self.trainings) < FEWEST:
            return "not judged: one training"
        if not self.difference.differs:
            return "not told apart"
        return "**as claimed**" if (self.difference.value > 0) == (expects == "more") else "**the contrary**"


def load_evidence(path: Path) -> Evidence:
    """Read and check a file of claims, down to the arms that it names.

    Raises:
        UserError: one line with the file, the key, what was given and what is allowed.
    """
    evidence: Evidence = validate(Evidence, read_document(path, "file of claims", "name, table, papers"), f"{path}: ")
    for place, paper in enumerate(evidence.papers):
        for number, claim in enumerate(paper.claims):
            for measurement in claim.measured:
                arms = load_matrix(measurement.matrix).arms
                for key in ("arm", "less"):
                    arm = getattr(measurement, key)
                    if arm not in arms:
                        where = f"{path}: papers.{place}.claims.{number}.measured.{key}"
                        raise UserError(f"{where}: {measurement.matrix} has no arm {arm!r}; {hint(arm, arms)}")
    return evidence


def write_evidence(path: Path) -> Path:
    """Write the page of a file of claims.

    Args:
        path: the file of claims.

    Returns:
        The Markdown file.

    Raises:
        UserError: a mistake in the file, or a record that is damaged.
    """
    evidence = load_evidence(path)
    refuse_unwritable(f"{path}: table:", evidence.table)
    outcomes = cache(_outcomes)
    lines = [f"<!-- written by: hoi-distill evidence {path} -->", f"# {evidence.name}", "", evidence.about.strip(), ""]
    for paper in evidence.papers:
        lines += [f"## {paper.name}", "", *([paper.about.strip(), ""] if paper.about else [])]
        lines += ["| claim | published | world | compared | classes | found (95 % interval) | |", "|---" * 7 + "|"]
        for claim in paper.claims:
            lines += _rows(claim, list(_findings(claim, outcomes)))
        lines.append("")
        left = [claim for claim in paper.claims if claim.open]
        lines += ["What only HICO-DET can tell:", ""] if left else []
        lines += [f"* {claim.text.rstrip('.')}: {claim.open.strip()}" for claim in left] + ([""] if left else [])
    with writing(f"table: {evidence.table}"):
        write_atomically(evidence.table, "\n".join(lines))
    return evidence.table


def _rows(claim: Claim, findings: Sequence[Finding]) -> Iterator[str]:
    published = f"{claim.source}{': ' + claim.figure if claim.figure else ''}"
    if not findings:
        yield f"| {claim.text} | {published} | – | – | – | – | no matrix |"
    said: tuple[str, ...] = ("", "", "", "")
    for finding in findings:
        told, of = finding.measurement, finding.trainings
        trainings = (
            f"{of[0]} training{'s' if of[0] != 1 else ''}" if of[0] == of[1] else f"{of[0]} and {of[1]} trainings"
        )
        place = (claim.text, published, told.world, f"*{told.arm}* less *{told.less}*; {trainings}")
        shown = place if place != said else ("", "", "", "")
        shown = ("", "", *shown[2:]) if said[0] else shown
        said = place
        verdict = finding.verdict(claim.expects)
        yield f"| {' | '.join(shown)} | {', '.join(GROUPS[key] for key in finding.groups)} | {_figure(finding)} | {verdict} |"


def _figure(finding: Finding) -> str:
    found = finding.difference
    return "–" if found is None else f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def _findings(claim: Claim, outcomes: Any) -> Iterator[Finding]:
    for measurement in claim.measured:
        ours, theirs = (outcomes(measurement.matrix, arm) for arm in (measurement.arm, measurement.less))
        found = {group: difference(ours, theirs, group) for group in measurement.groups}
        for group, one in found.items():
            if one is not None:
                yield Finding(measurement, [group], one, one.trainings)
        if lacking := [group for group, one in found.items() if one is None]:
            yield Finding(measurement, lacking, None, (len(ours), len(theirs)))


def _outcomes(path: Path, arm: str) -> list[Outcomes]:
    """Of the trainings of an arm that have a record."""
    matrix = load_matrix(path)
    return [found for seed in matrix.seeds if (found := _recorded(matrix, arm, seed)) is not None]


def _recorded(matrix: Matrix, arm: str, seed: int) -> Outcomes | None:
    if matrix.records is None or not any(matrix.records.glob("*.json")):
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        run = ArmTraining(matrix, arm, seed, prepare(matrix.setup, matrix.overrides_of(arm, seed))).recorded()
    return None if run is None else run.outcomes
