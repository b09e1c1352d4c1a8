"""What ``predict`` is given: files, folders, patterns, lists of names, videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hoi_distill.stages.data.listing import images_below, readable
from hoi_distill.storage.errors import UserError

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".ts"})
"""How names of video files end."""
LIST = ".txt"
"""How the name of a list of names ends."""


def named_files(given: Sequence[Path]) -> dict[str, Path]:
    """The files by their names.

    Args:
        given: a file has its own name, an image of a folder its path below it, and a file of a pattern (``day*/*.jpg``) its
            path below the folder where the pattern begins. A ``.txt`` file lists names, one a line, that are read in its
            folder; they are the files' names, too.

    Raises:
        UserError: a file that is missing, a folder without images, a pattern without files, an empty list, or two files of
            one name.
    """
    found: dict[str, Path] = {}
    for path in given:
        for name, file in _named(path):
            if not file.exists():
                raise UserError(f"{file}: cannot be read: No such file or directory")
            if name in found:
                raise UserError(f"{name}: two images of this name; predict them in two calls")
            found[name] = file
    return found


def is_video(file: Path) -> bool:
    """Whether a file's name is that of a video."""
    return file.suffix.lower() in VIDEOS


def _named(path: Path) -> Iterator[tuple[str, Path]]:
    """One thing that was given: its files by their names."""
    if path.is_dir():
        here = images_below(path)
        if not here:
            raise UserError(f"{path}: no images in this folder")
        yield from ((name, path / file) for name, file in here.items())
    elif path.suffix.lower() == LIST and path.is_file():
        yield from _listed(path)
    elif glob.has_magic(str(path)) and not path.exists():
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
        if not files:
            raise UserError(f"{path}: no file has such a name")
        yield from ((readable(file.relative_to(fixed).as_posix()), file) for file in files)
    else:
        yield readable(path.name), path


def _listed(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a list of names."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of names: {error}") from None
    if not names:
        raise UserError(f"{path}: lists no names; write one on each line")
    for name in names:
        own = [part for part in Path(os.path.normpath(name)).parts if part not in ("/", "..")]  # results stay in --out
        yield readable("/".join(own)), path.parent / name
