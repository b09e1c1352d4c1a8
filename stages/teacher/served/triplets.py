"""Triplets that a model writes as JSON: no English has to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.triplet_cells import TRIPLETS, UNKNOWN_OBJECT, UNKNOWN_PAIR, UNKNOWN_VERB
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.data.word_lists import name_of
from hoi_distill.stages.keys import Columns, Count
from hoi_distill.stages.stage import ArrowOutput, Values
from hoi_distill.stages.teacher.served.endpoint import Request
from hoi_distill.stages.teacher.served.replies import NoAnswer, text_of
from hoi_distill.stages.teacher.served.stage import INSTALL, Served
from hoi_distill.storage.digests import fingerprint

__all__ = ["INSTALL", "ServedTriplets"]

QUESTION = (
    "Which interactions of people with objects does the image show? Answer with JSON alone: "
    '{"interactions": [{"verb": "ride", "object": "bicycle"}]}, and an empty list if there is none.'
)
_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*```\s*$", re.DOTALL)


class Cell(TypedDict):
    """A cell of the table, as Arrow takes it (:data:`hoi_distill.stages.data.triplet_cells.TRIPLETS`)."""

    verb: list[int]
    object: list[int]
    weight: list[float]
    phrase: list[str]
    dropped: list[dict[str, str]]


class ServedTriplets(Served):
    """Triplets that a model behind a server writes as JSON, held to a schema of the vocabulary. Each column is a question.

    A cell is that of the stage ``triplets``, with weight 1, so that the tables below read either. The server is told the
    schema; one that heeds it can write no verb and no object but the vocabulary's. What is written nevertheless, or is no
    interaction of the vocabulary, is dropped with its reason. An answer that is no JSON of this form is a recorded failure.
    """

    name = "triplets"
    output = ArrowOutput(TRIPLETS)

    class Config(Served.Config):
        columns: Columns = (QUESTION,)
        """The questions, in the very words that are put."""
        max_new_tokens: Count = 512
        """Where an answer is cut; JSON that is cut is a failure."""
        form: Literal["json_schema", "json_object", "text"] = "json_schema"
        """What the server is told of the answer's form: the schema, that it is JSON, or nothing, for servers that refuse
        the others."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.form = config.form
        self.verbs = {verb: number for number, verb in enumerate(vocabulary.verbs) if verb != NO_INTERACTION}
        self.objects = {obj: number for number, obj in enumerate(vocabulary.objects)}
        self.hois = {(int(verb), int(obj)) for verb, obj in vocabulary.hois}

    @override
    def parameters(self) -> dict[str, Any]:
        vocabulary = {"verbs": self.verbs, "objects": self.objects, "hois": sorted(self.hois)}
        return {**super().parameters(), "form": self.form, "vocabulary": fingerprint(vocabulary)}

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer: a list of a verb and an object each."""
        said = {"verb": self.verbs, "object": self.objects}
        names = {
            key: {"type": "string", "enum": [name.replace("_", " ") for name in known]} for key, known in said.items()
        }
        item = _closed(names)
        return _closed({"interactions": {"type": "array", "items": item}})

    @override
    def request(self, image: str, column: str) -> Request[Cell]:
        fields: dict[str, Any] = {}
        if self.form == "json_schema":
            named = {"name": "interactions", "strict": True, "schema": self.schema()}
            fields = {"response_format": {"type": "json_schema", "json_schema": named}}
        elif self.form == "json_object":
            fields = {"response_format": {"type": "json_object"}}
        return Request(lambda: self.body(image, column, **fields), lambda completion: self.read(text_of(completion)))

    def read(self, text: str) -> Cell:
        """The cell of an answer.

        Raises:
            NoAnswer: it is no JSON, or of another form.
        """
        cell = Cell(verb=[], object=[], weight=[], phrase=[], dropped=[])
        found: dict[tuple[int, int], str] = {}
        for verb, obj in interactions_of(text):
            phrase = f"{verb} {obj}"
            pair = self.verbs.get(name_of(verb), -1), self.objects.get(name_of(obj), -1)
            reason = UNKNOWN_VERB if pair[0] < 0 else UNKNOWN_OBJECT if pair[1] < 0 else UNKNOWN_PAIR
            if pair in self.hois:
                found.setdefault(pair, phrase)
            else:
                cell["dropped"].append({"phrase": phrase, "reason": reason})
        cell["verb"], cell["object"] = [verb for verb, _ in found], [obj for _, obj in found]
        cell["weight"], cell["phrase"] = [1.0] * len(found), list(found.values())
        return cell

    @override
    def cells(self, answers: Sequence[Cell | None]) -> Values:
        return pa.array(answers, self.output.type)


def interactions_of(text: str) -> list[tuple[str, str]]:
    """The (verb, object) pairs of an answer, which may stand in a fence of Markdown.

    Raises:
        NoAnswer: it is no JSON, or of another form.
    """
    fenced = _FENCE.match(text)
    try:
        said = json.loads(fenced[1] if fenced else text)
    except ValueError:
        raise NoAnswer(f"no JSON: {text[:80]!r}") from None
    listed = said.get("interactions") if isinstance(said, Mapping) else None
    if not isinstance(listed, list):
        raise NoAnswer(f"JSON without a list of interactions: {text[:80]!r}")
    found = []
    for each in listed:
        pair = (each.get("verb"), each.get("object")) if isinstance(each, Mapping) else (None, None)
        if not all(isinstance(name, str) for name in pair):
            raise NoAnswer(f"an interaction without a verb and an object: {json.dumps(each)[:80]}")
        found.append((str(pair[0]), str(pair[1])))
    return found


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
