"""Interaction triplets from a teacher's sentences: plain text in, (verb, object, weight) of a vocabulary out.

Only what the vocabulary names is taken, in the exact word (any inflection): a sentence's subject must be a person, its
verb one that the vocabulary allows for the object. What is dropped is kept with its reason, so that the drop rate can
be read off the table. (CL-HOI publishes no parser. This one extracts, aligns to the closed lexicon, and never guesses.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from stages.stage import ArrowOutput, Batch, Stage, Values
from storage.digests import fingerprint

PEOPLE = tuple(
    re.findall(
        r"\w+",
        "person people human someone somebody anybody man men woman women child children kid boy girl guy "
        "lady gentleman baby toddler player rider driver skier surfer skateboarder snowboarder chef cook worker "
        "farmer he she they",
    )
)
SYNONYMS = {
    "bicycle": ("bike",), "motorcycle": ("motorbike",), "airplane": ("plane", "aeroplane", "jet"), "couch": ("sofa",),
    "tv": ("television", "tv monitor"), "cell phone": ("phone", "cellphone", "mobile phone", "smartphone", "telephone"),
    "dining table": ("table",), "potted plant": ("plant",), "sports ball": ("ball", "football", "basketball"),
    "hair drier": ("hair dryer", "hairdryer", "blow dryer"), "laptop": ("laptop computer",), "donut": ("doughnut",),
    "refrigerator": ("fridge",), "mouse": ("computer mouse",), "remote": ("remote control",), "skis": ("ski",),
    "teddy bear": ("teddy", "stuffed bear"), "cow": ("cattle",), "boat": ("canoe", "kayak"), "tie": ("necktie",),
    "baseball glove": ("baseball mitt",), "sheep": ("lamb",), "bird": ("parrot",), "dog": ("puppy",),
    "cat": ("kitten",),
}  # fmt: skip
"""Other names of COCO's objects; applied where the vocabulary has the object."""
ANIMATE = frozenset(re.findall(r"\w+", "person bird cat dog horse sheep cow elephant bear zebra giraffe"))
IRREGULAR = {
    "ride": ("rode", "ridden"), "hold": ("held",), "sit": ("sat",), "stand": ("stood",), "eat": ("ate", "eaten"),
    "drink": ("drank", "drunk"), "drive": ("drove", "driven"), "throw": ("threw", "thrown"), "catch": ("caught",),
    "feed": ("fed",), "read": (), "cut": (), "hit": (), "swing": ("swung",), "wear": ("wore", "worn"), "fly": ("flew",),
    "lie": ("lay", "lain"), "run": ("ran",), "make": ("made",), "break": ("broke", "broken"), "buy": ("bought",),
    "pay": ("paid",), "teach": ("taught",), "spin": ("spun",), "set": (), "light": ("lit",),
    "write": ("wrote", "written"),
}  # fmt: skip
DOUBLED = frozenset(
    re.findall(
        r"\w+", "sit run hit cut hug pet grip hop swim stop spin flip set drag chop stir zip control sip stab tag"
    )
)
SUBJECT_LINKS = frozenset(re.findall(r"\w+", "is are was were be been being who that which"))
REACH = 5
"""How many words may stand between a verb and its object (articles, adjectives, a preposition)."""

PREFIX_END = re.compile(r"[?:.]\s*$")


@dataclass(frozen=True)
class _Mention:
    """Words ``start:stop`` of a sentence that the lexicon knows, by ``index`` of its ``kind`` ("object" or "verb")."""

    kind: str
    index: int
    start: int
    stop: int


@dataclass
class Reading:
    """What one sentence says. ``triplets`` maps (verb, object) to the phrase; ``dropped`` lists (phrase, reason)."""

    triplets: dict[tuple[int, int], str] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)


