"""The Markdown page of a matrix of experiments: its table, the differences, the arms."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hoi_distill.stages.evaluate.metrics.differences import Difference
from hoi_distill.stages.evaluate.metrics.outcomes import RESAMPLES
from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUP_LABELS
from hoi_distill.stages.evaluate.pages.published import Cell, beside_papers
from hoi_distill.stages.evaluate.pages.report import ZERO_SHOT_SETS, Arm, Run, differences_of


@dataclass(frozen=True)
class MarkdownPage:
    """The texts of the page.

    Attributes:
        name: of the matrix.
        about: what the experiments are.
        conclusion: what they show.
        seeds: of the trainings.
    """

    name: str
    about: str
    conclusion: str
    seeds: Sequence[int]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        head: its title.
        value: the figure of one run; None where it has none.
        note: what is added to the figures of an arm's runs.
    """

    head: str
    value: Callable[[Run], float | None]
    note: Callable[[Sequence[Run]], str] = lambda _runs: ""

    def cell(self, runs: Sequence[Run]) -> str:
        """Of an arm's runs."""
        figures = [self.value(run) for run in runs]
        return spread(figures) + (self.note(runs) if any(figure is not None for figure in figures) else "")


def markdown(page: MarkdownPage, arms: Sequence[Arm]) -> str:
    """A table of mean ± sample standard deviation over the seeds, default setting, in percent, and of the differences."""
    lines = [
        f"<!-- written by: hoi-distill experiments; seeds {', '.join(map(str, page.seeds))} -->",
        f"# {page.name}",
        "",
        page.about.strip(),
        "",
        *_figures(arms, len(page.seeds)),
        *_papers(arms),
        *_differences(arms),
        *(f"* **{arm.name}**: {arm.text.strip()}" for arm in arms),
        "",
    ]
    if page.conclusion:
        lines += [page.conclusion.strip(), ""]
    return "\n".join(lines)


def _figures(arms: Sequence[Arm], seeds: int) -> list[str]:
    runs = [run for arm in arms for run in arm.runs]
    unseen = [key for key, _ in ZERO_SHOT_SETS if any(run.zero_shot for run in runs)]
    columns = [
        *(Column(head, _default(key)) for head, key in (("full", "full"), ("rare", "rare"), ("non-rare", "non_rare"))),
        *(Column(key, _zero_shot(key)) for key in unseen),
        *_pair_columns(runs),
        Column("known object, full", lambda run: run.known_object["full"]),
    ]
    if any(run.swap_accuracy is not None for run in runs):
        columns.append(Column("swap accuracy", lambda run: run.swap_accuracy))
    said = " *Pairs* are the annotated training pairs of a class; in brackets, how many classes have so many."
    if any(len(_class_counts(name, runs)) > 1 for name in PAIR_GROUP_LABELS):
        said += " Where arms saw other annotations, that number stands beside the figure."
    lines = [
        f"mAP in percent, HICO-DET's default setting, mean ± sample standard deviation over {seeds} seeds; "
        f"in brackets the seeds' extremes; CPU-seconds of training, mean.{said if _pair_columns(runs) else ''}",
        "",
        _row(["arm", *(column.head for column in columns), "CPU s"]),
        "|---" * (len(columns) + 2) + "|",
    ]
    for arm in arms:
        cells = [column.cell(arm.runs) for column in columns]
        lines.append(_row([arm.name, *cells, f"{statistics.mean(run.seconds or 0.0 for run in arm.runs):.0f}"]))
    return [*lines, ""]


def _default(key: str) -> Callable[[Run], float | None]:
    return lambda run: run.default[key]


def _zero_shot(key: str) -> Callable[[Run], float | None]:
    return lambda run: run.zero_shot.get(key)


def _pair_columns(runs: Sequence[Run]) -> list[Column]:
    """A column for each group of classes. The head says how many classes it has; where arms saw other annotations, the cells."""
    columns = []
    for name in PAIR_GROUP_LABELS:
        counts = _class_counts(name, runs)
        if len(counts) == 1:
            columns.append(Column(f"{group_title(name)} ({counts[0]})", _grouped(name)))
        elif counts:
            columns.append(Column(group_title(name), _grouped(name), functools.partial(_count_note, name)))
    return columns


def _class_counts(name: str, runs: Sequence[Run]) -> list[int]:
    """How many classes a group of the runs has, each number once; runs without such a class left out."""
    return sorted({run.by_training_pairs[name]["classes"] for run in runs if name in run.by_training_pairs} - {0})


def _count_note(name: str, runs: Sequence[Run]) -> str:
    return f"; {' or '.join(map(str, _class_counts(name, runs)))} classes"


def group_title(name: str) -> str:
    """The title of a group of classes where nothing beside it says that it is about pairs."""
    label = PAIR_GROUP_LABELS[name]
    return {"more": "over 20 pairs"}.get(label, label if label.endswith("pairs") else f"{label} pairs")


def _grouped(name: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        group: Mapping[str, float | None] = run.by_training_pairs.get(name, {})
        return group["map"] if group.get("classes") else None

    return value


def _papers(arms: Sequence[Arm]) -> list[str]:
    """The table of ours beside published figures; [] where no arm has any."""
    found = beside_papers(arms)
    if not found.rows:
        return []
    return [
        "What a paper reports of an arm, and ours in its metric, in percent.",
        "",
        _row(["arm", *found.heads, "source"]),
        "|---" * (len(found.heads) + 2) + "|",
        *(_row([name, *map(_paper_cell, cells), source]) for name, cells, source in found.rows),
        "",
    ]


def _paper_cell(cell: Cell) -> str:
    return f"{cell:g}" if isinstance(cell, float) else spread(cell or ())


def _differences(arms: Sequence[Arm]) -> list[str]:
    """The table of differences; [] where no arm is compared."""
    sets, rows = differences_of(arms)
    if not sets:
        return []
    heads = [group_title(key) if key in PAIR_GROUP_LABELS else label.lower() for key, label in sets]
    return [
        "Differences in points of mAP, with their 95 % intervals. They say what other test images (a paired bootstrap, "
        f"{RESAMPLES:,} draws) and other seeds would change (evaluation.md). An arm *differs* if 0 lies outside. One in twenty "
        "comparisons of equal arms says so by chance.",
        "",
        _row(["arm", "less", *heads]),
        "|---" * (len(sets) + 2) + "|",
        *(_row([arm.name, str(arm.against), *map(_cell, cells)]) for arm, cells in rows),
        "",
    ]


def _cell(found: Difference | None) -> str:
    if found is None:
        return "–"
    verdict = "**differs**" if found.differs else "does not"
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f}) {verdict}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float | None]) -> str:
    """``79.8 ± 0.4 (79.4–80.2)``."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = statistics.mean(known)
    if len(known) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(known):.1f} ({min(known):.1f}–{max(known):.1f})"
