"""What a page shows of one image: its answers in the words of people, table by table, and its pairs to be drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hoi_distill.pipeline.viewer.entries import Entries
from hoi_distill.pipeline.viewer.runs import RunErrors
from hoi_distill.pipeline.viewer.tables import Answer, Scores, ViewedTable
from hoi_distill.stages.data.label_kinds import NEGATIVE, POSITIVE
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES
from hoi_distill.stages.evaluate.pages.images import Pair

EXTRA = 4
"""Predictions that are shown beside as many as an image has annotated pairs."""
BOXES = 20
"""Boxes of a detector that are drawn and listed; a line says how many there are."""
PROMPTS = 5
"""Best, and worst, prompts that are listed."""


@dataclass(frozen=True)
class Score:
    """A prompt's score. ``annotated`` says whether the image is annotated with its class; None for no class."""

    prompt: str
    value: float
    annotated: bool | None


@dataclass
class Section:
    """One table on an image's page.

    Attributes:
        table: the table.
        shape: how the template shows the values: ``boxes``, ``scores``, ``texts``, ``triplets``, ``labels``, ``map`` or
            ``other``.
        computed: when and by whom, one line for each record that the cells come from.
        lacks: (column, state, why) of the cells without a value.
        body: what ``shape`` needs.
    """

    table: ViewedTable
    shape: str
    computed: list[str]
    lacks: Sequence[tuple[str, str, str]]
    body: dict[str, Any] = field(default_factory=dict)


def sections(tables: Mapping[str, ViewedTable], entries: Entries, entry: int) -> list[Section]:
    """Every table that says something of an image, or should.

    Raises:
        StorageError: a shard cannot be read.
    """
    answered = ((table, table.answers(entry)) for table in tables.values())
    return [_section(table, answers, entries, entry) for table, answers in answered if answers]


def _section(table: ViewedTable, answers: Sequence[Answer], entries: Entries, entry: int) -> Section:
    lacks = [
        (answer.column, answer.state, answer.why) for answer in answers if answer.state not in ("filled", "unwanted")
    ]
    filled = [answer for answer in answers if answer.state == "filled"]
    shape, body = _body(table.kind, filled, entries, entry)
    return Section(table, shape, computed_lines(answers), lacks, body)


