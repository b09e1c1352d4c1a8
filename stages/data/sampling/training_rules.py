"""What a zero-shot training may see of its annotations: the two published rules, which differ.

Both take every annotation of an unseen interaction away, and then the images that have none left. Image-level labels
of unseen interactions go too. In both, detectors know all objects, and the unseen classes' names may be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.ops.boxes import iou
from hoi_distill.storage.errors import UserError

TrainingRule = Callable[[Annotations, np.ndarray], Annotations]


def ada_cm(annotations: Annotations, unseen: np.ndarray) -> Annotations:
    """Unseen annotations go; an image stays with at least one seen (ADA-CM, CMMP, LAIN, HOLa).

    A pair that is no class (hoi -1) stays if its image does, but holds no image.

    Args:
        annotations: All of them.
        unseen: bool ``[H]``, of the annotations' vocabulary.

    Raises:
        UserError: If ``unseen`` is of another vocabulary.
    """
    return _keep(annotations, unseen, ~_is_unseen(annotations, unseen))


def gen_vlkt(annotations: Annotations, unseen: np.ndarray, overlap: float = 0.5) -> Annotations:
    """As :func:`ada_cm`, and with an unseen annotation all others of the same human and object go (GEN-VLKT, BC-HOI).

    ``anno_bbox.mat`` draws the boxes anew for every verb, a few pixels off: with an overlap of 1 this rule would take
    nothing more there. In the PPDM/QPIC JSON, which GEN-VLKT reads, they are merged, and 1 is its rule to the letter.

    Args:
        annotations: All of them.
        unseen: bool ``[H]``, of the annotations' vocabulary.
        overlap: The IoU of both boxes, of one object category in one image, from which two annotations are of the same
            human and object.
    """
    is_unseen = _is_unseen(annotations, unseen)
    left, right = _same_category(annotations, np.flatnonzero(is_unseen))
    shared = iou(annotations.human_box[left], annotations.human_box[right]) >= overlap
    shared &= iou(annotations.object_box[left], annotations.object_box[right]) >= overlap
    gone = is_unseen.copy()
    gone[right[shared]] = True
    return _keep(annotations, unseen, ~gone)


RULES: dict[str, TrainingRule] = {"ada-cm": ada_cm, "gen-vlkt": gen_vlkt}


def training_rule(name: str = "ada-cm") -> TrainingRule:
    """The rule of that name.

    Raises:
        UserError: With the names of the rules, for any other name.
    """
    if name not in RULES:
        raise UserError(f"no zero-shot training rule {name!r}; there are {', '.join(RULES)}")
    return RULES[name]


def _is_unseen(annotations: Annotations, unseen: np.ndarray) -> np.ndarray:
    """bool ``[P]``; hoi -1 is not."""
    classes = 0 if annotations.vocabulary is None else len(annotations.vocabulary)
    if np.shape(unseen) != (classes,):
        raise UserError(
            f"{annotations.name}: {classes} interactions, but unseen ones are marked among {np.size(unseen)}; "
            "zero-shot splits are of HICO-DET's 600"
        )
    return np.append(unseen, False)[annotations.hoi]


def _same_category(annotations: Annotations, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of int `rows` with each annotation of its image and object category: two int64 [J] of rows."""
    key = annotations.pair_image() * (int(annotations.object.max(initial=0)) + 2) + annotations.object + 1
    order = np.argsort(key, kind="stable")
    first, last = (np.searchsorted(key[order], key[rows], side) for side in ("left", "right"))
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(rows, counts), order[np.repeat(first, counts) + within]


def _keep(annotations: Annotations, unseen: np.ndarray, rows: np.ndarray) -> Annotations:
    """The pairs of bool `rows` [P], and the images that have one of a class among them."""
    held = np.bincount(annotations.pair_image()[rows & (annotations.hoi >= 0)], minlength=len(annotations)) > 0
    labels = annotations.image_hois
    seen = replace(annotations, image_hois=None if labels is None else labels & ~np.asarray(unseen))
    return seen.with_pairs(rows).take(np.flatnonzero(held))
