"""YAML documents and what is wrong with them, in one line: file, key, what was given, what is allowed, the nearest key."""

from __future__ import annotations

import re
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import override

from hoi_distill.storage.errors import UserError, did_you_mean, nearest

LARGEST = 16 << 20
"""Bytes of a document; what is larger is something else."""
SHOWN = 80
"""Characters of a wrong value that a message repeats."""
LISTED = 3
"""Other wrong keys that a message names."""


class Section(BaseModel):
    """Keys of a document. None is unknown, none can be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _OnceLoader(yaml.SafeLoader):
    """YAML in which no mapping may have a key twice, as the last one would win in silence."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands here twice", key.start_mark
                    )
                seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(text: str) -> Any:
    """YAML as :func:`yaml.safe_load` reads it, without keys that stand twice in one mapping (YAMLError)."""
    try:
        return yaml.load(text, _OnceLoader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError) as error:  # 2024-13-45, !!int x
        raise yaml.YAMLError(str(error)) from None
    except (TypeError, AttributeError, LookupError):  # !!timestamp x
        raise yaml.YAMLError("a value is not what its tag says") from None


def read_document(path: Path, what: str, keys: str) -> dict[Any, Any]:
    """Read the keys of a YAML file.

    Args:
        path: the file.
        what: what the file should be, for messages: "configuration".
        keys: some keys of such a file, for the message where it has none: "name, dataset, tables".

    Raises:
        UserError: there is no such file, or it is a folder, not YAML or no mapping.
    """
    try:
        if path.is_dir():
            inside = sorted(file.name for file in path.glob("*.yaml"))
            hint = f"name one of its files: {', '.join(inside)}" if inside else "it holds no *.yaml"
            raise UserError(f"{path}: a folder, not a {what}; {hint}")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"{path}: larger than {LARGEST >> 20} MB, so no {what}")
        document = read_yaml(data.decode())
    except FileNotFoundError:
        near = nearest(path.name, (file.name for file in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such {what}" + (f"; did you mean {near}?" if near else "")) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: byte {error.start} is no UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected keys such as {keys}; got {shown(document)}")
    return document


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set ``a.b.c=value`` inside a nested document; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected key.path=value, for example student.seed=1")
    node = document
    for key in keys[:-1]:
        below = node.get(key)
        if below is not None and not isinstance(below, dict):
            raise UserError(f"--set {override}: {key} is a value, not a section")
        node[key] = dict(below or {})  # YAML's anchors make one section of several
        node = node[key]
    try:
        node[keys[-1]] = read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from None


def validate(model: type[Any], document: Any, where: str, context: Any = None) -> Any:
    """``model.model_validate``, where nothing but a number is a number.

    Args:
        model: the pydantic model.
        document: its keys.
        where: what stands before a key in messages: the file with a colon and, if the document is a section of it, the
            section with its dot.
        context: what validators of the model look things up in.

    Raises:
        UserError: one line with the key, what was given and what is allowed; further wrong keys are named at its end.
    """
    try:
        checked = model.model_validate(document, context=context)
    except ValidationError as error:
        raise UserError(where + explain(error, document, model)) from None
    except RecursionError:
        raise UserError(f"{where.rstrip('. ')}: holds itself") from None
    for key, value in _truths(document, checked):
        raise UserError(f"{where}{key}: expected a number; got {shown(value)}")
    return checked


def _truths(given: Any, taken: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys whose ``true`` or ``false`` (YAML's ``yes`` and ``no``, too) was taken for 1 or 0."""
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield key, given
    elif isinstance(given, Mapping):
        for name, value in given.items():
            inside = taken.get(name) if isinstance(taken, Mapping) else getattr(taken, str(name), None)
            yield from _truths(value, inside, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for number, (value, inside) in enumerate(zip(given, taken, strict=False)):
            yield from _truths(value, inside, f"{key}.{number}")


def explain(error: ValidationError, document: Any, model: type[Any] | None = None) -> str:
    """One line for a pydantic error: one problem in full, an unknown key if there is one, as a misspelt key may be why another
    is missing; then the other wrong keys by name."""
    by_key: dict[str, list[Any]] = {}
    for each in error.errors():
        by_key.setdefault(_key(each, document), []).append(each)
    keys = [key for key in by_key if not any(other.startswith(f"{key}.") for other in by_key)]  # of a union, the nearer
    said = {key: _said(by_key[key], model) for key in keys}
    unknown = [key for key in keys if by_key[key][0]["type"] in UNKNOWN]
    first = next((key for key in unknown if "did you mean" in said[key]), [*unknown, *keys][0])
    others = [key for key in keys if key != first]
    also = f"; wrong, too: {', '.join(others[:LISTED])}" if others else ""
    more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
    inside = f"{first}." if first else ""
    where = inside if _names_a_key(by_key[first][0], model) else f"{first or '(top level)'}: "
    return f"{where}{said[first]}{also}{more}"


def _names_a_key(problem: Any, model: type[Any] | None) -> bool:
    """Whether a validator of a whole section has said itself which of its keys is wrong."""
    if problem["type"] != "value_error":
        return False
    key = re.split(r"[.:]", _said([problem], None))[0]
    return any(key in each.__pydantic_fields__ for each in _models(model, problem["loc"]))


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _key(problem: Any, document: Any) -> str:
    """The dotted key of a problem. Names of a union's members, which stand in no document, are left out."""
    parts, node = [], document
    for number, part in enumerate(problem["loc"]):
        last = number == len(problem["loc"]) - 1
        inside = isinstance(node, Mapping) and part in node
        inside = inside or (isinstance(part, int) and isinstance(node, list | tuple) and part < len(node))
        if inside:
            node = node[part]
        elif not (last and problem["type"] == "missing"):
            continue
        parts.append(str(part))
    if problem["type"].startswith("union_tag"):
        parts.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(parts)


def _said(problems: Sequence[Any], model: type[Any] | None) -> str:
    """What is wrong with one key, from all that pydantic says of it: a union says something for each of its members."""
    problem = problems[0]
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in UNKNOWN:
        *section, name = problem["loc"]
        valid = _keys(model, section)
        deeper = [f"{key}.{name}" for key in valid if name in _keys(model, [*section, key])]
        listed = f"valid keys: {', '.join(valid)}" if valid else "remove it"
        return f"unknown key; {f'did you mean {deeper[0]}?' if deeper else hint(str(name), valid, listed)}"
    if kind == "missing":
        return "missing; it has no default"
    if kind == "value_error":  # of a validator of ours, which has said it
        return str(problem["msg"]).removeprefix("Value error, ")
    if kind.startswith("union_tag"):
        key = context["discriminator"].strip("'")
        tags = [tag for each in _models(model, problem["loc"]) for tag in _tags(each, key)]
        if kind == "union_tag_not_found":
            return f"missing; there are {', '.join(tags)}"
        return f"unknown {key} {shown(context['tag'])}; {hint(context['tag'], tags)}"
    wanted = " or ".join(dict.fromkeys(_wanted(each) for each in problems))
    words = [word for each in problems for word in _choices(each)]
    near = did_you_mean(given, words) if isinstance(given, str) else ""
    quotes = " (a text stands in quotes)" if "a text" in wanted and isinstance(given, bool | int | float | date) else ""
    return f"expected {wanted}; got {shown(given)}{near}{quotes}"


WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "string_pattern_mismatch": "a text like {pattern}",
    "string_too_short": "at least {min_length} characters",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "sequence": "a list",
    "dict": "a section of keys",
    "mapping": "a section of keys",
    "model": "a section of keys",
    "dataclass": "a section of keys",
    "none": "nothing",
    "too_short": "at least {min_length} in it",
    "too_long": "at most {max_length} in it",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
}
"""What pydantic's kinds of errors, by their own name or its first word, ask for."""


def _wanted(problem: Any) -> str:
    kind = problem["type"]
    if choices := _choices(problem):
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    kind = {"Sequence": "list", "Mapping": "dict"}.get(problem.get("ctx", {}).get("class"), kind)
    words = WANTED.get(kind) or WANTED.get(kind.partition("_")[0])
    bounds = {
        key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in problem.get("ctx", {}).items()
    }
    return words.format(**bounds) if words else f"something else ({problem['msg']})"


def _choices(problem: Any) -> list[str]:
    """The words of a key that takes one of a few."""
    if problem["type"] not in ("literal_error", "enum"):
        return []
    return [word.strip("'") for word in re.split(", | or ", str(problem["ctx"]["expected"]))]


def hint(name: str, allowed: Iterable[str], otherwise: str = "") -> str:
    """``did you mean X?``, or, where nothing is near, all that is allowed."""
    allowed = sorted(allowed)
    near = nearest(name, allowed)
    return f"did you mean {near}?" if near else otherwise or f"there are {', '.join(allowed)}"


def shown(value: Any) -> str:
    """A value as a document spells it, clipped."""
    plain = {None: "nothing", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    if isinstance(value, date):
        return str(value)
    clip = reprlib.Repr()  # never spells out what aliases have made endless
    clip.maxstring = clip.maxother = SHOWN
    text = clip.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _models(annotation: Any, location: Sequence[int | str] = ()) -> list[Any]:
    """The models that a key may hold, in unions and containers of them, too; of a union those that ``location`` names."""
    found = [annotation] if hasattr(annotation, "__pydantic_fields__") else []
    for inner in typing.get_args(annotation):
        found += _models(inner)
    for part in location:
        own = [each.__pydantic_fields__[part].annotation for each in found if part in each.__pydantic_fields__]
        named = [each for each in found if part == each.__name__ or part in _tags(each, "kind")]
        found = [model for kind in own for model in _models(kind)] if own else named or found
    return found


def _keys(model: type[Any] | None, location: Sequence[int | str]) -> list[str]:
    """The keys of the models at ``location``, sorted."""
    return sorted({key for each in _models(model, location) for key in each.__pydantic_fields__})


def _tags(model: Any, key: str) -> list[str]:
    """The words that choose this model of a union."""
    field = model.__pydantic_fields__.get(key)
    return [] if field is None else [word for word in typing.get_args(field.annotation) if isinstance(word, str)]