def computed_lines(answers: Sequence[Answer]) -> list[str]:
    """One line for each record that the cells come from: when, where, on what, how long; and for how many columns."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.origin is not None:
            groups.setdefault(answer.origin.record, []).append(answer)
    lines = []
    for group in groups.values():
        origin = group[0].origin
        assert origin is not None
        made = origin.provenance
        said = [time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(origin.created)), f"on {origin.host}"]
        said += [f"{key} {made[key]}" for key in ("device", "task", "checkpoint", "architecture") if made.get(key)]
        if "seconds" in made:
            said.append(f"{made['seconds']} s for the whole shard")
        columns = f"{len(group)} columns" if len(groups) > 1 else ""
        lines.append(", ".join(filter(None, [columns, *said])) + f" (record {origin.record})")
    return lines


def _body(kind: str, filled: Sequence[Answer], entries: Entries, entry: int) -> tuple[str, dict[str, Any]]:
    words = entries.vocabulary
    if not filled:
        return "other", {"texts": []}
    if kind == "detections":
        return "boxes", {"boxes": boxes_of(filled[0].value, words), "count": len(filled[0].value["boxes"])}
    if kind in ("itm", "itc"):
        return "scores", scores_of(kind, filled, entries, entry)
    if kind == "captions":
        return "texts", {"texts": [(each.column, each.value["text"], each.value.get("score")) for each in filled]}
    if kind == "triplets":
        return "triplets", {"columns": [(each.column, *triplets_of(each.value, words)) for each in filled]}
    if kind == "image_labels":
        return "labels", _labels(filled[0].value, words)
    if isinstance(filled[0].value, np.ndarray) and filled[0].value.ndim == 3:
        shape = " × ".join(map(str, filled[0].value.shape))
        return "map", {"columns": [each.column for each in filled], "shape": shape, "grid": filled[0].value.shape[1:]}
    return "other", {"texts": [(each.column, _told(each.value)) for each in filled]}


def boxes_of(cell: Mapping[str, Any], words: Vocabulary) -> list[dict[str, Any]]:
    """The :data:`BOXES` best boxes of a detections cell: ``box`` (xyxy pixels), ``score``, ``label`` (words)."""
    order = sorted(range(len(cell["boxes"])), key=lambda i: -cell["scores"][i])[:BOXES]
    return [
        {"box": cell["boxes"][i], "score": cell["scores"][i], "label": object_words(words, cell["labels"][i])}
        for i in order
    ]


def scores_of(kind: str, filled: Sequence[Answer], entries: Entries, entry: int) -> dict[str, Any]:
    """The best and worst prompts, and those about the objects of annotated pairs, the best first."""
    words = entries.vocabulary
    pairs = entries.pairs(entry)
    annotated = set(entries.hoi[pairs].tolist())
    truth = {words.prompt(hoi): hoi in annotated for hoi in range(len(words))}
    scores = [Score(each.column, _score(kind, each.value), truth.get(each.column)) for each in filled]
    scores.sort(key=lambda score: -score.value)
    groups = []
    for obj in sorted(set(entries.object[pairs].tolist()) - {-1}):
        prompts = {words.prompt(hoi) for hoi in np.flatnonzero(words.hois[:, 1] == obj).tolist()}
        groups.append((object_words(words, obj), [score for score in scores if score.prompt in prompts]))
    best, worst = scores[:PROMPTS], scores[max(PROMPTS, len(scores) - PROMPTS) :]
    return {"groups": groups, "best": best, "worst": worst, "count": len(scores), "probability": kind == "itm"}


def _score(kind: str, cell: Any) -> float:
    if kind != "itm":
        return float(cell)
    no, yes = map(float, cell)
    return float(1 / (1 + np.exp(no - yes)))


def triplets_of(
    cell: Mapping[str, Any], words: Vocabulary
) -> tuple[list[tuple[str, float, str]], list[tuple[str, str]]]:
    """Of a cell of triplets: (verb and object, weight, phrase) of what was read, (phrase, reason) of what was dropped."""
    read = [
        (f"{verb_words(words, verb)} {object_words(words, obj)}", weight, phrase)
        for verb, obj, weight, phrase in zip(cell["verb"], cell["object"], cell["weight"], cell["phrase"], strict=True)
    ]
    return read, [(drop["phrase"], drop["reason"]) for drop in cell["dropped"]]


def _labels(cell: Mapping[str, Any], words: Vocabulary) -> dict[str, Any]:
    """Labels that were made of the texts, by kind, and what was dropped."""
    rows = [
        (" ".join(words.hoi_name(hoi)).replace("_", " "), target, kind, weight)
        for hoi, target, kind, weight in zip(cell["hoi"], cell["target"], cell["kind"], cell["weight"], strict=True)
    ]
    rows.sort(key=lambda row: -row[1])
    named = {POSITIVE: "positive", NEGATIVE: "negative"}
    told = [(name, target, named.get(kind, "ignored"), weight) for name, target, kind, weight in rows]
    listed = [row for row in told if row[2] != "negative"]
    return {
        "rows": listed,
        "negatives": len(told) - len(listed),
        "dropped": [(drop["phrase"], drop["reason"]) for drop in cell["dropped"]],
    }


def _told(value: Any, most: int = 400) -> str:
    """A value of a kind that no template knows, as text."""
    if isinstance(value, np.ndarray):
        return f"array {list(value.shape)}, mean {float(np.nanmean(value)):.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_told(each, 80)}" for key, each in value.items())
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)} values, the first {_told(value[:4], 120)}"
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


# ---- pairs ----


@dataclass(frozen=True)
class ShownPair:
    """A pair to be drawn.

    Attributes:
        pair: what is drawn.
        word: the kind of a prediction, or why an annotated pair was missed; "" where there is nothing to say.
        row: of a prediction among the student's detections; -1 for an annotated pair.
    """

    pair: Pair
    word: str = ""
    row: int = -1


def annotated_pairs(entries: Entries, entry: int, errors: Sequence[RunErrors] = ()) -> list[ShownPair]:
    """The annotated pairs of an image; with students' detections also whether, or why not, each was found.

    Args:
        entries: the images.
        entry: one of them.
        errors: of one student, or of two, who are then called A and B.
    """
    annotations, words = entries.of(entry), entries.vocabulary
    shown = []
    for row in entries.pair_row[entries.pairs(entry)].tolist():
        misses = [int(each.miss[row]) for each in errors]
        told = ["found" if miss < 0 else f"missed: {list(MISSES)[miss]}" for miss in misses]
        if len(told) > 1:
            told = [f"{letter} {each}" for letter, each in zip("AB", told, strict=True)]
        pair = _pair(annotations, words, row, matched=all(miss < 0 for miss in misses) if misses else None)
        shown.append(ShownPair(pair, "; ".join(told)))
    return shown


def predicted_pairs(entries: Entries, entry: int, errors: RunErrors) -> list[ShownPair]:
    """A student's best detections on an image: as many as it has annotated pairs, :data:`EXTRA` more, and every decisive one."""
    rows = errors.of_entry(entry)
    first = rows[: len(entries.pairs(entry)) + EXTRA]
    rows = rows[np.isin(rows, first) | errors.decisive[rows]]
    found, words = errors.detections, entries.vocabulary
    shown = []
    for row in rows.tolist():
        kind = list(KINDS)[errors.kind[row]] if errors.kind[row] >= 0 else "not counted"
        score = float(found.score[row])
        shown.append(ShownPair(_pair(found, words, row, score=score, matched=bool(errors.found[row] >= 0)), kind, row))
    return shown


