"""Reads a teacher's text sentence by sentence, whatever its form: prose, lists, tuples or JSON."""

from __future__ import annotations

import re

from hoi_distill.stages.derived.lexicon.findings import QUESTION, Drop, Reading
from hoi_distill.stages.derived.lexicon.lexicon import OTHER, Lexicon
from hoi_distill.stages.derived.lexicon.sentence import read_sentence
from hoi_distill.stages.derived.lexicon.words import ARTICLES, BE, clauses, plain

_FIELDS = re.compile(r"\s*(?:,|\||;|->|=>|:|\s-+\s)\s*")
_DASHES = re.compile(r"\s*(?:\||->|=>|\s-+\s)\s*")
_GROUP = re.compile(r"([<(\[{])([^<>()\[\]{}\n]*)[>)\]}]")
_KEYS = re.compile(
    r"\b(?:subject|verb|action|object|predicate|relation|relationship|interaction|target"
    r"|person(?= ?: ?(?:a |the )?[a-z]+ ?,)) ?: "
)
_BULLET = re.compile(r"^[\s>]*(?:[-+]+\s+|\(?\d{1,3}[.):]\s*|\(?[a-z][.)]\s+)+")


def read(text: str, lexicon: Lexicon) -> Reading:
    """All triplets of a text, each once, in order of mention. The same text always gives the same reading."""
    reading = Reading()
    antecedent: int | None = None  # of "it"
    for line in plain(text).split("\n"):
        for statement in _statements(_BULLET.sub("", line), lexicon):
            for words, question in clauses(statement):
                if question:
                    reading.dropped.append(Drop(" ".join(words), QUESTION))
                    continue
                findings, antecedent = read_sentence(words, lexicon, antecedent)
                reading.add(findings)
    return reading


def _statements(line: str, lexicon: Lexicon) -> list[str]:
    """A line as sentences: "<person, ride, horse>", "person | riding | horse" and JSON records are put into words."""
    found: list[str] = []

    def group(match: re.Match[str]) -> str:
        fields = [part for part in _FIELDS.split(match[2]) if re.search("[a-z]", part)]
        spoken = _as_sentence(fields, lexicon)
        if spoken is None and len(fields) > 1:
            found.extend(fields)
        if spoken is not None:
            found.append(spoken)
        if spoken is not None or len(fields) > 1:
            return " . "
        if match[1] == "(" and line[: match.start()][-1:].isalpha():  # hold(cup)
            return f" {match[2]} "
        return f", {match[2]} ," if match[1] == "(" and match[2].count(" ") > 1 else f" {match[2] * (match[1] != '(')} "

    rest = _KEYS.sub(" ", _GROUP.sub(group, line)) if line.count(":") > 1 else _GROUP.sub(group, line)
    for sentence in re.split(r"(?<=[.;])\s", rest):
        for split in (_DASHES, _FIELDS):
            spoken = _as_sentence([part for part in split.split(sentence.strip(" .")) if part], lexicon)
            if spoken is not None:
                found.append(spoken)
                break
        else:
            found.append(_DASHES.sub(" , ", sentence))
    return found


def _as_sentence(fields: list[str], lexicon: Lexicon) -> str | None:
    """Two or three fields put into a sentence: a verb and an object in either order, after a person. None for others."""
    if len(fields) not in (2, 3) or any(len(part) > 60 for part in fields):
        return None
    texts = [clean for part in fields if (clean := re.sub(r"[^a-z' ]+", " ", part).strip())]
    if len(texts) != len(fields):
        return None
    *subject, first, second = texts
    head, _, rest = first.partition(" ")
    if not subject and rest and (known := lexicon.object_at([head], 0)) and known[0] == lexicon.person:
        subject, first = [head], rest

    def obj(text: str) -> int | None:
        words = [word for word in text.split() if word not in ARTICLES]
        at = next((i for i in range(len(words)) if lexicon.object_at(words, i)), None)
        found = None if at is None else lexicon.object_at(words, at)
        return found[0] if found and found[1] == len(words) and found[0] != OTHER else None

    def verb(text: str) -> bool:
        words = [word for word in text.split() if word not in BE]
        at = 1 if words[:1] == ["not"] else 0
        return at < len(words) <= at + 3 and bool(lexicon.verb_forms(words[at])) and obj(text) is None

    if obj(second) is None and verb(second):
        first, second = second, first
    if not verb(first) or obj(second) is None:
        return None
    if not subject:
        return f"{first} the {second}"
    return f"a {subject[0]} is {first} the {second}" if obj(subject[0]) is not None else None
