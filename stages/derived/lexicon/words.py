"""English words as the reader needs them: sentences out of free text, inflections by a library, closed word classes.

Lemmas and inflections are lemminflect's, by part of speech; it carries its dictionary with it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lemminflect

LEMMATISER = f"lemminflect {version('lemminflect')}"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES = _set(
    "a an the this these those his her their its my our your some any each every another both all several many few "
    "two three four five six seven eight nine ten one half 's no"
)
PREPOSITIONS = _set(
    "on in at to of off with from by under over near behind beside between along across through down up out around "
    "against above about toward past beyond after before for during among alongside next_to in_front_of out_of like "
    "aboard away back within via"
)
PARTICLES = _set("up down out off over away back along around through together")
"""What may follow a verb without changing its meaning: "sitting down", "hosing off"."""
JOINS = _set("and or , & plus")
CLAUSES = _set("but while although though however whereas because yet as when where then so")
"""Words that open a clause, whose subject is the sentence's own unless it names another."""
BE = _set("is are was were be been being am")
AUXILIARIES = BE | _set("has have had having do does did will can")
RELATIVES = _set("who that which whom")
HEDGES = _set("may might could possibly perhaps maybe probably likely presumably would should if whether")
NEVER = _set("not never neither nor cannot nothing hardly")
NOBODY = _set("nobody noone none")
INTENTIONS = _set(
    "about ready prepare go try attempt want wait plan hope intend aim decide need wish like love learn able"
)
"""What makes of "to ride" a wish: the act itself is not shown."""
DEPICTIONS = _set("statue sculpture figurine poster drawing mural figure cartoon silhouette bust painting sketch")
FAKES = _set("toy stuffed fake")
PARTITIVES = _set(
    "piece slice bite bunch pair group couple plate stack pile set herd flock lot number variety row bit chunk half "
    "box tray basket bag kind type part side edge handle end rest top back lots couples lap"
)
"""Nouns whose "of" names the object itself: "a slice of pizza"."""

_COMPOUNDS = (
    (r"no one", "nobody"),
    (r"on top of|on to|onto|upon|atop|on (?:the |its |their )?(?:back|edge|side|end|arm|top|surface|seat) of", "on"),
    (r"into|inside of|inside|in to|in the (?:back|middle|center|bed|seat) of", "in"),
    (r"in front of", "in_front_of"),
    (r"next to|close to|adjacent to", "next_to"),
    (r"out of", "out_of"),
    (r"off of", "off"),
    (r"underneath|beneath|below", "under"),
    (r"towards?", "to"),
    (r"instead of|rather than|in place of", "instead_of"),
    (r"as well as", "and"),
    (r"t v", "tv"),
)
"""What several words, or several spellings, are as one token."""
_COMPOUND = re.compile(rf"\b(?:{'|'.join(f'({pattern})' for pattern, _ in _COMPOUNDS)})\b")
_CONTRACTIONS = {"'re": "are", "'ve": "have", "'ll": "will", "'m": "am", "'d": ""}
_IS = _set("he she it who that there what here where one everyone someone")
_TOKEN = re.compile(r"[a-z]+(?:[_'-][a-z]+)*|[,&]")
_MARKUP = re.compile(r"</?(?:p|b|i|u|s|em|strong|li|ul|ol|div|span|br|h\d|code|pre)\s*/?>")
_SENTENCE = re.compile(r"[^.;:!?]+[.;:!?]*")
_KEY = re.compile(r"[\"'][\w ]{1,20}[\"']\s*:")
_MARKS = str.maketrans({"’": "'", "‘": "'", "→": "->", "–": " - ", "—": " - "})
_LONGEST_WORD = 40


@dataclass(frozen=True)
class Word:
    """What the dictionary says of one word, in isolation.

    Attributes:
        verbs: (lemma, forms) pairs, forms among VB VBZ VBG VBD VBN.
        noun: Whether it may be a noun.
        only_noun: Whether it can be nothing else.
        plural: Whether it is a noun's plural.
        modifier: Whether it may be an adverb.
    """

    verbs: tuple[tuple[str, frozenset[str]], ...]
    noun: bool
    only_noun: bool
    plural: bool
    modifier: bool


