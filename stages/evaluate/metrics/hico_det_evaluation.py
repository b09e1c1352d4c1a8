"""HICO-DET's metrics in percent, as a training reports them and ``hoi-distill evaluate`` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.stages.data.sampling.splits import ZeroShotSplit
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL, Convention
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.hico_det import ClassResults, GroundTruth, hico_det
from hoi_distill.stages.evaluate.metrics.training_pairs import means_by_pairs, pair_groups
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary

Means = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class HicoDetEvaluation:
    """The metrics of one detections file, in percent.

    Attributes:
        dataset: its name.
        split: its name.
        convention: the switches.
        counts: numbers of images, pairs, detections, classes, rare classes and classes without a test pair.
        default: mean average precision over ``full``, ``rare`` and ``non_rare`` classes; None for a set in which no
            class has a pair. Classes without test pairs have no average precision and enter no mean.
        known_object: the same of the known-object setting.
        known_object_from: the labels that say which images show an object.
        per_class: one record a class, in class order: hoi, verb, object (names), rare, training_pairs (None if not
            known), pairs, detections, found, recall, ap, ap_known_object; of a zero-shot split also unseen.
        by_training_pairs: the default setting's mean and number of classes, by group of training pairs
            (:mod:`hoi_distill.stages.evaluate.metrics.training_pairs`); ``{}`` where no class has a known training pair.
        zero_shot: the split's name and the default setting's means over its ``unseen``, ``seen`` and all classes.
        sets: ``bool [H]`` classes of each mean, by its name.
        matched: ``int64 [D]`` row of the annotated pair that each detection found, -1 for a false positive; not in the
            JSON.
        counted: ``bool [D]`` whether the convention counts a detection; not in the JSON.
        ranking: the counted detections of the default setting; not in the JSON.
        known_object_ranking: those of the known-object setting; not in the JSON.
    """

    dataset: str
    split: str
    convention: Convention
    counts: dict[str, int]
    default: Means
    known_object: Means
    known_object_from: str
    per_class: list[dict[str, Any]]
    by_training_pairs: dict[str, dict[str, Any]]
    zero_shot: dict[str, Any] | None
    sets: dict[str, np.ndarray]
    matched: np.ndarray
    counted: np.ndarray
    ranking: Ranking
    known_object_ranking: Ranking

    def as_json(self) -> dict[str, Any]:
        """The record as JSON; metrics are rounded to six decimals."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "convention": self.convention.name,
            "definition": self.convention.description,
            "switches": self.convention.switches(),
            "counts": self.counts,
            "default": self.default,
            "known_object": self.known_object,
            "known_object_from": self.known_object_from,
            **({} if self.zero_shot is None else {"zero_shot": self.zero_shot}),
            **({"by_training_pairs": self.by_training_pairs} if self.by_training_pairs else {}),
            "per_class": self.per_class,
        }


def training_pairs(annotations: Annotations) -> np.ndarray:
    """Annotated pairs of each class in a training split, ``int64 [H]``."""
    return np.bincount(annotations.classified().hoi, minlength=len(_vocabulary(annotations)))


