"""A vocabulary of one's own from two text files: the verbs and the objects, one a line.

A line of verbs is a verb, which may be followed by its participle and by the objects that it goes with::

    ride: bicycle, horse     # only these objects
    sit on: bench
    wave                     # with every object of the other file
    ski = skiing             # a participle that is not left to the dictionary

A line of objects is a name. ``#`` begins a remark. Names are written with spaces or underscores, in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError, did_you_mean

PERSON = COCO_OBJECTS[0]
_NAME = re.compile(r"[^\W\d_][\w-]*( [\w-]+)*")
_WORDS = 4
"""A longer name is a sentence."""


def name_of(text: str) -> str:
    """A name as vocabularies have it: lower case, underscores for spaces and for what else stands between words."""
    return "_".join(text.replace("_", " ").lower().split())


def read_word_lists(verbs: str | Path, objects: str | Path) -> Vocabulary:
    """The vocabulary that two text files describe (form: this module's docstring).

    If every object is one of COCO's 80, the vocabulary has COCO's 80 objects in their order, so that boxes of a COCO
    detector fit. Otherwise it has the person and the objects of the file.

    Args:
        verbs: The file of verbs.
        objects: The file of objects.

    Raises:
        UserError: With the file and the line, for a file without a line, a line that is no name, a name that stands twice,
            and an object of a verb that is none of the objects.
    """
    known: dict[str, str] = {}
    for where, text in _lines(objects):
        name = _named(text, where, "an object")
        if name in known:
            raise UserError(f"{where}: {text!r} stands in {known[name]} too; remove one")
        known[name] = where
    participles: dict[str, str] = {}
    combinations: list[tuple[str, str]] = []
    for where, text in _lines(verbs):
        said, colon, listed = text.partition(":")
        said, _, own = said.partition("=")
        verb = _named(said.strip(), where, "a verb")
        if verb in participles:
            raise UserError(f"{where}: the verb {verb!r} stands there twice; write its objects in one line")
        participles[verb] = name_of(own) or participle_of(verb)
        goes_with = [name_of(name) for name in listed.split(",") if name.strip()]
        if colon and not goes_with:
            raise UserError(f"{where}: no object after the colon; list some, or take the colon away for all of them")
        for name in goes_with:
            if name not in known:
                near = did_you_mean(name, known) or f"; add it to {objects}"
                raise UserError(f"{where}: {name!r} is no line of {objects}{near}")
        combinations += [(verb, name) for name in goes_with or known]
    return vocabulary_of(combinations, participles, str(verbs), known)


def vocabulary_of(
    combinations: Iterable[tuple[str, str]],
    participles: Mapping[str, str],
    source: str,
    objects: Iterable[str] = (),
) -> Vocabulary:
    """The vocabulary of some combinations, each once, sorted by object, then by verb.

    Args:
        combinations: (verb, object) names.
        participles: Those of verbs that are not to be looked up.
        source: Where the names stand, for errors.
        objects: Names that belong to it even if no combination has them.
    """
    each = sorted({(name, verb) for verb, name in combinations})
    names = list(dict.fromkeys([*objects, *(name for name, _ in each)]))
    coco = all(name in COCO_OBJECTS for name in names)
    own = COCO_OBJECTS if coco else (PERSON, *(name for name in names if name != PERSON))
    actions = [(name, verb, participles.get(verb) or participle_of(verb)) for name, verb in each]
    return Vocabulary.from_actions(actions, source, own)


def participle_of(verb: str) -> str:
    """The present participle of a verb, by a dictionary: "sitting_on" of "sit_on"."""
    import lemminflect

    if verb == NO_INTERACTION:
        return verb
    first, underscore, rest = verb.partition("_")
    forms = lemminflect.getAllInflections(first, "VERB") or lemminflect.getAllInflectionsOOV(first, "VERB")
    return f"{forms['VBG'][0]}{underscore}{rest}"


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """(file and number, text) of each line that says something."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it should list words, one a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; it should list words, one a line") from None
    found = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    if not any(line for _, line in found):
        raise UserError(f"{path}: no word in it; write one a line")
    yield from ((f"{path}: line {number}", line) for number, line in found if line)


def _named(text: str, where: str, what: str) -> str:
    name = name_of(text)
    if not _NAME.fullmatch(name.replace("_", " ")) or name.count("_") >= _WORDS:
        raise UserError(f"{where}: {text!r} is not {what}; write one name a line, as in `sit on` or `cell phone`")
    return name