@lru_cache(maxsize=50_000)
def word(text: str) -> Word:
    """The dictionary's entry; a word it lacks is a noun, or a verb where it ends in -ing."""
    lemmas: dict[str, tuple[str, ...]] = lemminflect.getAllLemmas(text) if text.isalpha() else {}
    verbs = tuple((lemma, forms) for lemma in lemmas.get("VERB", ()) if (forms := _forms(lemma).get(text)))
    if not lemmas and text.endswith("ing") and text.isalpha():
        verbs = tuple((lemma, frozenset({"VBG"})) for lemma in lemminflect.getAllLemmasOOV(text, "VERB")["VERB"])
    noun = "NOUN" in lemmas or not lemmas
    return Word(
        verbs,
        noun,
        only_noun=set(lemmas) == {"NOUN"},
        plural="NOUN" in lemmas and text not in lemmas["NOUN"],
        modifier="ADV" in lemmas or text.endswith("ly"),
    )


@cache
def _forms(lemma: str) -> dict[str, frozenset[str]]:
    """A verb's inflected words and the forms that each may be."""
    table = lemminflect.getAllInflections(lemma, "VERB") or lemminflect.getAllInflectionsOOV(lemma, "VERB")
    found: dict[str, set[str]] = {lemma: {"VB"}}
    for tag, spellings in table.items():
        for spelling in spellings:
            found.setdefault(spelling, set()).add("VB" if tag == "VBP" else tag)
    if "VBN" not in table:  # the dictionary leaves the participle out where it is the past tense
        for tags in found.values():
            if "VBD" in tags:
                tags.add("VBN")
    return {spelling: frozenset(tags) for spelling, tags in found.items()}


def verb_forms(lemma: str) -> dict[str, frozenset[str]]:
    """Every inflected form of a verb with its tags; an adjective that heads a phrase ("asleep") stands for itself."""
    return {lemma: frozenset({"VBG"})} if lemma in ("asleep", "clad") else _forms(lemma)


def participle(lemma: str) -> str:
    """ "riding" of "ride"."""
    return next((form for form, tags in verb_forms(lemma).items() if "VBG" in tags), lemma)


@cache
def plurals(noun: str) -> tuple[str, ...]:
    """A noun (its last word inflected) and its plurals."""
    *rest, head = noun.split(" ")
    if not head.isalpha():
        return (noun,)
    table = lemminflect.getAllInflections(head, "NOUN") or lemminflect.getAllInflectionsOOV(head, "NOUN")
    return tuple(dict.fromkeys(" ".join([*rest, form]) for form in (head, *table.get("NNS", ()))))


@lru_cache(maxsize=50_000)
def noun_lemma(text: str) -> str:
    """ "wave" of "waves"."""
    found: tuple[str, ...] = lemminflect.getAllLemmas(text, "NOUN").get("NOUN", ()) if text.isalpha() else ()
    return found[0] if found else text


def plain(text: str) -> str:
    """Lower-case ASCII letters of any text: accents, curly quotes, emoji and markup are gone, lines remain."""
    if "{" in text:
        text = _KEY.sub(" ", text)
    text = re.sub(r"[^\S\n]+", " ", text).translate(_MARKS)
    text = unicodedata.normalize("NFKD", text).lower()
    text = _MARKUP.sub(lambda found: "\n" if "br" in found[0] or "li" in found[0] else " ", text)
    text = re.sub(r"\bt\.v\.", "tv", re.sub(r"[*`#~\"“”]", " ", text.replace("_", " ")))
    if text.isascii():
        return text
    return "".join(c if c.isascii() else " " for c in text if not unicodedata.combining(c))


def clauses(line: str) -> Iterator[tuple[list[str], bool]]:
    """The sentences of one line as tokens (words, commas), and whether each is a question."""
    for found in _SENTENCE.findall(line):
        if tokens := tokenise(found):
            yield tokens, found.endswith("?")


def tokenise(sentence: str) -> list[str]:
    """Words and commas; compound prepositions are one token, contractions two."""
    joined = _COMPOUND.sub(lambda found: _COMPOUNDS[(found.lastindex or 1) - 1][1], sentence)
    tokens: list[str] = []
    for token in _TOKEN.findall(joined):
        if len(token) > _LONGEST_WORD:
            continue
        stem, mark, ending = token.partition("'")
        if not mark:
            tokens.append(token)
        elif stem.endswith("n") and ending == "t":
            tokens += [{"ca": "can", "wo": "will"}.get(stem[:-1], stem[:-1]), "not"]
        elif ending == "s":
            tokens += [stem, "is" if stem in _IS else "'s"]
        else:
            tokens += [part for part in (stem, _CONTRACTIONS.get("'" + ending, ending)) if part]
    return tokens


@cache
def tables() -> tuple[dict[str, Any], dict[str, Any]]:
    """The word lists beside this file: of objects and people, and of verbs."""
    folder = Path(__file__).parent
    objects, verbs = (json.loads((folder / name).read_text("utf-8")) for name in ("objects.json", "verbs.json"))
    return objects, verbs
