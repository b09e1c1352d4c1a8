"""Which pictures a report shows, and what is drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.pages.pictures import Pair

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.image import Frame
    from hoi_distill.stages.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Match:
    """The teacher's image-text matching score of one prompt: probability of a match, and whether the picture is
    annotated with it (None where there are no annotations)."""

    prompt: str
    probability: float
    annotated: bool | None = None


@dataclass(frozen=True)
class GalleryItem:
    """A test picture with what was annotated, predicted and said about it.

    Attributes:
        picture: a file, a ``uint8 [H, W, 3]`` array or a PIL image, at the size to which the boxes refer.
        kind: why it was chosen, such as "best".
        captions: (question, answer) of the teacher; a captioner asked nothing has the question "".
        matches: the prompts that the teacher scored highest, best first.
        frame: of the boxes; a file is decoded in it.
    """

    title: str
    picture: Path | np.ndarray | Image.Image
    kind: str = ""
    note: str = ""
    predictions: Sequence[Pair] = ()
    truths: Sequence[Pair] = ()
    captions: Sequence[tuple[str, str]] = ()
    matches: Sequence[Match] = field(default_factory=tuple)
    frame: Frame = "upright"


@dataclass(frozen=True)
class Chosen:
    """A picture of the split: its position, why it was chosen, and the share of its pairs found (see found_share)."""

    image: int
    kind: str
    share: float


def found_share(annotations: Annotations, detections: Detections, matched: np.ndarray) -> np.ndarray:
    """R-precision of each picture, ``float64 [N]``: of its n highest-scored detections, n being the number of its
    annotated pairs, the share that is right. NaN for pictures without pairs.

    Args:
        matched: ``int64 [D]`` from the evaluation, -1 where a detection is wrong.
    """
    pairs = np.diff(annotations.pair_offsets)
    order = np.lexsort((-detections.score, detections.image))
    image = detections.image[order]
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    counted = (rank < pairs[image]) & (matched[order] >= 0)
    right = np.bincount(image[counted], minlength=len(pairs))
    return np.divide(right, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def choose_pictures(
    annotations: Annotations,
    detections: Detections,
    matched: np.ndarray,
    among: np.ndarray | None = None,
    each: int = 4,
    seed: int = 0,
) -> list[Chosen]:
    """``each`` best, worst and random pictures of the split, no picture twice. Among equals, those with more pairs.

    Args:
        among: ``int64 [M]``, the pictures that can be shown; default all.
    """
    share, pairs = found_share(annotations, detections, matched), np.diff(annotations.pair_offsets)
    random = np.random.default_rng(seed).permutation(len(pairs) if among is None else among)
    annotated = random[pairs[random] > 0]
    best = annotated[np.lexsort((-pairs[annotated], -share[annotated]))][:each]
    worst = annotated[np.lexsort((-pairs[annotated], share[annotated]))]
    worst = worst[~np.isin(worst, best)][:each]
    rest = random[~np.isin(random, np.concatenate([best, worst]))][:each]
    return [
        Chosen(int(image), kind, float(share[image]))
        for kind, images in (("best", best), ("worst", worst), ("random", rest))
        for image in images
    ]


def gallery_items(
    annotations: Annotations,
    detections: Detections,
    matched: np.ndarray,
    chosen: Sequence[Chosen],
    picture: Callable[[int], Path | np.ndarray | Image.Image],
    captions: Mapping[int, Sequence[tuple[str, str]]],
    matches: Mapping[int, Sequence[Match]],
    extra: int = 2,
) -> list[GalleryItem]:
    """Gallery items of the chosen pictures.

    Shown are as many of the highest-scored predictions as a picture has annotated pairs, and ``extra`` more.

    Args:
        picture: gives a picture by its position in the split.
        captions, matches: the teacher's words, by position in the split; absent ones are left out.
    """
    words = annotations.vocabulary
    assert words is not None, "evaluated pictures have classes"
    items = []
    for pick in chosen:
        pairs = annotations.pairs(pick.image)
        truths = np.arange(pairs.start, pairs.stop)
        here = np.flatnonzero(detections.image == pick.image)
        shown = here[np.argsort(-detections.score[here], kind="stable")][: len(truths) + extra]
        found = set(matched[shown].tolist())
        n = round(pick.share * len(truths)) if len(truths) else 0
        items.append(
            GalleryItem(
                title=str(annotations.image_id[pick.image]),
                picture=picture(pick.image),
                kind=pick.kind,
                note=f"{n} of {len(truths)} pairs among as many best predictions"
                if len(truths)
                else "no annotated pairs",
                predictions=[_prediction(words, detections, row, bool(matched[row] >= 0)) for row in shown],
                truths=[_truth(words, annotations, row, int(row) in found) for row in truths],
                captions=captions.get(pick.image, ()),
                matches=matches.get(pick.image, ()),
                frame=annotations.frame,
            )
        )
    return items


def _prediction(words: Vocabulary, detections: Detections, row: int, right: bool) -> Pair:
    return Pair(
        detections.human_box[row].tolist(),
        detections.object_box[row].tolist(),
        _words(words.verbs[detections.verb[row]]),
        _object(words, detections.object[row]),
        float(detections.score[row]),
        right,
    )


def _truth(words: Vocabulary, annotations: Annotations, row: int, found: bool) -> Pair:
    return Pair(
        annotations.human_box[row].tolist(),
        annotations.object_box[row].tolist(),
        _words(words.verbs[annotations.verb[row]]),
        _object(words, annotations.object[row]),
        None,
        found,
    )


def _object(words: Vocabulary, index: int) -> str:
    return _words(words.objects[index]) if index >= 0 else ""  # V-COCO: done without an object


def _words(name: str) -> str:
    return name.replace("_", " ")
