"""What the protocols share: which format a file has, how it is read, how its detections rank, which of them are tied."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.formats.parquet import parquet_parts, read_detections
from hoi_distill.stages.evaluate.metrics.average_precision import ranking
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.protocols.types import LABELS, Request, Setting
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary


def detections_format(request: Request) -> str:
    """The format asked for, or what the file looks like: QPIC's and V-COCO's are JSON (QPIC's own a string of it), pocket's
    are .mat files; a folder is pocket's unless Parquet files lie in it."""
    if request.format != "auto":
        return request.format
    path = request.detections
    if path.is_dir():
        return "parquet" if parquet_parts(path) else "pocket"
    if path.suffix == ".mat":
        return "pocket"
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    except OSError:
        return "parquet"  # whose reader says what is wrong
    if start in (b"[", b"{", b'"'):
        return "v-coco" if request.dataset == "v-coco" else "qpic"
    return "parquet"


def refuse_format(request: Request, form: str) -> UserError:
    return UserError(f"{request.detections}: {request.dataset} has no detections in the format {form}; use --format")


def read_triplets(request: Request, split: Annotations, every_row_classed: bool = True) -> Detections:
    """Detections of a split's pictures, in our Parquet format."""
    words = vocabulary_of(split)
    return read_detections(
        request.detections, split.image_id, words.hois, len(words.objects), len(words.verbs), every_row_classed
    )


def vocabulary_of(annotations: Annotations) -> Vocabulary:
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: pictures without annotated classes cannot be evaluated")
    return annotations.vocabulary


Ties = Mapping[str, Mapping[str, int]]
"""How many detections are tied with others that are right where they are wrong, or the reverse, by setting and figure."""


def ties_of(settings: Mapping[str, Setting]) -> Ties:
    return {
        key: setting.ranking.ties({name: setting.sets[name] for name in setting.means})
        for key, setting in settings.items()
        if setting.ranking is not None
    }


def ties_note(ties: Ties, settings: Mapping[str, Setting], rule: str) -> list[str]:
    """A line on the ties that may move a figure, none where there are none. ``rule`` says how equals rank here."""
    said = [
        f"{settings[key].title} "
        + ", ".join(f"{LABELS.get(name, name)} {count:,}" for name, count in sets.items() if count)
        for key, sets in ties.items()
        if any(sets.values())
    ]
    if not said:
        return []
    return [
        f"Tied detections, of a class and a score, some of them right and some wrong: {'; '.join(said)}. Published code sorts "
        f"equals as it comes, and another order may move the figure; here {rule}."
    ]


def ranked(
    detections: Detections, matched: np.ndarray, counted: np.ndarray, ties: str, annotations: Annotations
) -> Ranking:
    """The counted detections in the order in which a convention judges them (``ties`` as in its switch)."""
    rows = np.flatnonzero(counted)
    order = rows[ranking(detections.hoi[rows], detections.score[rows], detections.image[rows], ties)]
    given = annotations.classified()
    return Ranking(
        order, detections.hoi[order].astype(np.int64), detections.image[order].astype(np.int64), detections.score[order],
        matched[order] >= 0, given.hoi.astype(np.int64), given.pair_image(), len(vocabulary_of(annotations)),
    )  # fmt: skip
