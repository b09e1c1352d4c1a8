"""Phrases that no table has, placed by text embeddings: CL-HOI's soft alignment as reconstructed for this project.

The paper's own rule is unknown. Here a phrase is put into the prompts' own template and compared with the prompts of the
verbs that are valid for its object; an object without a name in the vocabulary is compared with the objects' prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from hoi_distill.stages.data.prompts import NO_INTERACTION, interaction_prompt, object_prompt
from hoi_distill.stages.derived.lexicon.findings import Drop
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon, phrase_key
from hoi_distill.stages.derived.lexicon.words import participle

Embed = Callable[[str], np.ndarray]
"""A text's unit vector, float32 ``[E]``."""


def verb_participle(name: str) -> str:
    """ "sitting_on" of "sit_on", "hitting" of "hit_obj"."""
    head, *rest = name.removesuffix("_obj").removesuffix("_instr").split("_")
    return "_".join([participle(head), *rest])


def prompts(lexicon: Lexicon) -> dict[tuple[int, int], str]:
    """The prompt of every interaction but those without a verb: "a photo of a person riding a bicycle"."""
    return {
        (verb, obj): interaction_prompt(name, verb_participle(name), lexicon.objects[obj])
        for verb, obj in sorted(lexicon.allowed)
        if (name := lexicon.verbs[verb]) != NO_INTERACTION
    }


class Aligner:
    """Nearest interaction of the vocabulary.

    Args:
        lexicon: The vocabulary.
        embed: The text encoder. It gets one text at a time, so that no answer depends on the batch.
        threshold: The least cosine that counts.
    """

    def __init__(self, lexicon: Lexicon, embed: Embed, threshold: float) -> None:
        self.lexicon, self.embed, self.threshold = lexicon, embed, threshold
        self.prompts = prompts(lexicon)
        self.nearest = lru_cache(maxsize=100_000)(self._nearest)
        self.vector = lru_cache(maxsize=20_000)(embed)

    def place(self, drop: Drop) -> tuple[list[tuple[int, int]], float]:
        """The interactions nearest to a dropped phrase, and their weight.

        There is mostly one, and none below the threshold. The weight is the cosine of the verb's phrase times that of
        the object; either is 1 if the vocabulary has it.
        """
        return ([], 0.0) if drop.doing is None else self.nearest(*drop.doing, drop.obj)

    def _nearest(self, lemma: str, preposition: str, obj: int | str) -> tuple[list[tuple[int, int]], float]:
        weight = 1.0
        if isinstance(obj, str):
            known = [object_prompt(name) for name in self.lexicon.objects]
            found, weight = self._best(object_prompt(obj), known)
            if weight < self.threshold:
                return [], 0.0
            obj = found
            key = (lemma, preposition) if preposition else (lemma,)
            if exact := self.lexicon.meant(phrase_key(key), obj):
                return [(verb, obj) for verb in exact], weight
        valid = [pair for pair in self.prompts if pair[1] == obj]
        if not valid:
            return [], 0.0
        doing = " ".join(filter(None, ["" if lemma == "be" else participle(lemma), preposition]))
        phrase = interaction_prompt(doing, doing, self.lexicon.name(obj))
        best, cosine = self._best(phrase, [self.prompts[pair] for pair in valid])
        return ([valid[best]], weight * cosine) if cosine >= self.threshold else ([], 0.0)

    def _best(self, text: str, others: Sequence[str]) -> tuple[int, float]:
        """Index of the nearest of the others (the first of equals) and its cosine."""
        cosines = np.stack([self.vector(other) for other in others]) @ self.vector(text)
        best = int(cosines.argmax())
        return best, min(float(cosines[best]), 1.0)