class Lexicon:
    """Reads sentences by a closed vocabulary.

    Args:
        verbs: names in HICO's spelling (``talk_on``); ``no_interaction`` is never read from a sentence.
        objects: COCO names, with ``person`` if people can be acted upon.
        hois: the allowed (verb index, object index).
    """

    def __init__(self, verbs: Sequence[str], objects: Sequence[str], hois: Sequence[tuple[int, int]]) -> None:
        self.verbs, self.objects = tuple(verbs), tuple(objects)
        self.allowed = frozenset((int(verb), int(obj)) for verb, obj in hois)
        self.person = self.objects.index("person") if "person" in self.objects else -1
        self.animate = frozenset(i for i, name in enumerate(objects) if name in ANIMATE)
        entries: dict[str, list[tuple[tuple[str, ...], str, int]]] = {}
        for words, kind, index in self._entries():
            entries.setdefault(words[0], []).append((words, kind, index))
        # The longest phrase wins (teddy bear before bear), an object before a verb of equal length (a drink).
        self._entries_by_word = {
            word: sorted(found, key=lambda e: (-len(e[0]), e[1])) for word, found in entries.items()
        }

    def _entries(self) -> Iterator[tuple[tuple[str, ...], str, int]]:
        for index, name in enumerate(self.objects):
            plain = name.replace("_", " ")
            for other in (plain, *SYNONYMS.get(plain, ())):
                for word in (other, _plural(other)):
                    yield tuple(word.split()), "object", index
        for word in PEOPLE:
            yield (word,), "object", self.person
            yield (_plural(word),), "object", self.person
        for index, name in enumerate(self.verbs):
            if name != "no_interaction":
                head, *rest = name.split("_")
                for inflected in _inflections(head):
                    yield (inflected, *rest), "verb", index

    def read(self, text: str) -> Reading:
        """All triplets of a text whose subject is a person (or left out), each once, in order of mention."""
        reading = Reading()
        for sentence in re.split(r"[.;:!?\n]+", text.lower()):
            words = re.findall(r"[a-z'-]+|,", sentence)
            if words:
                self._read_sentence(words, reading)
        return reading

    def _read_sentence(self, words: list[str], reading: Reading) -> None:
        subject: int | None = None
        at = 0
        while at < len(words):
            mention = self._mention(words, at)
            if mention is None:
                at = self._unknown_verb(words, at, subject, reading) if words[at].endswith("ing") else at + 1
            elif mention.kind == "object":
                subject, at = mention.index, mention.stop
            else:
                group, objects, at = self._verb_phrase(words, mention)
                self._note(words[mention.start : at], group, objects, subject in (None, self.person), reading)
                if objects and objects[-1] in self.animate:
                    subject = objects[-1]  # "watching a man ride a horse"; a thing acts on nothing, so keep the person

    def _verb_phrase(self, words: list[str], first: _Mention) -> tuple[list[int], list[int], int]:
        """Verbs joined by "and", the objects that follow, and where the phrase ends."""
        group, at = [first.index], first.stop
        while at + 1 < len(words) and words[at] in ("and", "or", ","):
            other = self._mention(words, at + 1)
            if other is None or other.kind != "verb":
                break
            group, at = [*group, other.index], other.stop
        found = self._next_object(words, at)
        if found is None:
            return group, [], at
        objects, at = [found.index], found.stop
        while at < len(words) and words[at] in ("and", "or", ","):
            other = self._next_object(words, at + 1)
            if other is None or other.index == self.person or self._begins_clause(words, other.stop):
                break
            objects, at = [*objects, other.index], other.stop
        return group, objects, at

    def _begins_clause(self, words: list[str], at: int) -> bool:
        """Whether what stands before ``at`` is the subject of a verb that follows."""
        if at >= len(words):
            return False
        mention = self._mention(words, at)
        return (
            words[at] in SUBJECT_LINKS or words[at].endswith("ing") or (mention is not None and mention.kind == "verb")
        )

    def _next_object(self, words: list[str], at: int) -> _Mention | None:
        for position in range(at, min(at + REACH, len(words))):
            if words[position] in ("and", "or", ",", *SUBJECT_LINKS):
                return None
            mention = self._mention(words, position)
            if mention is not None:
                return mention if mention.kind == "object" else None
        return None

    def _unknown_verb(self, words: list[str], at: int, subject: int | None, reading: Reading) -> int:
        found = self._next_object(words, at + 1)
        if found is None or subject not in (None, self.person):
            return at + 1
        reading.dropped.append((" ".join(words[at : found.stop]), "the vocabulary has no such verb"))
        return found.stop

    def _note(self, words: list[str], group: list[int], objects: list[int], acts: bool, reading: Reading) -> None:
        phrase = " ".join(words)
        if not objects:
            reading.dropped.append((phrase, "no object of the vocabulary follows"))
        elif not acts:
            reading.dropped.append((phrase, "the subject is not a person"))
        else:
            for verb in group:
                for obj in objects:
                    if (verb, obj) in self.allowed:
                        reading.triplets.setdefault((verb, obj), phrase)
                    else:
                        name = self.objects[obj] if obj >= 0 else "person"
                        reading.dropped.append((phrase, f"the vocabulary has no {self.verbs[verb]} {name}"))

    def _mention(self, words: list[str], at: int) -> _Mention | None:
        for phrase, kind, index in self._entries_by_word.get(words[at], ()):
            if tuple(words[at : at + len(phrase)]) == phrase:
                return _Mention(kind, index, at, at + len(phrase))
        return None


