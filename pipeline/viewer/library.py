"""All that a viewer looks at: images, tables and runs; and how a query is answered from them."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.viewer.entries import Entries, entries_of
from hoi_distill.pipeline.viewer.query import BY_TEACHER, SORTS, Query
from hoi_distill.pipeline.viewer.runs import KEPT, Run, RunErrors, find_runs, run_errors
from hoi_distill.pipeline.viewer.tables import STATES, Scores, texts_of, viewed_tables
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES
from hoi_distill.storage.errors import UserError, did_you_mean

REMEMBERED = 16
"""Queries whose answers are kept, so that the next page, and the next image, cost nothing."""
SEARCHED = 8
"""Columns of a table of captions up to which their texts are searched. A table of more holds answers to yes/no questions."""


@dataclass(frozen=True, eq=False)
class Found:
    """The answer to a query.

    Attributes:
        entries: ``int64 [M]``, in the order asked for.
        value: ``float [M]``, what they are sorted by; None where that is no number.
        says: what the number is, for people.
    """

    entries: np.ndarray
    value: np.ndarray | None
    says: str


class Library:
    """The images, tables and runs of a configuration, read only. What is big is read when somebody asks first.

    Attributes:
        workspace: the configuration with its cache.
        entries: the images.
        tables: the tables of images, by name.
        plans: of the configuration's tables, those of texts too.
        runs: the finished runs, by name.
    """

    def __init__(self, workspace: Workspace, plans: Mapping[str, TablePlan]) -> None:
        """
        Args:
            workspace: the configuration.
            plans: of its tables.
        """
        self.workspace, self.plans = workspace, plans
        self.entries: Entries = entries_of(workspace)
        self.tables = viewed_tables(workspace, plans, self.entries)
        dataset = workspace.config.dataset.model_dump(mode="json")
        self.runs = find_runs(workspace.config.runs, dataset)
        self.lock = threading.RLock()
        self._found: OrderedDict[Query, Found] = OrderedDict()
        self._errors: OrderedDict[str, RunErrors] = OrderedDict()
        self._scores: dict[str, Scores] = {}

    # ---- what a query names ----

    def run(self, name: str) -> Run:
        """A run by its name. Raises UserError: there is none."""
        return _named("run", name, self.runs)

    def errors(self, name: str) -> RunErrors:
        """The diagnosed detections of a run; the last :data:`KEPT` stay in memory. Raises UserError: they cannot be read."""
        if name not in self._errors:
            self._errors[name] = run_errors(self.run(name), self.entries)
            while len(self._errors) > KEPT:
                self._errors.popitem(last=False)
        self._errors.move_to_end(name)
        return self._errors[name]

    @property
    def score_tables(self) -> list[str]:
        """Names of the tables that score prompts."""
        return [name for name, table in self.tables.items() if table.kind in ("itm", "itc") and table.table is not None]

    def scores(self, name: str = "") -> Scores:
        """The scores of a table, by default the first. Raises UserError: there is none."""
        names = self.score_tables
        if not names:
            raise UserError("scores: the cache holds no table of scores")
        table = _named("scores", name or names[0], {name: self.tables[name] for name in names})
        if table.name not in self._scores:
            self._scores[table.name] = Scores(table, len(self.entries))
        return self._scores[table.name]

    def class_of(self, part: str, name: str) -> int:
        """The class that "verb object" names. Raises UserError: there is none."""
        return _named(part, name.replace("_", " "), self.classes)

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        """``{"verb object": class}`` in words."""
        words = self.entries.vocabulary
        return {" ".join(words.hoi_name(hoi)).replace("_", " "): hoi for hoi in range(len(words))}

    @functools.cached_property
    def verbs(self) -> dict[str, int]:
        """``{verb: index}`` in words."""
        return {name.replace("_", " "): index for index, name in enumerate(self.entries.vocabulary.verbs)}

    @functools.cached_property
    def objects(self) -> dict[str, int]:
        """``{object: index}`` in words."""
        return {name.replace("_", " "): index for index, name in enumerate(self.entries.vocabulary.objects)}

    @functools.cached_property
    def captions(self) -> list[tuple[str, str, Any]]:
        """(table, column, text of each entry) of the captions that are searched."""
        return [
            (name, column, texts_of(cells))
            for name, table in self.tables.items()
            if table.kind == "captions" and table.table is not None and len(table.columns) <= SEARCHED
            for column, cells in table.read(table.columns).items()
        ]

    # ---- queries ----

    def find(self, query: Query) -> Found:
        """The images that a query asks for, in its order. The last :data:`REMEMBERED` answers are kept.

        Raises:
            UserError: the query names something that there is not.
        """
        query = replace(query, page="")
        with self.lock:
            if query not in self._found:
                self._found[query] = self._sorted(query, self._mask(query))
                while len(self._found) > REMEMBERED:
                    self._found.popitem(last=False)
            self._found.move_to_end(query)
            return self._found[query]

    def _mask(self, query: Query) -> np.ndarray:
        """``bool [E]``: the images that a query asks for."""
        entries = self.entries
        mask = np.ones(len(entries), bool)
        if query.split:
            number = _named("split", query.split, {name: i for i, name in enumerate(entries.splits)})
            mask &= entries.split == number
        if query.text:
            mask &= self._with_text(query.text)
        if query.cells:
            name, _, what = query.cells.rpartition(" ")
            _named("cells", what, dict.fromkeys(STATES, 0))
            mask &= _named("cells", name, self.tables).lacks[what]
        if query.kind or query.on:
            mask &= self._with_errors(query)
        elif query.verb or query.object or (query.interaction and query.sort not in BY_TEACHER):
            if query.sort in BY_TEACHER:
                query = replace(query, interaction="")
            mask &= self._among(entries.pair_entry[self._of_class(query, entries.verb, entries.object, entries.hoi)])
        return mask

    def _among(self, entry: np.ndarray) -> np.ndarray:
        """``bool [E]``: which entries are in a list."""
        mask = np.zeros(len(self.entries), bool)
        mask[entry[entry >= 0]] = True
        return mask

    def _with_text(self, text: str) -> np.ndarray:
        mask = _holds(self.entries.names, text)
        for _, _, texts in self.captions:
            mask |= _holds(texts, text)
        return mask

    def _of_class(self, query: Query, verb: np.ndarray, obj: np.ndarray, hoi: np.ndarray) -> np.ndarray:
        """``bool [P]``: which pairs, or detections, are of the classes that a query asks for."""
        keep = np.ones(len(verb), bool)
        if query.verb:
            keep &= verb == _named("verb", query.verb.replace("_", " "), self.verbs)
        if query.object:
            keep &= obj == _named("object", query.object.replace("_", " "), self.objects)
        if query.interaction:
            keep &= hoi == self.class_of("interaction", query.interaction)
        return keep

    def _with_errors(self, query: Query) -> np.ndarray:
        """``bool [E]``: images with a decisive detection, or a missed pair, of the kind and classes of a query."""
        errors = self.errors(query.run)
        if query.kind.startswith("missed"):
            reason = query.kind.removeprefix("missed").removeprefix(": ")
            missed = errors.miss == list(MISSES).index(reason) if reason else errors.miss >= 0
            test = self.entries.annotations[self.entries.splits.index("test")]
            return self._among(errors.pair_entry[missed & self._of_class(query, test.verb, test.object, test.hoi)])
        found = errors.detections
        keep = errors.decisive & self._of_class(query, found.verb, found.object, found.hoi)
        if query.kind not in ("", "any"):
            keep &= errors.kind == list(KINDS).index(query.kind)
        if query.on:
            rows, pairs = errors.confused
            lying = np.zeros(len(found), bool)
            lying[rows[errors.hoi[pairs] == self.class_of("on", query.on)]] = True
            keep &= lying
        return self._among(errors.entry[keep])

    def _differences(self, query: Query) -> np.ndarray:
        """``int64 [E]``: annotated pairs, of the classes of a query, that only one of two students found."""
        one, other = self.errors(query.run), self.errors(query.against)
        test = self.entries.annotations[self.entries.splits.index("test")]
        differ = ((one.miss < 0) != (other.miss < 0)) & (one.pair_entry >= 0)
        differ &= self._of_class(query, test.verb, test.object, test.hoi)
        return np.bincount(one.pair_entry[differ], minlength=len(self.entries))

    # ---- orders ----

    def _sorted(self, query: Query, mask: np.ndarray) -> Found:
        chosen = np.flatnonzero(mask)
        if query.sort == "name":
            order = pc.array_sort_indices(self.entries.names.take(chosen)).to_numpy()
            return Found(chosen[order[::-1] if query.down else order], None, "")
        if query.sort in ("", "dataset"):
            return Found(chosen[::-1] if query.down else chosen, None, "")
        value = self._orders[query.sort](query)[chosen].astype(np.float64)
        order = np.argsort(-value if query.down else value, kind="stable")  # NaN comes last in both
        order = order[~np.isnan(value[order])]
        return Found(chosen[order], value[order], SORTS[query.sort])

    @property
    def _orders(self) -> dict[str, Callable[[Query], np.ndarray]]:
        """What each order sorts by, ``[E]`` numbers; NaN leaves an image out."""
        return {
            "pairs": lambda _: np.bincount(self.entries.pair_entry, minlength=len(self.entries)),
            "score": self._score,
            "contradiction": lambda query: self.contradiction(self.scores(query.scores), query),
            "tables": self._tables_differ,
            "found": lambda query: self.errors(_chosen(query.run)).found_share(len(self.entries)),
            "students": self._students_differ,
        }

    def _students_differ(self, query: Query) -> np.ndarray:
        _chosen(query.run)
        if not query.against:
            raise UserError("against: choose the other student")
        differ = self._differences(query).astype(np.float64)
        differ[differ == 0] = np.nan
        return differ

    def _score(self, query: Query) -> np.ndarray:
        if not query.interaction:
            raise UserError("interaction: choose the one whose score sorts the images")
        scores = self.scores(query.scores)
        return scores.column(self.prompt_of(scores, self.class_of("interaction", query.interaction)))

    def prompt_of(self, scores: Scores, hoi: int) -> str:
        """The column of a class. Raises UserError: the table has none."""
        prompt = self.entries.vocabulary.prompt(hoi)
        if prompt not in scores.table.columns:
            raise UserError(f"scores: table {scores.table.name} has no column {prompt!r}")
        return prompt

    def contradiction(self, scores: Scores, query: Query) -> np.ndarray:
        """``float32 [E]``: the lowest score that the teacher gave to an annotated interaction; NaN where there is none.

        Args:
            scores: of the teacher.
            query: says which classes count.
        """
        entries, values = self.entries, scores.all()
        places = {column: place for place, column in enumerate(scores.table.columns)}
        of_class = np.array([places.get(prompt, -1) for prompt in entries.vocabulary.prompts()], np.int64)
        keep = (entries.hoi >= 0) & self._of_class(query, entries.verb, entries.object, entries.hoi)
        keep[keep] = of_class[entries.hoi[keep]] >= 0
        lowest = np.full(len(entries), np.inf, np.float32)
        given = values[of_class[entries.hoi[keep]], entries.pair_entry[keep]].astype(np.float32)
        np.fmin.at(lowest, entries.pair_entry[keep], given)
        return np.where(np.isinf(lowest), np.float32(np.nan), lowest)

    def _tables_differ(self, query: Query) -> np.ndarray:
        """``float32 [E]``: the largest difference of two tables' scores of one image, of the chosen interaction or of any."""
        one = self.scores(query.scores)
        if not query.other:
            raise UserError("other: choose the other table of scores")
        other = self.scores(query.other)
        if one.unit != other.unit:
            raise UserError(f"other: table {one.table.name} holds {one.unit}, table {other.table.name} {other.unit}")
        if query.interaction:
            prompt = self.prompt_of(one, self.class_of("interaction", query.interaction))
            self.prompt_of(other, self.class_of("interaction", query.interaction))
            return np.abs(one.column(prompt).astype(np.float32) - other.column(prompt))
        shared = [column for column in one.table.columns if column in other.table.columns]
        largest = np.full(len(self.entries), np.nan, np.float32)
        values, others = one.all(), other.all()
        for column in shared:
            a, b = values[one.table.columns.index(column)], others[other.table.columns.index(column)]
            np.fmax(largest, np.abs(a.astype(np.float32) - b), out=largest)
        return largest


def _chosen(run: str) -> str:
    if not run:
        raise UserError("run: choose a student")
    return run


def _holds(texts: Any, text: str) -> np.ndarray:
    return pc.match_substring(texts, text, ignore_case=True).to_numpy(zero_copy_only=False)


def _named(part: str, name: str, there: Mapping[str, Any]) -> Any:
    """What a name names. Raises UserError: nothing."""
    if name not in there:
        raise UserError(f"{part}: there is no {name!r}{did_you_mean(name, there)}")
    return there[name]
