"""The pico world's zero-shot splits, named and made as HICO-DET's: a rule each, nothing chosen by hand.

RF-UC and NF-UC take compositions of seen verbs and objects, rare first and frequent first: in that order an interaction is
taken if its verb and its object each stay in another interaction that is seen, until a fifth of all classes is unseen, the
share of HICO-DET's 120 of 600. Class frequency comes from the world's definition, not from a rendered sample, so that a
split is the same for every seed and size. ``no_interaction`` is no composition and stays seen.

UO and UV are HICO-DET's own lists as far as the pico world has them: every class of the objects dog and skateboard, every
class of the verbs dribble, feed and ride.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hoi_distill.stages.data.pico.classes import CO_LABELS, HOIS, PRIMARY, weights
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.sampling.splits import ZeroShotSplit, zero_shot
from hoi_distill.stages.data.vocabulary import hico_vocabulary

PICO_SPLITS: tuple[str, ...] = ("RF-UC", "NF-UC", "UO", "UV")
UNSEEN_SHARE = 0.2


def class_frequency() -> np.ndarray:
    """float64 [58]: how often, in relative terms, the training scenes are made to show each class; 0: no_interaction."""
    frequency = dict.fromkeys(HOIS, 0.0)
    for (verb, name), weight in zip(PRIMARY, weights(temper=1.0), strict=True):
        for also in (verb, *CO_LABELS.get((verb, name), ())):
            frequency[also, name] += weight
    return np.array(list(frequency.values()))


@cache
def pico_zero_shot(name: str) -> ZeroShotSplit:
    """The split of a name of PICO_SPLITS, over the 58 classes of ``pico_vocabulary``."""
    if name in ("RF-UC", "NF-UC"):
        frequency = class_frequency()
        unseen = _compositions(frequency if name == "RF-UC" else -frequency)
    else:
        hico = hico_vocabulary()
        published = {hico.hoi_name(hoi) for hoi in np.flatnonzero(zero_shot(name).unseen).tolist()}
        unseen = np.array([hoi in published for hoi in HOIS])
    unseen.flags.writeable = False
    return ZeroShotSplit(name, unseen)


def _compositions(key: np.ndarray) -> np.ndarray:
    """bool [58]: a fifth of the classes, lowest key first (ties in class order), no verb or object of them unseen."""
    seen = {hoi for hoi in HOIS if hoi[0] != NO_INTERACTION}
    unseen = np.zeros(len(HOIS), bool)
    for hoi in np.argsort(key, kind="stable").tolist():
        if unseen.sum() == round(UNSEEN_SHARE * len(HOIS)):
            break
        verb, name = HOIS[hoi]
        others = seen - {HOIS[hoi]}
        if HOIS[hoi] in seen and any(v == verb for v, _ in others) and any(n == name for _, n in others):
            seen, unseen[hoi] = others, True
    return unseen
