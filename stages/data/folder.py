"""A plain folder of photographs as a dataset without annotations."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from stages.data.image import header_size
from stages.data.records import Annotations
from stages.data.vocabulary import Vocabulary, hico_vocabulary
from storage.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def load_folder(root: str | Path, vocabulary: str | Path | None = None, limit: int | None = None) -> Annotations:
    """All pictures under a folder, recursively, sorted by relative path, which is their ``image_id``. No pairs.

    vocabulary: a file of ``Vocabulary.save``; by default HICO-DET's 600 interactions. Sizes are read from the headers,
    EXIF orientation applied; a file with an unreadable header stays, with size 0 (decoding it will say why).
    Raises UserError when the folder or its pictures are not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of pictures")
    found = [
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    ids = sorted(found)[:limit]
    if not ids:
        raise UserError(f"{root}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    paths = [str(root / image_id) for image_id in ids]
    sizes = np.array([header_size(path) for path in paths], np.int32)
    none, no_box = np.zeros(0, np.int16), np.zeros((0, 4), np.float32)
    return Annotations(
        name="folder",
        split="all",
        vocabulary=Vocabulary.load(vocabulary) if vocabulary is not None else hico_vocabulary(),
        image_id=np.array(ids, dtype=str),
        path=paths,
        width=sizes[:, 0],
        height=sizes[:, 1],
        pair_offsets=np.zeros(len(ids) + 1, np.int64),
        human_box=no_box,
        object_box=no_box,
        object=none,
        verb=none,
        hoi=none,
    )