def _pair(pairs: Any, words: Vocabulary, row: int, *, score: float | None = None, matched: bool | None = None) -> Pair:
    return Pair(
        human_box=pairs.human_box[row].tolist(),
        object_box=pairs.object_box[row].tolist(),
        verb=verb_words(words, int(pairs.verb[row])),
        object=object_words(words, int(pairs.object[row])),
        score=score,
        matched=matched,
    )


def object_words(words: Vocabulary, index: int) -> str:
    """An object's name in words, "" for none."""
    return words.objects[index].replace("_", " ") if 0 <= index < len(words.objects) else ""


def verb_words(words: Vocabulary, index: int) -> str:
    """A verb's name in words."""
    return words.verbs[index].replace("_", " ")


# ---- classes ----


@dataclass(frozen=True)
class ClassRow:
    """One interaction: its pairs, and how the teacher's scores and a student agree with the annotations.

    Attributes:
        name: "verb object".
        rare: whether it has fewer annotated training pairs than HICO-DET's bound.
        train: annotated pairs of the training split.
        test: annotated pairs of the test split.
        annotated: the teacher's mean score of the images that are annotated with it; None without any.
        others: that of the other images.
        auc: the chance that the teacher scores an annotated image above another; None where there is none of either.
        ap: the student's average precision in percent.
        other_ap: that of another student.
    """

    name: str
    rare: bool
    train: int
    test: int
    annotated: float | None
    others: float | None
    auc: float | None
    ap: float | None
    other_ap: float | None


def teacher_by_class(scores: Scores, entries: Entries) -> list[tuple[float | None, float | None, float | None]]:
    """Mean score of the annotated and of the other images, and the area under the ROC curve, of each class."""
    values, words = scores.all(), entries.vocabulary
    places = {column: place for place, column in enumerate(scores.table.columns)}
    told: list[tuple[float | None, float | None, float | None]] = []
    for hoi in range(len(words)):
        place = places.get(words.prompt(hoi))
        if place is None:
            told.append((None, None, None))
            continue
        there = np.zeros(len(entries), bool)
        there[entries.pair_entry[entries.hoi == hoi]] = True
        told.append(_separated(values[place].astype(np.float32), there))
    return told


def _separated(values: np.ndarray, there: np.ndarray) -> tuple[float | None, float | None, float | None]:
    known = ~np.isnan(values)
    yes, no = values[known & there], values[known & ~there]
    means = [float(part.mean()) if len(part) else None for part in (yes, no)]
    if not len(yes) or not len(no):
        return means[0], means[1], None
    no = np.sort(no)
    below, upto = np.searchsorted(no, yes, "left"), np.searchsorted(no, yes, "right")
    return means[0], means[1], float((below + upto).mean() / 2 / len(no))
