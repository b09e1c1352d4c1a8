"""A closed vocabulary as it is spoken: which words name its objects, and which phrases its verbs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.derived.lexicon.words import noun_lemma, plurals, tables, tokenise, verb_forms

PERSON_SPELLING = "person"
ANIMATE = frozenset(["person", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"])
OTHER = -2
"""Stands for what only contains an object's name: a bus stop, a toy truck."""
_SLOT = re.compile(r"_(?:obj|instr)$")


class Lexicon:
    """Names and phrases of a vocabulary, ready to be looked up.

    Args:
        verbs: names in HICO's spelling (``talk_on``) or V-COCO's slots (``sit_instr``). ``no_interaction`` is never read
            from a sentence. A verb of another vocabulary is known by its own name.
        objects: names with underscores or spaces; ``person`` if people can be acted upon.
        hois: the allowed (verb index, object index).

    Attributes:
        person: the object index of ``person``, -1 where the vocabulary lacks it.
        animate: object indices of those that act themselves.
    """

    def __init__(self, verbs: Sequence[str], objects: Sequence[str], hois: Sequence[tuple[int, int]]) -> None:
        self.verbs, self.objects = tuple(verbs), tuple(objects)
        self.allowed = frozenset((int(verb), int(obj)) for verb, obj in hois)
        self.person = self.objects.index(PERSON_SPELLING) if PERSON_SPELLING in self.objects else -1
        self.animate = frozenset(i for i, name in enumerate(objects) if name in ANIMATE) | {self.person}
        self._object_table, self._verb_table = tables()
        self._names: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for tokens, index in self._spoken_objects():
            self._names.setdefault(tokens[0], []).append((tokens, index))
        for found in self._names.values():
            found.sort(key=lambda name: -len(name[0]))  # the longest wins: teddy bear before bear
        self._phrases: dict[tuple[str, ...], list[tuple[int, int | None, bool]]] = {}
        self._implied: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._spoken_verbs()
        self._forms: dict[str, dict[str, frozenset[str]]] = {}
        for lemma in dict.fromkeys(phrase[0] for phrase in (*self._phrases, *self._implied)):
            for spelling, tags in verb_forms(lemma).items():
                self._forms.setdefault(spelling, {})[lemma] = tags

    def _spoken_objects(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Every spelling of every object, once: an object's own name is never another's synonym."""
        taken: set[tuple[str, ...]] = set()
        names = [re.sub(r"\s*\(.*", "", name.replace("_", " ")) for name in self.objects]
        table = self._object_table
        spoken = [*((name, i) for i, name in enumerate(names)), *((name, OTHER) for name in table["other"])]
        spoken += [(other, i) for i, name in enumerate(names) for other in table["objects"].get(name, ())]
        spoken += [(name, self.person) for name in table["people"]]
        for name, index in spoken:
            for form in plurals(name):
                words = form.split(" ")
                for variant in (form, "-".join(words[:2]) + " " + " ".join(words[2:])):
                    tokens = tuple(tokenise(variant))
                    if tokens and tokens not in taken:
                        taken.add(tokens)
                        yield tokens, index

    def _spoken_verbs(self) -> None:
        table, also = self._verb_table["verbs"], self._verb_table["also"]
        objects = {name.replace(" ", "_"): i for i, name in enumerate(self.objects)}
        for index, name in enumerate(self.verbs):
            if name == NO_INTERACTION:
                continue
            own = _SLOT.sub("", name).replace("_", " ")
            for phrase in (own, *table.get(name, ()), *(other for up in also.get(name, ()) for other in table[up])):
                words, _, condition = phrase.partition(" @")
                if condition and condition not in objects:
                    continue
                key = phrase_key(tokenise(words))
                entry = (index, objects.get(condition), words == own)
                if entry not in self._phrases.setdefault(key, []):
                    self._phrases[key].append(entry)
        for phrase, (obj, names) in self._verb_table["implied"].items():
            for verb in names:
                if verb in self.verbs and (pair := (self.verbs.index(verb), objects.get(obj, -1))) in self.allowed:
                    self._implied.setdefault(phrase_key(tokenise(phrase)), []).append(pair)

    def name(self, obj: int) -> str:
        """An object's name; "person" for people where the vocabulary has no such object."""
        return self.objects[obj] if obj >= 0 else PERSON_SPELLING

    def object_at(self, words: Sequence[str], at: int) -> tuple[int, int] | None:
        """``(object index or OTHER, end)`` of the longest name that begins at a word, or None."""
        for tokens, index in self._names.get(words[at], ()):
            if len(tokens) == 1 or tuple(words[at : at + len(tokens)]) == tokens:
                return index, at + len(tokens)
        return None

    def verb_forms(self, spelling: str) -> dict[str, frozenset[str]]:
        """``{lemma: forms}`` of the vocabulary's verbs that a word may be, {} where it is none."""
        return self._forms.get(spelling, {})

    def meant(self, key: Sequence[str], obj: int) -> list[int]:
        """The verbs that a phrase ("sit", "on") means with an object; where one bears the phrase as its name, that one."""
        found = [
            (verb, own)
            for verb, condition, own in self._phrases.get(tuple(key), ())
            if condition in (None, obj) and (verb, obj) in self.allowed
        ]
        return [verb for verb, own in found if own] or [verb for verb, _ in found]

    def implied(self, key: Sequence[str]) -> list[tuple[int, int]]:
        """The (verb, object) that a phrase means without naming the object: "surfing"."""
        return self._implied.get(tuple(key), [])


def phrase_key(words: Sequence[str]) -> tuple[str, ...]:
    """Words of a phrase as looked up: its verb, then nouns in the singular."""
    return (words[0], *map(noun_lemma, words[1:]))
