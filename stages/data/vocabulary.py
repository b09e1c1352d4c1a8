"""What can be detected: objects, verbs and the valid (verb, object) combinations of a dataset, and how to say them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from storage.errors import UserError

NO_INTERACTION = "no_interaction"

_RESPELLED = {"controling": "controlling", "spining": "spinning"}  # as HICO-DET's own list has them
_NOUN_PHRASES = {  # where neither "a" nor "an" will do
    "person": "another person",
    "broccoli": "broccoli",
    "scissors": "a pair of scissors",
    "skis": "a pair of skis",
}


def noun_phrase(name: str) -> str:
    """An object's name with its article: "an umbrella", "a sports ball", "a pair of skis"."""
    words = name.replace("_", " ")
    return _NOUN_PHRASES.get(name) or f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The classes of a dataset; equal when their digests are.

    objects: the 80 COCO names in COCO's order, underscores for spaces, person = 0.
    verbs: V names, sorted (HICO-DET: 117, its own order), no_interaction included.
    hois: int16 [H, 2], (verb, object) of each interaction, in the order of the dataset's list.
    verb_ing: V present participles, underscores for spaces ("sitting_on"); no_interaction as it is.
    """

    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    hois: np.ndarray
    verb_ing: tuple[str, ...]

    @classmethod
    def from_actions(cls, actions: Iterable[tuple[str, str, str]], source: str) -> Vocabulary:
        """From (object, verb, participle) of each interaction in order, as in HICO-DET's ``list_action``.

        Raises UserError naming `source` and the entry for an object that COCO does not have or a repeated interaction.
        """
        rows = list(actions)
        participles = {verb: _RESPELLED.get(ing, ing) for _, verb, ing in rows}
        verbs = tuple(sorted(participles))
        verb_index = {verb: index for index, verb in enumerate(verbs)}
        seen: dict[tuple[str, str], int] = {}
        for entry, (name, verb, _) in enumerate(rows, start=1):
            if name not in OBJECT_INDEX:
                raise UserError(
                    f"{source}: list_action entry {entry} names an unknown object {name!r}; COCO's names are known"
                )
            if (first := seen.setdefault((verb, name), entry)) != entry:
                raise UserError(
                    f"{source}: list_action entry {entry} repeats entry {first} ({verb} {name}); remove one"
                )
        hois = np.array([(verb_index[verb], OBJECT_INDEX[name]) for name, verb, _ in rows], np.int16).reshape(-1, 2)
        return cls(COCO_OBJECTS, verbs, hois, tuple(participles[verb] for verb in verbs))

    def __len__(self) -> int:
        return len(self.hois)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def hoi_name(self, hoi: int) -> tuple[str, str]:
        """(verb, object) names of one interaction."""
        verb, name = self.hois[hoi]
        return self.verbs[verb], self.objects[name]

    def prompt(self, hoi: int) -> str:
        """One sentence: "a photo of a person riding a bicycle", or "... and a bicycle" for no_interaction."""
        verb, name = self.hois[hoi]
        doing = "and" if self.verbs[verb] == NO_INTERACTION else self.verb_ing[verb].replace("_", " ")
        return f"a photo of a person {doing} {noun_phrase(self.objects[name])}"

    def prompts(self) -> tuple[str, ...]:
        """The prompt of every interaction, in order."""
        return tuple(self.prompt(hoi) for hoi in range(len(self.hois)))

    @cached_property
    def _hoi_id(self) -> np.ndarray:
        table = np.full((len(self.verbs), len(self.objects)), -1, np.int16)
        table[self.hois[:, 0], self.hois[:, 1]] = np.arange(len(self.hois))
        table.flags.writeable = False
        return table

    def hoi_id(self) -> np.ndarray:
        """int16 [V, O], read-only: the interaction of a verb and an object, -1 where the dataset has none."""
        return self._hoi_id

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()

    def digest(self) -> str:
        """Hexadecimal SHA-256 over all names and their order."""
        return self._digest

    def _record(self) -> dict[str, Any]:
        return {
            "verbs": dict(zip(self.verbs, self.verb_ing, strict=True)),
            "interactions": [" ".join(self.hoi_name(hoi)) for hoi in range(len(self.hois))],
        }

    def save(self, path: str | Path, source: str = "") -> None:
        """Write as JSON: {"source", "verbs": {verb: participle}, "interactions": ["verb object", ...]}."""
        text = json.dumps({"source": source, **self._record()}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote. Raises UserError naming the file and the entry."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            participles = dict(record["verbs"])
            pairs = [tuple(text.split(" ")) for text in record["interactions"]]
            actions = [(name, verb, participles[verb]) for verb, name in pairs]
        except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a vocabulary file ({error}); expected verbs and interactions") from error
        except KeyError as error:
            raise UserError(f"{path}: no entry {error} in the vocabulary; every verb needs its participle") from error
        return cls.from_actions(actions, str(path))


@cache
def hico_vocabulary() -> Vocabulary:
    """HICO-DET's 600 interactions, 117 verbs, 80 objects."""
    return Vocabulary.load(Path(__file__).parent / "vocabularies" / "hico.json")
