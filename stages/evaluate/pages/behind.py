"""The images behind the figures of a run, on one page: of each class, each confusion, each kind of error.

Pages that show a figure link to its heading here, by the addresses of :mod:`.anchors`. An image is stored once, small; each
place that shows it draws the pair in question over it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.image import Frame, read_image
from hoi_distill.stages.evaluate.diagnosis.errors import KINDS, MISSES, confusions, decisive
from hoi_distill.stages.evaluate.pages.anchors import class_anchor, confusion_anchor, kind_anchor, miss_anchor
from hoi_distill.stages.evaluate.pages.report import environment, write_page
from hoi_distill.stages.evaluate.protocols.types import EvaluationResult
from hoi_distill.storage.errors import InputFailure

LONGEST, QUALITY = 128, 62
"""Pixels of an image's longer side, and its JPEG quality."""
BYTES = 4_000_000
"""Of the page's images and drawings. Where more would be shown, every figure keeps its first ones."""
TILE = 420
"""Bytes of one drawing, about."""
WRONG, MISSED, RIGHT = 5, 5, 2
"""Of a class: wrong detections, missed pairs and right detections that are shown at most."""
SHOWN = 12
"""Of a confusion or a kind of error."""


@dataclass(frozen=True)
class Tile:
    """A pair over its image.

    Attributes:
        image: position in the split.
        human_box: xyxy pixels.
        object_box: the same.
        text: what is to be said of it.
        right: whether it is a true positive.
    """

    image: int
    human_box: Sequence[float]
    object_box: Sequence[float]
    text: str
    right: bool = False


@dataclass(frozen=True)
class Behind:
    """A figure and its images.

    Attributes:
        anchor: of its heading, "#class-7".
        title: what the figure is of.
        note: what it says.
        query: what asks the viewer for all of its images, by part of an address.
        tiles: some of its images, the most telling first.
        count: how many there are.
    """

    anchor: str
    title: str
    note: str
    query: Mapping[str, str]
    tiles: Sequence[Tile]
    count: int


class _Tiles:
    """Makes tiles of the detections and pairs of an evaluation."""

    def __init__(self, result: EvaluationResult) -> None:
        assert result.diagnosis is not None
        self.diagnosis, self.vocabulary = result.diagnosis, result.vocabulary
        ranking = next(iter(result.settings.values())).ranking
        assert ranking is not None
        first = decisive(ranking)
        self.rows, self.classes = ranking.row[first], ranking.klass[first]
        self.kind = self.diagnosis.kind[self.rows]
        pairs, words = self.diagnosis.pairs, result.vocabulary
        self.pair_class = np.where(pairs.object >= 0, words.hoi_id()[pairs.verb, pairs.object], -1)

    def name(self, hoi: int) -> str:
        """A class in words."""
        return " ".join(self.vocabulary.hoi_name(hoi)).replace("_", " ")

    def detections(self, rows: np.ndarray, named: bool) -> list[Tile]:
        """Of detections, the highest score first; ``named``: with their class."""
        found, tiles = self.diagnosis.detections, []
        for row in rows[np.argsort(-found.score[rows], kind="stable")].tolist():
            kind = list(KINDS)[self.diagnosis.kind[row]]
            text = self.name(int(found.hoi[row])) if named else kind
            boxes = found.human_box[row].tolist(), found.object_box[row].tolist()
            tiles.append(Tile(int(found.image[row]), *boxes, f"{text}, {found.score[row]:.2f}", kind == "right"))
        return tiles

    def pairs(self, rows: np.ndarray, named: bool) -> list[Tile]:
        """Of missed pairs; ``named``: with their class instead of the reason."""
        pairs, tiles = self.diagnosis.pairs, []
        for row in rows.tolist():
            hoi = int(self.pair_class[row])
            text = self.name(hoi) if named and hoi >= 0 else f"missed: {list(MISSES)[self.diagnosis.miss[row]]}"
            boxes = pairs.human_box[row].tolist(), pairs.object_box[row].tolist()
            tiles.append(Tile(int(pairs.image[row]), *boxes, text))
        return tiles


def images_behind(result: EvaluationResult, confused: Sequence[tuple[int, int]]) -> dict[str, list[Behind]]:
    """What there is to be shown, by section.

    Args:
        result: of an evaluation of pairs.
        confused: (annotated, said) class of the confusions that some page counts.
    """
    make = _Tiles(result)
    return {
        "Kinds of errors": list(_kinds(make)),
        "Missed pairs": list(_misses(make)),
        "Confusions": list(_confusions(make, confused)),
        "Classes": list(_classes(make, result.per_class)),
    }


def _kinds(make: _Tiles) -> Iterator[Behind]:
    for number, (name, text) in [*list(enumerate(KINDS.items()))[1:], (0, next(iter(KINDS.items())))]:  # "right" last
        rows = make.rows[make.kind == number]
        tiles = make.detections(rows, named=True)[:SHOWN]
        yield Behind(kind_anchor(name), name, text, {"kind": name}, tiles, len(rows))


