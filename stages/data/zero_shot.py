"""Which zero-shot splits a vocabulary has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hoi_distill.stages.data.sampling.splits import ZERO_SHOT_SPLITS, ZeroShotSplit, read_only, zero_shot
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.storage.errors import UserError


def splits_of(vocabulary: Vocabulary) -> dict[str, Callable[[], ZeroShotSplit]]:
    """The zero-shot splits of a vocabulary by name: HICO-DET's, the pico world's of the same names, and of SWiG-HOI
    "swig", the evaluated interactions without a training annotation; none of any other."""
    from hoi_distill.stages.data.pico.splits import PICO_SPLITS, pico_zero_shot
    from hoi_distill.stages.data.pico.world import pico_vocabulary
    from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency, swig_vocabulary

    if vocabulary == hico_vocabulary():
        return {name: partial(zero_shot, name) for name in ZERO_SHOT_SPLITS}
    if vocabulary == pico_vocabulary():
        return {name: partial(pico_zero_shot, name) for name in PICO_SPLITS}
    if vocabulary == swig_vocabulary():
        return {"swig": lambda: ZeroShotSplit("swig", read_only(swig_evaluated() & (swig_frequency() == 0)))}
    return {}


def split_of(vocabulary: Vocabulary, name: str) -> ZeroShotSplit:
    """The vocabulary's split of that name, upper or lower case.

    Raises:
        UserError: With the names that there are, for any other name.
    """
    splits = splits_of(vocabulary)
    key = next((own for own in splits if own.lower() == name.lower()), None)
    if key is None:
        there = f"there are {', '.join(splits)}" if splits else "this vocabulary has none"
        raise UserError(f"no zero-shot split {name!r}; {there}")
    return splits[key]()
