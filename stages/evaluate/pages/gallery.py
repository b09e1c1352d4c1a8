"""The images that a report shows, and the pairs that are drawn on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.pages.images import Pair

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.image import Frame
    from hoi_distill.stages.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Match:
    """The teacher's image-text matching score of one prompt.

    Attributes:
        prompt: the sentence.
        probability: of a match.
        annotated: whether the image is annotated with the prompt's class; None where there are no annotations.
    """

    prompt: str
    probability: float
    annotated: bool | None = None


@dataclass(frozen=True)
class GalleryItem:
    """A test image with its annotated pairs, its predictions and the teacher's answers.

    Attributes:
        title: its name.
        image: a file or any other uri, a ``uint8 [H, W, 3]`` array or a PIL image, at the size to which the boxes refer.
        kind: why it was chosen, such as "best".
        note: a line about it.
        predictions: pairs, best first.
        annotated: annotated pairs.
        captions: (question, answer) of the teacher; a captioner without a question has the question "".
        matches: the prompts that the teacher scored highest, best first.
        frame: of the boxes; a file is decoded in it.
        boxes: of a detector, best first: ``box`` (xyxy pixels), ``score`` and ``label`` (words) of each.
        triplets: of each text that triplets were read from: its name, (words, weight, phrase) of those that were read, and
            (phrase, reason) of what was dropped.
    """

    title: str
    image: str | Path | np.ndarray | Image.Image
    kind: str = ""
    note: str = ""
    predictions: Sequence[Pair] = ()
    annotated: Sequence[Pair] = ()
    captions: Sequence[tuple[str, str]] = ()
    matches: Sequence[Match] = field(default_factory=tuple)
    frame: Frame = "upright"
    boxes: Sequence[Mapping[str, Any]] = ()
    triplets: Sequence[tuple[str, Sequence[tuple[str, float, str]], Sequence[tuple[str, str]]]] = ()


@dataclass(frozen=True)
class Chosen:
    """An image of the split that a report shows.

    Attributes:
        image: its position in the split.
        kind: why it was chosen.
        share: of its pairs that were found, see :meth:`EvaluatedSplit.found_share`.
    """

    image: int
    kind: str
    share: float


@dataclass(frozen=True, eq=False)
class EvaluatedSplit:
    """An annotated split, detections of its images, and which annotated pairs they found.

    Attributes:
        annotations: the split.
        detections: D detections; ``image`` counts its images.
        matched: ``int64 [D]`` row of the annotated pair that a detection found, -1 for a false positive.
    """

    annotations: Annotations
    detections: HoiDetections
    matched: np.ndarray

    def found_share(self) -> np.ndarray:
        """R-precision of each image, ``float64 [N]``; NaN for an image without pairs.

        It is the share of true positives among the n highest-scored detections of an image, n being the number of its
        annotated pairs.
        """
        pairs = np.diff(self.annotations.pair_offsets)
        order = np.lexsort((-self.detections.score, self.detections.image))
        image = self.detections.image[order]
        rank = np.arange(len(order)) - np.searchsorted(image, image)
        is_tp = (rank < pairs[image]) & (self.matched[order] >= 0)
        found = np.bincount(image[is_tp], minlength=len(pairs))
        return np.divide(found, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def choose_images(
    split: EvaluatedSplit, among: np.ndarray | None = None, *, each: int = 4, seed: int = 0
) -> list[Chosen]:
    """Choose the best, the worst and random images of a split, no image twice. Of equals, those with more pairs.

    Args:
        split: with its detections.
        among: ``int64 [M]``, the images that can be shown; None: all.
        each: how many of each sort.
        seed: draws the random ones.
    """
    share, pairs = split.found_share(), np.diff(split.annotations.pair_offsets)
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
    split: EvaluatedSplit,
    chosen: Sequence[Chosen],
    image: Callable[[int], str | Path | np.ndarray | Image.Image],
    *,
    captions: Mapping[int, Sequence[tuple[str, str]]],
    matches: Mapping[int, Sequence[Match]],
    extra: int = 2,
) -> list[GalleryItem]:
    """Make the gallery items of the chosen images.

    An item shows as many of the highest-scored predictions as its image has annotated pairs, and ``extra`` more.

    Args:
        split: with its detections.
        chosen: images of the split.
        image: returns an image by its position in the split.
        captions: the teacher's (question, answer) pairs, by position in the split; a position may be missing.
        matches: the teacher's best prompts, in the same form.
        extra: number of further predictions.
    """
    annotations, detections, matched = split.annotations, split.detections, split.matched
    words = annotations.vocabulary
    assert words is not None, "evaluated images have classes"
    items = []
    for pick in chosen:
        rows = annotations.pairs(pick.image)
        pairs = np.arange(rows.start, rows.stop)
        here = np.flatnonzero(detections.image == pick.image)
        shown = here[np.argsort(-detections.score[here], kind="stable")][: len(pairs) + extra]
        found = set(matched[shown].tolist())
        note = "no annotated pairs"
        if len(pairs):
            note = f"{round(pick.share * len(pairs))} of {len(pairs)} pairs among as many best predictions"
        items.append(
            GalleryItem(
                title=str(annotations.image_id[pick.image]),
                image=image(pick.image),
                kind=pick.kind,
                note=note,
                predictions=[
                    _pair(words, detections, row, score=float(detections.score[row]), matched=bool(matched[row] >= 0))
                    for row in shown
                ],
                annotated=[_pair(words, annotations, row, score=None, matched=int(row) in found) for row in pairs],
                captions=captions.get(pick.image, ()),
                matches=matches.get(pick.image, ()),
                frame=annotations.frame,
            )
        )
    return items


def _pair(
    words: Vocabulary, pairs: HoiDetections | Annotations, row: int, *, score: float | None, matched: bool
) -> Pair:
    return Pair(
        human_box=pairs.human_box[row].tolist(),
        object_box=pairs.object_box[row].tolist(),
        verb=_words(words.verbs[pairs.verb[row]]),
        object=_object(words, pairs.object[row]),
        score=score,
        matched=matched,
    )


def _object(words: Vocabulary, index: int) -> str:
    return _words(words.objects[index]) if index >= 0 else ""  # V-COCO: done without an object


def _words(name: str) -> str:
    return name.replace("_", " ")