def _misses(make: _Tiles) -> Iterator[Behind]:
    for number, (name, text) in enumerate(MISSES.items()):
        rows = np.flatnonzero((make.diagnosis.miss == number) & (make.pair_class >= 0))
        tiles = make.pairs(rows[:SHOWN], named=True)
        yield Behind(miss_anchor(name), name, text, {"kind": f"missed: {name}"}, tiles, len(rows))


def _confusions(make: _Tiles, confused: Sequence[tuple[int, int]]) -> Iterator[Behind]:
    found, pairs = make.diagnosis.detections, make.diagnosis.pairs
    wrong = [list(KINDS).index(name) for name in ("wrong verb", "wrong object")]
    row, pair = confusions(found, pairs, make.rows[np.isin(make.kind, wrong)])
    for annotated, said in confused:
        if annotated < 0 or said < 0:
            continue
        here = row[(make.pair_class[pair] == annotated) & (found.hoi[row] == said)]
        query = {"on": make.name(annotated), "interaction": make.name(said)}
        title = f"{make.name(annotated)}, detected as {make.name(said)}"
        tiles = make.detections(here, named=True)[:SHOWN]
        yield Behind(confusion_anchor(annotated, said), title, "", query, tiles, len(here))


def _classes(make: _Tiles, per_class: Sequence[Mapping[str, Any]]) -> Iterator[Behind]:
    for row in sorted(per_class, key=lambda row: str(row["name"])):
        hoi = row["hoi"]
        own = make.classes == hoi
        wrong, right = make.rows[own & (make.kind > 0)], make.rows[own & (make.kind == 0)]
        missed = np.flatnonzero((make.diagnosis.miss >= 0) & (make.pair_class == hoi))
        tiles = [
            *make.detections(wrong, named=False)[:WRONG],
            *make.pairs(missed[:MISSED], named=False),
            *make.detections(right, named=False)[:RIGHT],
        ]
        count = len(wrong) + len(missed) + len(right)
        ap = "without a test pair" if row["ap"] is None else f"AP {row['ap']:.1f}"
        note = f"{ap}; {row['found']} of {row['pairs']} pairs found, {len(wrong)} wrong among the best detections."
        yield Behind(class_anchor(hoi), row["name"], note, {"interaction": row["name"], "kind": "any"}, tiles, count)


@dataclass(frozen=True)
class ImagesPage:
    """What the page says.

    Attributes:
        name: its heading.
        about: a sentence below it.
        sections: of :func:`images_behind`.
        images: the split, with its files. One that cannot be read is left out.
        address: what the viewer's address ends in, for the parts that ask for a figure's images.
    """

    name: str
    about: str
    sections: Mapping[str, Sequence[Behind]]
    images: Annotations
    address: Callable[[Mapping[str, str]], str]


def write_images_page(path: Path, data: ImagesPage) -> None:
    """Write the page of the images behind the figures.

    Raises:
        UserError: it cannot be written.
    """
    stored, shown = _fit([figure for figures in data.sections.values() for figure in figures], data.images)
    page = environment(("page.css", "behind.css")).get_template("behind.html.j2").render(
        data=data, stored=stored, shown=shown, outline=_outline, titles=data.images.image_id
    )  # fmt: skip
    write_page(path, page)


@dataclass(frozen=True)
class Stored:
    """A small image: its JPEG in base64; width and height in pixels of the original, in which boxes are."""

    jpeg: str
    width: int
    height: int


def _fit(figures: Sequence[Behind], images: Annotations) -> tuple[dict[int, Stored], dict[str, list[Tile]]]:
    """Choose the tiles of all figures, the first of each before the second of any, while there is room.

    Returns:
        The images that are shown, by position in the split; and the tiles of each figure, by its anchor.
    """
    tried: dict[int, Stored | None] = {}
    shown: dict[str, list[Tile]] = {figure.anchor: [] for figure in figures}
    room = BYTES
    for place in range(max((len(figure.tiles) for figure in figures), default=0)):
        for figure in figures:
            if place >= len(figure.tiles) or room < 0:
                continue
            tile = figure.tiles[place]
            if tile.image not in tried:
                tried[tile.image] = small = _small(images.path[tile.image], images.frame)
                room -= 0 if small is None else len(small.jpeg)
            if tried[tile.image] is not None:
                shown[figure.anchor].append(tile)
                room -= TILE
    return {number: small for number, small in tried.items() if small is not None}, shown


def _small(uri: str, frame: Frame) -> Stored | None:
    try:
        image = read_image(uri, frame)
    except (OSError, InputFailure):
        return None
    width, height = image.size
    image = image.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Stored(base64.b64encode(buffer.getvalue()).decode(), width, height)


def _outline(box: Sequence[float]) -> str:
    """A box as the path of an SVG; "" for none."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    return f"M{x1} {y1}H{x2}V{y2}H{x1}z" if (x2, y2) > (x1, y1) else ""