class Triplets(Stage):
    """Triplets read from the captions table; pure text, so it needs neither pictures nor a GPU.

    Each column is a column of the captions table. A question that the teacher continued is read together with its
    continuation; one that ends in a colon or a question mark is not part of the answer. For a yes/no question the
    triplet is the question's own and its weight the teacher's score; else a triplet's weight is 1.

    Args:
        columns: the caption questions to read.
        verbs, objects, hois: the vocabulary, see :class:`Lexicon`.
        captions: the configuration's name of the captions table.
    """

    name = "triplets"
    decodes = False
    output = ArrowOutput(
        pa.struct(
            [
                ("verb", pa.list_(pa.int16())),
                ("object", pa.list_(pa.int16())),
                ("weight", pa.list_(pa.float32())),
                ("phrase", pa.list_(pa.string())),
                ("dropped", pa.list_(pa.struct([("phrase", pa.string()), ("reason", pa.string())]))),
            ]
        )
    )

    def __init__(
        self, columns: Sequence[str], verbs: Sequence[str], objects: Sequence[str], hois: Sequence[tuple[int, int]],
        *, captions: str = "captions", batch_size: int = 256,
    ) -> None:  # fmt: skip
        self.columns, self.inputs, self.batch_size = tuple(columns), (captions,), batch_size
        self.verbs, self.objects = tuple(verbs), tuple(objects)
        self.hois = tuple((int(verb), int(obj)) for verb, obj in hois)

    def parameters(self) -> dict[str, Any]:
        words = {"people": PEOPLE, "synonyms": SYNONYMS, "irregular": IRREGULAR, "doubled": sorted(DOUBLED)}
        return {
            "vocabulary": fingerprint({"verbs": self.verbs, "objects": self.objects, "hois": self.hois}),
            "words": fingerprint(words),
        }

    def needs(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.inputs[0]: (column,)}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        self.lexicon = Lexicon(self.verbs, self.objects, self.hois)

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        captions = inputs[self.inputs[0]]
        return {
            column: pa.array([self._cell(column, cell) for cell in captions[column].to_pylist()], self.output.type)
            for column in columns
        }

    def _cell(self, question: str, caption: dict[str, Any] | None) -> dict[str, Any] | None:
        if caption is None:  # a row of the batch that does not want this column
            return None
        score = caption.get("score")
        if score is not None:
            text = question
        else:
            text = caption["text"] if PREFIX_END.search(question) else f"{question} {caption['text']}"
        reading = self.lexicon.read(text)
        return {
            "verb": [verb for verb, _ in reading.triplets],
            "object": [obj for _, obj in reading.triplets],
            "weight": [1.0 if score is None else score] * len(reading.triplets),
            "phrase": list(reading.triplets.values()),
            "dropped": [{"phrase": phrase, "reason": reason} for phrase, reason in reading.dropped],
        }


def _plural(noun: str) -> str:
    *rest, head = noun.split()
    if head in ("person", "people", "men", "women", "children", "someone", "somebody", "anybody", "he", "she", "they"):
        return noun
    if head.endswith("fe"):
        head = head[:-2] + "ves"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    elif head.endswith(("ch", "sh", "x", "ss")):
        head += "es"
    elif not head.endswith("s"):
        head += "s"
    return " ".join([*rest, head])


def _inflections(head: str) -> set[str]:
    """A verb's base, third person, gerund and past forms."""
    consonant_y = head.endswith("y") and head[-2:-1] not in tuple("aeiou")
    third = (
        head[:-1] + "ies" if consonant_y else head + ("es" if head.endswith(("ch", "sh", "s", "x", "o", "z")) else "s")
    )
    stem = head + head[-1] if head in DOUBLED else head
    if head.endswith("ie"):
        stem = head[:-2] + "y"
    elif head.endswith("e") and not head.endswith(("ee", "oe", "ye")):
        stem = head[:-1]
    regular = head[:-1] + "ied" if consonant_y else (head + "d" if head.endswith("e") else stem + "ed")
    return {head, third, stem + "ing", *IRREGULAR.get(head, (regular,))}
