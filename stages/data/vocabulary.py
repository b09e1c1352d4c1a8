"""What can be detected: objects, verbs and the valid (verb, object) combinations of a dataset, and how to say them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.data.prompts import (
    NO_INTERACTION,
    action_phrase,
    interaction_prompt,
    interaction_question,
    object_prompt,
    printed_object_prompt,
    printed_prompt,
    printed_verb_prompt,
    this_one,
    verb_prompt,
)
from hoi_distill.storage.errors import UserError, did_you_mean
from hoi_distill.storage.files.atomic import write_atomically

_RESPELLED = {"controling": "controlling", "spining": "spinning"}  # as HICO-DET's own list has them


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The classes of a dataset; equal when their digests are.

    Attributes:
        objects: O names, underscores for spaces, person = 0. Most datasets have the 80 of COCO in COCO's order.
        verbs: V names in the dataset's own order (HICO-DET: 117, sorted, no_interaction included).
        hois: int16 ``[H, 2]``, (verb, object) of each interaction, in the order of the dataset's list. A verb that takes no
            object (V-COCO's "stand") is in none.
        verb_ing: V present participles, underscores for spaces ("sitting_on"); no_interaction as it is.
    """

    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    hois: np.ndarray
    verb_ing: tuple[str, ...]

    @classmethod
    def from_actions(
        cls,
        actions: Iterable[tuple[str, str, str]],
        source: str,
        objects: Sequence[str] = COCO_OBJECTS,
        verbs: Mapping[str, str] | None = None,
    ) -> Vocabulary:
        """From the interactions in their order, as in HICO-DET's ``list_action``.

        Args:
            actions: (object, verb, participle) of each interaction.
            source: Where they stand, for errors.
            objects: The names that may occur, in their order.
            verbs: All verbs in their order with their participles, where the dataset has an order of its own or verbs that
                take no object. By default those that occur, sorted.

        Raises:
            UserError: With ``source`` and the entry, for an unknown object or verb or a repeated interaction.
        """
        rows = list(actions)
        if verbs is None:
            verbs = dict(sorted((verb, _RESPELLED.get(ing, ing)) for _, verb, ing in rows))
        verb_index = {verb: index for index, verb in enumerate(verbs)}
        object_index = OBJECT_INDEX if tuple(objects) == COCO_OBJECTS else {name: i for i, name in enumerate(objects)}
        known = "COCO's names are known" if object_index is OBJECT_INDEX else f"there are {len(objects)} names"
        seen: dict[tuple[str, str], int] = {}
        for entry, (name, verb, _) in enumerate(rows, start=1):
            if name not in object_index:
                near = did_you_mean(name, object_index)
                raise UserError(f"{source}: list_action entry {entry} names an unknown object {name!r}{near}; {known}")
            if verb not in verb_index:
                near = did_you_mean(verb, verb_index)
                raise UserError(
                    f"{source}: list_action entry {entry} names an unknown verb {verb!r}{near}; list it in verbs"
                )
            if (first := seen.setdefault((verb, name), entry)) != entry:
                raise UserError(
                    f"{source}: list_action entry {entry} repeats entry {first} ({verb} {name}); remove one"
                )
        hois = np.array([(verb_index[verb], object_index[name]) for name, verb, _ in rows], np.int16).reshape(-1, 2)
        return cls(tuple(objects), tuple(verbs), hois, tuple(verbs.values()))

    def __len__(self) -> int:
        return len(self.hois)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest() == other.digest()

    @override
    def __hash__(self) -> int:
        return hash(self.digest())

    def hoi_name(self, hoi: int) -> tuple[str, str]:
        """(verb, object) names of one interaction."""
        verb, name = self.hois[hoi]
        return self.verbs[verb], self.objects[name]

    def prompt(self, hoi: int) -> str:
        """One sentence: "a photo of a person riding a bicycle", or "... and a bicycle" for no_interaction."""
        verb, name = self.hois[hoi]
        return interaction_prompt(self.verbs[verb], self.verb_ing[verb], self.objects[name])

    def prompts(self) -> tuple[str, ...]:
        """The prompt of every interaction, in order."""
        return tuple(self.prompt(hoi) for hoi in range(len(self.hois)))

    def actions(self) -> np.ndarray:
        """bool ``[H]``: the interactions that are not no_interaction.

        The prompt of no_interaction says only that person and object are both there, so an image's match with it is no
        answer.
        """
        return np.array([self.verbs[verb] != NO_INTERACTION for verb in self.hois[:, 0]], bool)

    def questions(self) -> dict[str, int]:
        """``{question: interaction}`` in order, "is there anybody riding a bicycle?".

        There is none about no_interaction: it is what remains where the others of its object are denied.
        """
        asked = np.flatnonzero(self.actions()).tolist()
        named = [(self.hois[hoi][0], self.hoi_name(hoi)) for hoi in asked]
        texts = [interaction_question(verb, self.verb_ing[index], name) for index, (verb, name) in named]
        return dict(zip(texts, asked, strict=True))

    def pair_questions(self) -> dict[str, int]:
        """``{column: verb}`` in order, "ride: riding {} (this bicycle, this horse); riding in {} (this boat)".

        Such a column stands for one question a human-object pair, with the words that are put for each object that the verb
        takes. There is none about no_interaction, nor about a verb without an object.
        """
        found: dict[str, int] = {}
        for verb in np.unique(self.hois[self.actions(), 0]).tolist():
            said: dict[str, list[str]] = {}
            for name in (self.objects[index] for index in self.hois[self.hois[:, 0] == verb, 1].tolist()):
                said.setdefault(self.action(verb, name), []).append(this_one(name))
            phrases = (f"{phrase} ({', '.join(objects)})" for phrase, objects in said.items())
            found[f"{self.verbs[verb]}: {'; '.join(phrases)}"] = verb
        return found

    def action(self, verb: int, name: str) -> str:
        """ "riding {}": what somebody who does a verb (its index) does with the object ``name``, which stands for ``{}``."""
        return action_phrase(self.verbs[verb], self.verb_ing[verb], name)

    def verb_prompts(self) -> tuple[str, ...]:
        """One sentence a verb, in order: "a photo of a person riding something", or "... standing" without object."""
        takes_object = np.isin(np.arange(len(self.verbs)), self.hois[:, 0])
        return tuple(map(verb_prompt, self.verbs, self.verb_ing, takes_object))

    def object_names(self) -> tuple[str, ...]:
        """The objects' names in order, spaces for underscores: "sports ball"."""
        return tuple(name.replace("_", " ") for name in self.objects)

    def object_prompts(self) -> tuple[str, ...]:
        """One sentence an object, in order: "a photo of a bicycle"."""
        return tuple(map(object_prompt, self.objects))

    def printed_prompts(self) -> tuple[str, ...]:
        """One sentence an interaction, in order, as VLM-HOI's Eq. 2 prints them: "A person ride a bicycle".

        V-COCO's verbs of one name ("hit" something, "hit" with it) share a sentence.
        """
        return tuple(printed_prompt(*self.hoi_name(hoi)) for hoi in range(len(self.hois)))

    def printed_verb_prompts(self) -> tuple[str, ...]:
        """One sentence a verb, in order: "A person is riding"."""
        return tuple(map(printed_verb_prompt, self.verb_ing))

    def printed_object_prompts(self) -> tuple[str, ...]:
        """One sentence an object, in order: "A person bicycle"."""
        return tuple(map(printed_object_prompt, self.objects))

    @cached_property
    def _hoi_id(self) -> np.ndarray:
        table = np.full((len(self.verbs), len(self.objects)), -1, np.int16)
        table[self.hois[:, 0], self.hois[:, 1]] = np.arange(len(self.hois))
        table.flags.writeable = False
        return table

    def hoi_id(self) -> np.ndarray:
        """int16 ``[V, O]``, read-only: the interaction of a verb and an object, -1 where the dataset has none."""
        return self._hoi_id

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()

    def digest(self) -> str:
        """Hexadecimal SHA-256 over all names and their order."""
        return self._digest

    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "verbs": dict(zip(self.verbs, self.verb_ing, strict=True)),
            "interactions": [" ".join(self.hoi_name(hoi)) for hoi in range(len(self.hois))],
        }
        if list(self.verbs) != sorted(self.verbs):
            record["verb_order"] = list(self.verbs)  # a digest sorts the keys of "verbs"
        if self.objects != COCO_OBJECTS:
            record["objects"] = list(self.objects)
        return record

    def save(self, path: str | Path, source: str = "") -> None:
        """Write as JSON: ``{"source", "verbs": {verb: participle}, "interactions": ["verb object", ...]}``.

        Where they are not the sorted verbs and COCO's objects, it also has "verb_order" and "objects".
        """
        text = json.dumps({"source": source, **self._record()}, indent=1)
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: With the file and the entry.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            participles = dict(record["verbs"])
            pairs = [tuple(text.split(" ")) for text in record["interactions"]]
            actions = [(name, verb, participles[verb]) for verb, name in pairs]
            verbs = {verb: participles[verb] for verb in record.get("verb_order", sorted(participles))}
            objects = tuple(record.get("objects", COCO_OBJECTS))
            if not all(isinstance(name, str) for name in (*verbs, *verbs.values(), *objects)):
                raise TypeError("a name that is no text")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: not a vocabulary file ({error}); expected verbs and interactions") from error
        except KeyError as error:
            raise UserError(f"{path}: no entry {error} in the vocabulary; every verb needs its participle") from error
        if objects[:1] != ("person",):
            raise UserError(
                f"{path}: objects: begins with {', '.join(objects[:1]) or 'none'}; the first must be person, who acts"
            )
        if twice := [name for name, count in Counter(objects).items() if count > 1]:
            raise UserError(f"{path}: objects: {twice[0]!r} is there twice; remove one")
        return cls.from_actions(actions, str(path), objects, verbs)


@cache
def hico_vocabulary() -> Vocabulary:
    """HICO-DET's 600 interactions, 117 verbs, 80 objects."""
    return Vocabulary.load(Path(__file__).parent / "vocabularies" / "hico.json")
