"""The columns of the ``itm`` table that stand for verbs and objects. Planning reads this, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.vocabulary import Vocabulary

PromptForm = Literal["verb", "object", "full", "printed", "printed_verb", "printed_object"]
"""VLM-HOI's table 4: "... riding something", "a photo of a bicycle", "... riding a bicycle"; and the words that the paper
itself prints: "A person ride a bicycle" (Eq. 2), "A person is riding", "A person bicycle"."""
WHOLE = ("full", "printed")
"""The forms that name a verb together with its object."""


@dataclass(frozen=True, eq=False)
class ItmColumns:
    """The sentences that a teacher scores, and the class that each stands for.

    Shapes: P sentences, V verbs, O objects, C classes: the interactions of the vocabulary, then V classes "verb v, no
    visible object" (V-COCO has them). Object O means "no visible object".

    Attributes:
        prompts: P sentences, each once, in order of first use: columns of the ``itm`` table.
        column: int64 ``[C]``, the sentence of each class; -1 for a class without one.
        hois: int64 ``[C, 2]``, (verb, object) of each class.
        hoi_id: int64 ``[V, O + 1]``, the class of a verb and an object; -1 where there is none, and for
            ``no_interaction``: how well a sentence matches the whole image does not show that somebody does nothing.
    """

    prompts: tuple[str, ...]
    column: npt.NDArray[np.int64]
    hois: npt.NDArray[np.int64]
    hoi_id: npt.NDArray[np.int64]

    def of_classes(self, values: np.ndarray) -> npt.NDArray[np.float32]:
        """float ``[..., P]`` of the sentences to float32 ``[..., C]`` of the classes, NaN for a class without a sentence."""
        none = np.full((*values.shape[:-1], 1), np.nan, np.float32)
        return np.concatenate([values.astype(np.float32), none], -1)[..., self.column]


def columns_for(vocabulary: Vocabulary, form: PromptForm = "full", missing_object: bool = False) -> ItmColumns:
    """The columns of the ``itm`` table that stand for the classes of ``vocabulary`` in a form of prompt.

    Args:
        vocabulary: the interactions.
        form: the form of prompt.
        missing_object: whether a verb without a visible object has its verb sentence ("a photo of a person standing") in
            all forms but those of the object. Otherwise, and in those, it is not distilled.
    """
    verbs, objects = len(vocabulary.verbs), len(vocabulary.objects)
    alone = np.stack([np.arange(verbs), np.full(verbs, objects)], 1)
    hois = np.concatenate([vocabulary.hois.astype(np.int64), alone])
    if form.startswith("printed"):
        by_verb, by_object = vocabulary.printed_verb_prompts(), vocabulary.printed_object_prompts()
    else:
        by_verb, by_object = vocabulary.verb_prompts(), vocabulary.object_prompts()
    sentences: list[str | None]
    if form in WHOLE:
        sentences = list(vocabulary.prompts() if form == "full" else vocabulary.printed_prompts())
    elif form.endswith("verb"):
        sentences = [by_verb[verb] for verb in vocabulary.hois[:, 0]]
    else:
        sentences = [by_object[thing] for thing in vocabulary.hois[:, 1]]
    sentences += by_verb if missing_object and not form.endswith("object") else [None] * verbs
    scored = np.array([vocabulary.verbs[verb] != NO_INTERACTION for verb in hois[:, 0]])
    scored &= np.array([sentence is not None for sentence in sentences])
    place: dict[str | None, int] = {}
    column = np.full(len(hois), -1, np.int64)
    for index in np.flatnonzero(scored).tolist():
        column[index] = place.setdefault(sentences[index], len(place))
    hoi_id = np.full((verbs, objects + 1), -1, np.int64)
    hoi_id[hois[scored, 0], hois[scored, 1]] = np.flatnonzero(scored)
    return ItmColumns(tuple(filter(None, place)), column, hois, hoi_id)