def evaluate_hico_det(
    annotations: Annotations,
    detections: HoiDetections,
    rare: np.ndarray,
    *,
    training: np.ndarray | None = None,
    convention: Convention = OFFICIAL,
    zero_shot: ZeroShotSplit | None = None,
) -> HicoDetEvaluation:
    """Evaluate by HICO-DET's protocol (:mod:`hoi_distill.stages.evaluate.metrics.hico_det`).

    Args:
        annotations: the test split. Without image-level labels (``image_hois``), the annotated pairs say which images
            show an object; ``known_object_from`` records it.
        detections: ``image`` counts images of this split.
        rare: ``bool [H]``.
        training: ``int [H]`` training pairs of each class, for the record.
        convention: the switches.
        zero_shot: a split of the vocabulary's classes, for its means.

    Raises:
        UserError: the images have no annotated classes.
    """
    vocabulary, gt = _vocabulary(annotations), ground_truth_of(annotations)
    hois = vocabulary.hois.astype(np.int64)
    results = hico_det(detections, gt, hois[:, 1], convention)
    default, known = results.default, results.known_object
    averaged = convention.averaged([vocabulary.verbs[verb] for verb in hois[:, 0]])
    sets = {"full": averaged, "rare": averaged & rare, "non_rare": averaged & ~rare}
    per_class = [
        {
            "hoi": hoi,
            "verb": vocabulary.verbs[verb],
            "object": vocabulary.objects[obj],
            "rare": bool(rare[hoi]),
            **({} if zero_shot is None else {"unseen": bool(zero_shot.unseen[hoi])}),
            "training_pairs": None if training is None else int(training[hoi]),
            "pairs": int(default.pairs[hoi]),
            "detections": int(default.detections[hoi]),
            "found": int(default.found[hoi]),
            "recall": _percent(default.recall[hoi]),
            "ap": _percent(default.ap[hoi]),
            "ap_known_object": _percent(known.ap[hoi]),
        }
        for hoi, (verb, obj) in enumerate(hois)
    ]
    sets |= {name: averaged & chosen for name, chosen in pair_groups(training).items()}
    unseen_means = None
    if zero_shot is not None:
        sets |= {"unseen": averaged & zero_shot.unseen, "seen": averaged & ~zero_shot.unseen}
        unseen_means = {
            "split": zero_shot.name,
            **_means(default, {key: sets[key] for key in ("unseen", "seen", "full")}),
        }
    by_image = convention.known_object == "image_level" and annotations.image_hois is not None
    ordinary = {key: sets[key] for key in ("full", "rare", "non_rare")}
    return HicoDetEvaluation(
        dataset=annotations.name,
        split=annotations.split,
        convention=convention,
        counts={
            "pictures": len(annotations),
            "pairs": len(gt.hoi),
            "detections": len(detections),
            "classes": len(hois),
            "rare_classes": int(np.sum(rare)),
            "classes_without_pairs": int((default.pairs == 0).sum()),
        },
        default=_means(default, ordinary),
        known_object=_means(known, ordinary),
        known_object_from="image-level labels" if by_image else "annotated pairs",
        per_class=per_class,
        by_training_pairs=means_by_pairs(per_class, averaged),
        zero_shot=unseen_means,
        sets=sets,
        matched=np.append(np.flatnonzero(annotations.hoi >= 0), -1)[results.matched],
        counted=results.counted,
        ranking=results.ranking,
        known_object_ranking=results.known_object_ranking,
    )


def ground_truth_of(annotations: Annotations) -> GroundTruth:
    """The split's pairs that belong to a class.

    The object categories of an image come from its image-level labels, without those from its annotated pairs.
    """
    annotations = annotations.classified()
    vocabulary, image = _vocabulary(annotations), annotations.pair_image()
    image_objects = np.zeros((len(annotations), len(vocabulary.objects)), bool)
    if annotations.image_hois is None:
        image_objects[image, annotations.object] = True
    else:
        labelled, hoi = np.nonzero(annotations.image_hois)
        image_objects[labelled, vocabulary.hois[hoi, 1]] = True
    return GroundTruth(
        image, annotations.human_box, annotations.object_box, annotations.hoi.astype(np.int64), image_objects
    )


def _vocabulary(annotations: Annotations) -> Vocabulary:
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: images without annotated classes cannot be evaluated")
    return annotations.vocabulary


def _means(results: ClassResults, sets: dict[str, np.ndarray]) -> Means:
    with_pairs = results.pairs > 0
    return {
        name: _percent(results.ap[with_pairs & chosen].mean()) if (with_pairs & chosen).any() else None
        for name, chosen in sets.items()
    }


def _percent(fraction: float) -> float | None:
    return None if np.isnan(fraction) else round(100 * float(fraction), 6)
