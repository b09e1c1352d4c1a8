"""The viewer's pages as HTML: what a template needs, found in the library."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from hoi_distill.pipeline.viewer.drawing import draw_attention
from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.pipeline.viewer.looks import Looks
from hoi_distill.pipeline.viewer.maps import cell_side, likeness
from hoi_distill.pipeline.viewer.query import ERROR_KINDS, SORTS, Query
from hoi_distill.pipeline.viewer.runs import RunErrors, confusion_counts, kind_counts
from hoi_distill.pipeline.viewer.shown import (
    ClassRow,
    ShownPair,
    annotated_pairs,
    object_words,
    predicted_pairs,
    sections,
    teacher_by_class,
    verb_words,
)
from hoi_distill.pipeline.viewer.tables import STATES, ViewedTable
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES
from hoi_distill.stages.evaluate.pages.images import PALETTE, NumberedPair, draw_boxes, draw_pairs, numbered
from hoi_distill.stages.teacher.training_data import training_data
from hoi_distill.storage.errors import UserError

SHOWN = 48
"""Images of a grid's page."""
TEMPLATES = Path(__file__).parent / "templates"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Point:
    """What a feature map is compared with.

    Attributes:
        table: of the map.
        column: its column.
        x: pixels of the drawing where it was clicked.
        y: the same.
        prompt: the interaction that was chosen instead, as "verb object"; "" where a cell was clicked.
    """

    table: str
    column: str
    x: int = 0
    y: int = 0
    prompt: str = ""


@dataclass(frozen=True)
class PairOf:
    """A student's pair that was chosen: the run's name, and the row of the detection."""

    run: str
    row: int


