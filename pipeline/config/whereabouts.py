"""Where the relative paths of a configuration are read: in one folder, found by what lies there.

It is the working directory, if any of them is there; else the nearest folder at or above the file that has one. So a command
does the same in every folder. It then *goes* there, so that what is stored and fingerprinted is what a call from there stores.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import SCHEMES
from hoi_distill.storage.files.uri import ADDRESSES

Command = TypeVar("Command", bound=Callable[..., Any])
MOST = 100_000
"""Values of a document that are looked at: aliases can make a short one endless."""


def in_every_folder(argument: str, names: Callable[..., Sequence[str]]) -> Callable[[Command], Command]:
    """A command that finds the relative paths of a file wherever it is called. What the user typed still means what it meant
    there.

    Args:
        argument: the command's parameter that is the file.
        names: returns the paths that the file names. It is called with the file and, where the command was given some,
            the overrides of ``--set``.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def anywhere(*given: Any, **more: Any) -> Any:
            typed = inspect.signature(command).bind(*given, **more).arguments
            file, before = typed[argument], Path.cwd()
            overrides = [typed["overrides"]] if typed.get("overrides") else []
            found = names(file, *overrides) if file.is_file() or file.is_dir() else ()
            relative = [name for name in found if name and not os.path.isabs(os.path.expanduser(name))]
            home = home_of(file, relative)
            if home != before:
                print(f"Relative paths of {file} are read in {home}; {before} has none of them.", file=sys.stderr)
            os.chdir(home)
            try:
                return command(**(typed if home == before else {key: _from(before, typed[key]) for key in typed}))
            except UserError as error:
                if any(name in str(error) and not _exists(home / name) for name in relative):
                    raise UserError(f"{error}; relative paths are read in {home}") from None
                raise
            finally:
                os.chdir(before)

        return anywhere  # type: ignore[return-value]

    return decorate


def home_of(file: Path, relative: Sequence[str]) -> Path:
    """The folder in which a file's relative paths are read: the working directory or one at or above the file's, but not the
    file system's root; the working directory where no folder has any."""
    here = Path.cwd()
    places = [here, *Path(os.path.realpath(file)).parents[:-1]]
    return next((place for place in places if any(_exists(place / name) for name in relative)), here)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _from(folder: Path, typed: Any) -> Any:
    """What was typed in that folder, wherever one is now."""
    if isinstance(typed, Path):
        return folder / typed
    return [_from(folder, each) for each in typed] if isinstance(typed, list) else typed


def names_of_configuration(file: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The paths that a configuration reads, as written: of its dataset, of its cache if there is one, and, among the parameters
    of tables and networks, whatever has a slash. [] where it cannot be read."""
    document = _document(file, overrides)
    dataset = document.get("dataset")
    given = dataset if isinstance(dataset, dict) else {}
    names = [
        given[key]
        for key in ("root", "annotations", "vocabulary", "image_labels", "images")
        if isinstance(given.get(key), str) and not given[key].startswith(ADDRESSES)
    ]
    cache = document.get("cache", "cache")
    names += [f"{cache}/tables"] if isinstance(cache, str) and not cache.startswith(SCHEMES) else []
    return names + _with_slash([document.get(section) for section in ("tables", "student", "pair_teachers")])


def names_of_matrix(file: Path) -> list[str]:
    """The setup of a matrix, as written."""
    setup = _document(file).get("setup")
    return [setup] if isinstance(setup, str) else []


def names_of_claims(file: Path) -> list[str]:
    """The matrices that a file of claims names, as written."""
    return [name for name in _with_slash(_document(file).get("papers")) if name.endswith((".yaml", ".yml"))]


def names_of_checkpoint(folder: Path) -> list[str]:
    """What a trained student's tables came from, as its configuration said it; [] where that cannot be read."""
    try:
        return _with_slash(json.loads((folder / "config.json").read_text())["identities"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _document(file: Path, overrides: Sequence[str] = ()) -> Mapping[Any, Any]:
    from hoi_distill.pipeline.config.documents import apply_override, read_document

    try:
        document = read_document(file, "file", "any")
        for override in overrides:
            apply_override(document, override)
    except UserError:  # which the command itself will say
        return {}
    return document


def _with_slash(value: Any) -> list[str]:
    """Every text with a slash in nested lists and sections."""
    found, left = [], [value]
    for _ in range(MOST):
        if not left:
            break
        each = left.pop()
        if isinstance(each, str) and "/" in each:
            found.append(each)
        elif isinstance(each, dict | list):
            left += each.values() if isinstance(each, dict) else each
    return found
