"""Small JSON files that say who wants or uses what: whole, and with a checksum of their own (``digest``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hoi_distill.storage.damage import damage
from hoi_distill.storage.digests import canonical_json, fingerprint
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.stores import store_of


def encode_note(content: Mapping[str, Any]) -> bytes:
    """The bytes of a note."""
    return canonical_json({**content, "digest": fingerprint(content)})


def write_note(path: Place, content: Mapping[str, Any]) -> None:
    """Put ``content``, a JSON object, in the place of what ``path`` held. Raises ``OSError``; it is then as it was."""
    store_of(path).replace(path, encode_note(content))


def read_note(path: Place, *keys: str) -> dict[str, Any]:
    """What :func:`write_note` wrote; notes of before had no digest.

    Args:
        path: the note.
        keys: what it must hold.

    Raises:
        Damaged: it is not what was written, or is not there.
        OSError: it cannot be read.
    """
    with damage(f"note {path}"):
        content = json.loads(store_of(path).read(path))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if (digest := content.pop("digest", None)) is not None and digest != fingerprint(content):
            raise ValueError("a checksum differs")
        for key in keys:
            content[key]
    return content


def set_note_aside(path: Place) -> None:
    """Move what stands in a note's place to ``<name>.bad`` beside it."""
    store_of(path).move(path, path.parent / f"{path.name}.bad")


def notes_in(folder: Place, ending: str = ".json") -> list[Place]:
    """The notes of a folder by name; none where there is no folder. A glob would find none either where it cannot be read.

    Raises:
        OSError: the folder cannot be read.
    """
    names = sorted(store_of(folder).names(folder))
    return [folder / name for name in names if name.endswith(ending) and not name.startswith(".")]
