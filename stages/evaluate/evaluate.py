"""From annotations and detections to figures: what training reports and what ``hoi-distill evaluate`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.evaluate.detections import Detections, read_detections
from stages.evaluate.hico_det import ClassResults, Truths, hico_det
from storage.errors import UserError

if TYPE_CHECKING:
    from stages.data.records import Annotations
    from stages.data.vocabulary import Vocabulary

RARE_BELOW = 10
"""A HICO-DET class with fewer annotated training pairs than this is rare (Chao et al., WACV 2018)."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one detections file, in percent.

    Attributes:
        counts: pictures, pairs, detections, classes and how many of them are rare or without a test pair.
        default, known_object: mean average precision over ``full``, ``rare`` and ``non_rare`` classes; None for a set
            in which no class has a pair. Classes without test pairs have no average precision and enter no mean.
        known_object_from: what says which pictures show an object.
        per_class: one record a class, in class order: hoi, verb, object (names), rare, training_pairs (None if not
            known), pairs, detections, found, recall, ap, ap_known_object.
        matched: ``int64 [D]`` annotated pair that each detection found, -1 where it is wrong; not part of the JSON.
    """

    dataset: str
    split: str
    counts: dict[str, int]
    default: dict[str, float | None]
    known_object: dict[str, float | None]
    known_object_from: str
    per_class: list[dict[str, Any]]
    matched: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """A JSON-able record; figures are rounded to six decimals."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "definition": "HICO-DET official: best match, min IoU >= 0.5, 11-point; percent",
            "counts": self.counts,
            "default": self.default,
            "known_object": self.known_object,
            "known_object_from": self.known_object_from,
            "per_class": self.per_class,
        }

    def table(self) -> str:
        """The means as lines of plain text, for a terminal."""
        lines = [f"{'mAP (%)':<14}{'full':>10}{'rare':>10}{'non-rare':>10}"]
        for name, means in (("default", self.default), ("known object", self.known_object)):
            cells = ("-" if value is None else f"{value:.2f}" for value in means.values())
            lines.append(f"{name:<14}" + "".join(f"{cell:>10}" for cell in cells))
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in self.counts.items())
        return "\n".join([*lines, counts])


def training_pairs(annotations: Annotations) -> np.ndarray:
    """Annotated pairs of each class in a training split, ``int64 [H]``; rare classes have fewer than RARE_BELOW."""
    return np.bincount(annotations.hoi, minlength=len(_vocabulary(annotations)))


def evaluate_hico_det(
    annotations: Annotations, detections: Detections, rare: np.ndarray, training: np.ndarray | None = None
) -> Evaluation:
    """Evaluate as HICO-DET's official code does (:mod:`stages.evaluate.hico_det`).

    Args:
        annotations: the test split. Without image-level labels (``image_hois``), known-object picture sets are taken
            from the annotated pairs, which is recorded in ``known_object_from``.
        detections: ``image`` counts pictures of this split.
        rare: ``bool [H]``.
        training: ``int [H]`` training pairs of each class, for the record.
    """
    vocabulary, truths = _vocabulary(annotations), _truths(annotations)
    hois = vocabulary.hois.astype(np.int64)
    results = hico_det(detections, truths, hois[:, 1])
    default, known = results.default, results.known_object
    per_class = [
        {
            "hoi": hoi,
            "verb": vocabulary.verbs[verb],
            "object": vocabulary.objects[thing],
            "rare": bool(rare[hoi]),
            "training_pairs": None if training is None else int(training[hoi]),
            "pairs": int(default.pairs[hoi]),
            "detections": int(default.detections[hoi]),
            "found": int(default.found[hoi]),
            "recall": _percent(default.recall[hoi]),
            "ap": _percent(default.ap[hoi]),
            "ap_known_object": _percent(known.ap[hoi]),
        }
        for hoi, (verb, thing) in enumerate(hois)
    ]
    return Evaluation(
        dataset=annotations.name,
        split=annotations.split,
        counts={
            "pictures": len(annotations),
            "pairs": len(truths.hoi),
            "detections": len(detections),
            "classes": len(hois),
            "rare_classes": int(np.sum(rare)),
            "classes_without_pairs": int((default.pairs == 0).sum()),
        },
        default=_means(default, rare),
        known_object=_means(known, rare),
        known_object_from="annotated pairs" if annotations.image_hois is None else "image-level labels",
        per_class=per_class,
        matched=results.matched,
    )


def evaluate_file(annotations: Path, detections: Path, labelled: int | None = None) -> Evaluation:
    """What ``hoi-distill evaluate --dataset hico-det`` runs: two paths in, figures out.

    Args:
        annotations: folder in HICO-DET's layout; its training split says which classes are rare.
        detections: Parquet file of detections on its test split.
        labelled: rare are the classes with few pairs in the first so many training pictures; default all of them.

    Raises:
        UserError: as :func:`stages.evaluate.detections.read_detections`, or from the dataset's loader.
    """
    from stages.data.hico_det import load_hico_det

    test = load_hico_det(annotations, "test", images=False)
    train = load_hico_det(annotations, "train", limit=labelled, images=False)
    vocabulary = _vocabulary(test)
    found = read_detections(detections, test.image_id, vocabulary.hois, len(vocabulary.objects), len(vocabulary.verbs))
    if (found.hoi < 0).any():
        row = int((found.hoi < 0).argmax())
        raise UserError(f"{detections}: row {row}: hoi is -1, but every HICO-DET detection names one of its classes")
    counts = training_pairs(train)
    return evaluate_hico_det(test, found, counts < RARE_BELOW, counts)


def _vocabulary(annotations: Annotations) -> Vocabulary:
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: pictures without annotated classes cannot be evaluated")
    return annotations.vocabulary


def _truths(annotations: Annotations) -> Truths:
    """The split's pairs as columns; object categories of a picture from its image-level labels, else from its pairs."""
    vocabulary, image = _vocabulary(annotations), annotations.pair_image()
    image_objects = np.zeros((len(annotations), len(vocabulary.objects)), bool)
    if annotations.image_hois is None:
        image_objects[image, annotations.object] = True
    else:
        labelled, hoi = np.nonzero(annotations.image_hois)
        image_objects[labelled, vocabulary.hois[hoi, 1]] = True
    return Truths(image, annotations.human_box, annotations.object_box, annotations.hoi.astype(np.int64), image_objects)


def _means(results: ClassResults, rare: np.ndarray) -> dict[str, float | None]:
    with_pairs = results.pairs > 0
    sets = {"full": with_pairs, "rare": with_pairs & rare, "non_rare": with_pairs & ~rare}
    return {name: _percent(results.ap[chosen].mean()) if chosen.any() else None for name, chosen in sets.items()}


def _percent(fraction: float) -> float | None:
    return None if np.isnan(fraction) else round(100 * float(fraction), 6)