class Pages:
    """Renders every page of a viewer. Pages are made one at a time."""

    def __init__(self, library: Library) -> None:
        """
        Args:
            library: what is looked at.
        """
        self.library, self.looks = library, Looks(library)
        self._environment = _environment()
        self._environment.globals.update(name=library.workspace.config.name, as_of=time.strftime("%Y-%m-%d %H:%M"))
        self._by_class: dict[str, list[tuple[float | None, float | None, float | None]]] = {}

    def _render(self, template: str, **given: Any) -> str:
        return self._environment.get_template(template).render(**given)

    def error(self, message: str) -> str:
        """A page that says what went wrong."""
        return self._render("error.html.j2", message=message)

    # ---- the grid ----

    def images(self, query: Query) -> str:
        """The grid of a query. Raises UserError: the query names something that there is not."""
        began = time.perf_counter()
        library = self.library
        with library.lock:
            found = library.find(query)
            errors = library.errors(query.run) if query.run else None
            last = max(1, -(-len(found.entries) // SHOWN))
            page = min(query.number, last)
            here = slice((page - 1) * SHOWN, page * SHOWN)
            values = [None] * SHOWN if found.value is None else found.value[here].tolist()
            cards = [
                self._card(entry, value, errors)
                for entry, value in zip(found.entries[here].tolist(), values, strict=False)
            ]
            given = {"query": query, "cards": cards, "count": len(found.entries), "total": len(library.entries)}
            given |= {"says": found.says, "page": page, "last": last, "choices": self._choices(query)}
            return self._render("images.html.j2", **given, milliseconds=round(1000 * (time.perf_counter() - began)))

    def _card(self, entry: int, value: float | None, errors: RunErrors | None) -> dict[str, Any]:
        entries = self.library.entries
        pairs = entries.pairs(entry)
        words = entries.vocabulary
        classes = [" ".join(words.hoi_name(hoi)).replace("_", " ") for hoi in entries.hoi[pairs].tolist() if hoi >= 0]
        card = {"address": entries.address(entry), "name": entries.names[entry].as_py(), "value": value}
        card |= {"split": entries.splits[entries.split[entry]], "classes": sorted(set(classes)), "faults": []}
        if errors is not None and card["split"] == "test":
            rows = errors.of_entry(entry)
            wrong = errors.kind[rows[errors.decisive[rows] & (errors.kind[rows] > 0)]]
            missed = errors.miss[(errors.pair_entry == entry) & (errors.miss >= 0)]
            faults = [(list(KINDS)[kind], int((wrong == kind).sum())) for kind in np.unique(wrong)]
            card["faults"] = faults + [
                (f"missed: {list(MISSES)[m]}", int((missed == m).sum())) for m in np.unique(missed)
            ]
        return card

    def _choices(self, query: Query) -> dict[str, Any]:
        """What the filters offer."""
        library = self.library
        return {
            "splits": library.entries.splits,
            "classes": sorted(library.classes),
            "verbs": sorted(library.verbs),
            "objects": sorted(
                {library.entries.vocabulary.objects[i].replace("_", " ") for i in library.entries.object_classes}
            ),
            "cells": self._lacking(query.cells),
            "runs": [(run.name, run.title) for run in library.runs.values()],
            "kinds": ERROR_KINDS,
            "scores": library.score_tables,
            "sorts": SORTS,
        }

    def _lacking(self, chosen: str) -> list[tuple[str, int]]:
        """("TABLE state", images) where there are any, and what is chosen."""
        told = []
        for name, table in self.library.tables.items():
            if table.plan is None:
                continue
            for state in STATES:
                count = int(table.lacks[state].sum())
                if count or f"{name} {state}" == chosen:
                    told.append((f"{name} {state}", count))
        return told

    # ---- one image ----

    def image(self, entry: int, query: Query, point: Point | None = None, pair: PairOf | None = None) -> str:
        """Everything about one image.

        Args:
            entry: the image.
            query: among whose images the next and the previous one are.
            point: what a feature map is compared with.
            pair: the pair whose attention is shown.

        Raises:
            UserError: the query names something that there is not.
            StorageError: a shard cannot be read.
        """
        library, entries = self.library, self.library.entries
        with library.lock:
            found = library.find(query).entries
            place = np.flatnonzero(found == entry)
            near: dict[str, Any] = {}
            if len(place):
                at = int(place[0])
                around = {"before": at - 1, "after": at + 1}
                near = {"place": at + 1, "count": len(found)}
                near |= {
                    where: entries.address(int(found[i])) if 0 <= i < len(found) else "" for where, i in around.items()
                }
            annotations, record = entries.of(entry), int(entries.record[entry])
            shown = sections(library.tables, entries, entry)
            size = (int(annotations.width[record]), int(annotations.height[record]))
            if not all(size):  # which neither the annotations nor the file's header tell
                size = (1, 1)
            uri = f"/file/{entries.address(entry)}"
            given = {
                "query": query,
                "entry": entry,
                "title": entries.names[entry].as_py(),
                "split": entries.splits[entries.split[entry]],
                "address": entries.address(entry),
                "row": entries.row_ids[entry].tobytes().hex(),
                "size": size,
                "near": near,
                "sections": shown,
                "figures": self._figures(entry, query, uri, size, shown),
                "point": self._clicked(entry, point),
                "looked": self._looked(entry, pair, uri, size),
                "prompted": {each.table.name for each in shown if self.looks.texts_of(each.table) is not None},
                "classes": sorted(library.classes),
                "runs": [(run.name, run.title) for run in library.runs.values()],
                "prompts": {
                    prompt: name for name, hoi in library.classes.items() for prompt in [entries.vocabulary.prompt(hoi)]
                },
            }
            return self._render("image.html.j2", **given)

    def _figures(self, entry: int, query: Query, uri: str, size: tuple[int, int], shown: Any) -> list[dict[str, Any]]:
        """The drawings: annotated pairs, those of one or two students, the boxes of each detector."""
        library, entries = self.library, self.library.entries
        is_test = entries.splits[entries.split[entry]] == "test"
        title = entries.names[entry].as_py()
        runs = [name for name in (query.run, query.against) if name and is_test]
        errors = [library.errors(name) for name in runs]
        annotated = annotated_pairs(entries, entry, errors)
        lines = numbered([each.pair for each in annotated])
        figures = [
            _figure(
                "Annotated", "", draw_pairs(uri, size, lines, f"{title} with its annotated pairs"), lines, annotated
            )
        ]
        for letter, name, error in zip("AB", runs, errors, strict=False):
            pairs = predicted_pairs(entries, entry, error)
            drawn = numbered([each.pair for each in pairs], lines)
            drawing = draw_pairs(uri, size, drawn, f"{title} with the pairs of student {letter}")
            run = name if name in self.looks.attending else ""
            figures.append(_figure(f"Student {letter}", library.run(name).title, drawing, drawn, pairs, run=run))
        for section in shown:
            if section.shape == "boxes":
                drawing = draw_boxes(
                    uri, size, section.body["boxes"], f"{title} with the boxes of {section.table.name}"
                )
                figures.append(
                    {"title": "Boxes", "note": section.table.name, "drawing": drawing, "pairs": None, "run": ""}
                )
        return figures

    def _clicked(self, entry: int, point: Point | None) -> dict[str, Any] | None:
        """The cell under a clicked point of a map's drawing."""
        if point is None:
            return None
        table = self.library.tables.get(point.table)
        shape: tuple[int, ...] = (
            () if table is None or table.table is None else tuple(table.table.output.get("shape", ()))
        )
        if len(shape) != 3 or table is None or point.column not in table.columns:
            raise UserError(f"map: there is no map {point.table!r}, column {point.column!r}")
        number = table.columns.index(point.column)
        address = f"/map/{quote(table.name, safe='')}/{number}/{self.library.entries.address(entry)}"
        if point.prompt:
            prompt = self.library.entries.vocabulary.prompt(self.library.class_of("prompt", point.prompt))
            value = table.answers(entry)[number].value
            if value is None:
                raise UserError(f"map: table {table.name} holds no map of this image")
            cosines = likeness(value, self.looks.prompt_vector(table, point.prompt))[1]
            shown = {"prompt": prompt, "low": float(cosines.min()), "high": float(cosines.max())}
            address += f"?prompt={quote(point.prompt, safe='')}"
            return {"table": table.name, "column": point.column, "chosen": point.prompt, "address": address, **shown}
        side = cell_side(shape[1:])
        row, column = min(max(point.y // side, 0), shape[1] - 1), min(max(point.x // side, 0), shape[2] - 1)
        address += f"?row={row}&column={column}"
        return {"table": table.name, "column": point.column, "row": row, "at": column, "address": address, "prompt": ""}

    def _looked(self, entry: int, pair: PairOf | None, uri: str, size: tuple[int, int]) -> dict[str, Any] | None:
        """Where a student looks for a chosen pair, layer by layer."""
        if pair is None:
            return None
        of, looked = self.looks.at(pair.run, pair.row)
        if of != entry:
            raise UserError(f"pair: detection {pair.row} of {pair.run} is of another image")
        found, words = self.library.errors(pair.run).detections, self.library.entries.vocabulary
        name = f"{verb_words(words, int(found.verb[pair.row]))} {object_words(words, int(found.object[pair.row]))}"
        end = f"{self.library.entries.address(entry)}?run={quote(pair.run, safe='')}&pair={pair.row}"
        drawings = [
            (
                layer,
                draw_attention(uri, size, f"/attention/{number}/{end}", looked, f"{layer}: attention for {name}"),
                float(weights.max()),
                1 / weights.size,
            )
            for number, (layer, weights) in enumerate(looked.weights.items())
        ]
        return {"run": self.library.run(pair.run).title, "name": name, "drawings": drawings}

    # ---- classes, runs, tables ----

    def classes(self, query: Query) -> str:
        """Every interaction with its counts, the teacher's scores and the students' figures."""
        library = self.library
        with library.lock:
            scores = library.scores(query.scores) if library.score_tables else None
            if scores is not None and scores.table.name not in self._by_class:
                self._by_class[scores.table.name] = teacher_by_class(scores, library.entries)
            teacher = [] if scores is None else self._by_class[scores.table.name]
            one, other = (_ap(library.run(name).evaluation if name else {}) for name in (query.run, query.against))
            train, test = map(self._pairs_by_class, ("train", "test"))
            rare_below = (library.workspace.config.student or {}).get("rare_below", RARE_BELOW)
            rows = []
            for name, hoi in library.classes.items():
                annotated, others, auc = teacher[hoi] if teacher else (None, None, None)
                rows.append(
                    ClassRow(
                        name=name,
                        rare=bool(train[hoi] < rare_below),
                        train=int(train[hoi]),
                        test=int(test[hoi]),
                        annotated=annotated,
                        others=others,
                        auc=auc,
                        ap=one.get(hoi),
                        other_ap=other.get(hoi),
                    )
                )
            return self._render(
                "classes.html.j2", rows=rows, query=query, choices=self._choices(query), unit=scores and scores.unit,
                table=scores and scores.table.name, rare_below=rare_below, learned_from=scores and scores.table.learned_from,
            )  # fmt: skip

    def _pairs_by_class(self, split: str) -> np.ndarray:
        entries = self.library.entries
        number = entries.splits.index(split) if split in entries.splits else -1
        here = (entries.split[entries.pair_entry] == number) & (entries.hoi >= 0)
        return np.bincount(entries.hoi[here], minlength=len(entries.vocabulary))

    def runs(self) -> str:
        """Every finished run."""
        return self._render(
            "runs.html.j2", runs=list(self.library.runs.values()), folder=self.library.workspace.config.runs
        )

    def run(self, name: str) -> str:
        """A run's figures, each a link to the images behind it. Raises UserError: there is no such run."""
        library = self.library
        with library.lock:
            run, errors = library.run(name), library.errors(name)
            kinds, misses = kind_counts(errors)
            words = {hoi: name for name, hoi in library.classes.items()}
            confused = [
                (words[a], words[s], count) for a, s, count in confusion_counts(errors) if a in words and s in words
            ]
            rows = sorted(run.evaluation.get("per_class", []), key=lambda row: -1 if row["ap"] is None else row["ap"])
            return self._render(
                "run.html.j2", run=run, kinds=kinds, misses=misses, confused=confused, classes=words,
                rows=[row for row in rows if row["hoi"] in words],
                query=Query(run=name), config=library.workspace.path, others=[r for r in library.runs.values() if r.name != name],
            )  # fmt: skip

    def tables(self) -> str:
        """Every table: what it holds, what it lacks and why, and its fingerprint's record."""
        library = self.library
        with library.lock:
            plans = [(name, plan, self._lacking_of(library.tables.get(name))) for name, plan in library.plans.items()]
            others = [table for table in library.tables.values() if table.plan is None]
            return self._render(
                "tables.html.j2", plans=plans, others=others, cache=library.workspace.config.cache,
                learned_from=lambda plan: training_data(plan.node.stage),
            )  # fmt: skip

    def _lacking_of(self, table: ViewedTable | None) -> list[tuple[str, int]]:
        if table is None:
            return []
        return [(state, count) for state in STATES if (count := int(table.lacks[state].sum()))]


def _figure(
    title: str, note: str, drawing: Markup, lines: list[NumberedPair], pairs: list[ShownPair], *, run: str = ""
) -> dict[str, Any]:
    """A drawing with its list of pairs. ``run``: the student that can tell where it looks for each; "" for none."""
    listed = [(line, pair.word, pair.row) for line, pair in zip(lines, pairs, strict=True)]
    return {"title": title, "note": note, "drawing": drawing, "pairs": listed, "run": run}


def _ap(evaluation: Mapping[str, Any]) -> dict[int, float | None]:
    return {row["hoi"]: row["ap"] for row in evaluation.get("per_class", [])}


def visible(value: Any) -> Any:
    """A text whose control characters, such as escape codes of a terminal, are seen: ``\\x1b``."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters.update(
        part=lambda text: quote(str(text), safe=""),
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        number=lambda value, form=".2f": "–" if value is None else format(value, form),
        twice=lambda values: [(value, value) for value in values],
        counted=lambda pairs: [(name, f"{name}: {count:,} images") for name, count in pairs],
        hue=lambda number: (number - 1) % len(PALETTE),
    )
    environment.globals.update(side=cell_side)
    return environment
