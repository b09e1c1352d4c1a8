"""HICO-DET's classes by how often they were seen in training: pair counts, the rare set, the zero-shot splits; and
which zero-shot splits a vocabulary has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.storage.errors import UserError

_FILES = Path(__file__).parents[1] / "vocabularies"
ZERO_SHOT_SPLITS: tuple[str, ...] = ("RF-UC", "NF-UC", "UO", "UV", "UC0", "UC1", "UC2", "UC3", "UC4")
RARE_BELOW = 10
"""A class with fewer training pairs is rare (Chao et al., WACV 2018, section 5)."""


@cache
def hico_training_pairs() -> np.ndarray:
    """int64 ``[600]``, read-only: annotated pairs of each interaction in the complete training split; 117,871 in all."""
    record = json.loads((_FILES / "hico_training_pairs.json").read_text(encoding="utf-8"))
    return read_only(np.array(record["training_pairs"], np.int64))


@cache
def hico_rare() -> np.ndarray:
    """bool ``[600]``, read-only: the 138 rare interactions, those with fewer than 10 training pairs."""
    return read_only(hico_training_pairs() < RARE_BELOW)


@dataclass(frozen=True, eq=False)
class ZeroShotSplit:
    """Interactions of a vocabulary that training may not see.

    Attributes:
        name: One of :data:`ZERO_SHOT_SPLITS`, or "swig".
        unseen: bool ``[H]``, read-only; HICO-DET has 600.
    """

    name: str
    unseen: np.ndarray


@cache
def zero_shot(name: str) -> ZeroShotSplit:
    """The published split of that name; "rf-uc" will do for "RF-UC".

    RF-UC, NF-UC: 120 compositions of seen verbs and objects, rare first or frequent first. UO: every interaction with 12
    objects. UV: every interaction of 20 verbs. UC0 to UC4: five overlapping random folds of 120.

    Raises:
        UserError: With the names of the splits, for any other name.
    """
    key = name.upper()
    if key not in ZERO_SHOT_SPLITS:
        raise UserError(f"no zero-shot split {name!r}; there are {', '.join(ZERO_SHOT_SPLITS)}")
    record = json.loads((_FILES / "hico_zero_shot.json").read_text(encoding="utf-8"))[key]
    vocabulary = hico_vocabulary()
    verb, obj = vocabulary.hois.T
    unseen = np.isin(verb, [vocabulary.verbs.index(v) for v in record.get("unseen_verbs", ())])
    unseen |= np.isin(obj, [vocabulary.objects.index(o) for o in record.get("unseen_objects", ())])
    unseen[record.get("unseen_interactions", [])] = True
    return ZeroShotSplit(key, read_only(unseen))


def means(ap: np.ndarray, split: ZeroShotSplit) -> dict[str, float]:
    """Means of a value per class: ``{"unseen", "seen", "full"}``. The mean of no class is NaN.

    Args:
        ap: float ``[600]``. A class that is NaN (without annotated pairs) counts in no mean.
        split: The classes that are unseen.

    Raises:
        UserError: If ``ap`` is not of HICO-DET's 600 classes.
    """
    ap = np.asarray(ap, np.float64)
    if ap.shape != split.unseen.shape:
        raise UserError(
            f"zero-shot {split.name} is of HICO-DET's 600 interactions; here are values of shape {ap.shape}"
        )
    known = ~np.isnan(ap)
    groups = {"unseen": known & split.unseen, "seen": known & ~split.unseen, "full": known}
    return {name: float(ap[rows].mean()) if rows.any() else float("nan") for name, rows in groups.items()}


def read_only(array: np.ndarray) -> np.ndarray:
    """The array itself, which cannot be written any more."""
    array.flags.writeable = False
    return array
