"""HICO-DET's own files: ``anno_bbox.mat`` (boxes, pairs) and ``anno.mat`` (what each image shows as a whole)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.hico_det.matlab import DamagedFile, read_matrix, without_compression
from hoi_distill.stages.data.reading.raw_split import RawSplit
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError

_NAMES = ("nname", "vname", "vname_ing")
"""Of an interaction in ``list_action``: its object, its verb and the verb's participle."""


def read_anno_bbox(file: Path, split: str, limit: int | None, reject: Callable[[str], None]) -> RawSplit:
    """Boxes and pairs of one split, with the classes that the file's own ``list_action`` gives.

    Its boxes are 1-based inclusive; interactions marked ``invis`` have none.

    Raises:
        UserError: For another kind of file.
    """
    vocabulary = _vocabulary_of(file)
    _, of_image = read_matrix(file, f"bbox_{split}").structs("filename", "size", "hoi")
    of_image = {field: matrices[:limit] for field, matrices in of_image.items()}
    names = of_image["filename"].texts()
    sized, size = of_image["size"].structs("width", "height")
    sizes = np.zeros((len(names), 2), np.int32)
    sizes[sized] = np.stack([size[side].scalars(0) for side in ("width", "height")], 1)

    image, of_hoi = of_image["hoi"].structs("id", "bboxhuman", "bboxobject", "connection", "invis")
    values, counts = of_hoi["connection"].numbers()  # of each, all people and then all objects
    starts = np.cumsum(counts) - counts
    links = np.where(of_hoi["invis"].scalars(0) == 0, counts // 2, 0)
    entry = np.repeat(np.arange(len(links)), links)
    person_at = np.repeat(starts, links) + np.arange(len(entry)) - np.repeat(np.cumsum(links) - links, links)
    sides = []
    bad = np.zeros(len(entry), bool)
    for field, at in (("bboxhuman", person_at), ("bboxobject", person_at + links[entry])):
        owner, box = of_hoi[field].structs("x1", "y1", "x2", "y2")
        corners = np.stack([box[side].scalars() for side in ("x1", "y1", "x2", "y2")], 1)
        number, held = values[at], np.bincount(owner, minlength=len(links))
        bad |= ~((number >= 1) & (number <= held[entry]))
        sides.append((number, np.searchsorted(owner, entry), corners))
    for p in np.flatnonzero(bad).tolist():
        nth = entry[p] - np.searchsorted(image, image[entry[p]]) + 1
        link = f"({sides[0][0][p]:g}, {sides[1][0][p]:g})"
        reject(f"entry {image[entry[p]] + 1}, hoi {nth}: connection {link} to a box that is not there")
    rows = np.flatnonzero(~bad)
    human, obj = (corners[first[rows] + number[rows].astype(np.int64) - 1] for number, first, corners in sides)
    hoi = of_hoi["id"].scalars(0).astype(np.int64) - 1
    return RawSplit(
        vocabulary, names, np.arange(1, len(names) + 1), sizes, image[entry[rows]], hoi[entry[rows]], human, obj,
        first_pixel=1,
    )  # fmt: skip


def read_image_level(file: Path, split: str, names: Sequence[str], classes: int) -> np.ndarray:
    """bool [N, H]: anno.mat's +1 entries (-1: absent, 0: ambiguous, NaN: not asked) for the images `names`."""
    try:
        labels = read_matrix(file, f"anno_{split}").table()
        listed = read_matrix(file, f"list_{split}").cells().texts()
    except DamagedFile:
        raise
    except UserError:  # as in _vocabulary_of
        mat = _load_mat(file, [f"anno_{split}", f"list_{split}"])
        labels, listed = mat[f"anno_{split}"], [_text(name) for name in mat[f"list_{split}"].ravel().tolist()]
    column = {name: i for i, name in enumerate(listed)}
    if labels.shape != (classes, len(column)):
        raise UserError(f"{file}: anno_{split} is {labels.shape}, expected {(classes, len(column))}")
    missing = next((name for name in names if name not in column), None)
    if missing is not None:
        raise UserError(f"{file}: list_{split} lacks the image {missing} of the annotations; is it the same dataset's?")
    return (labels == 1)[:, [column[name] for name in names]].T.copy()


def _vocabulary_of(file: Path) -> Vocabulary:
    """The vocabulary of a file's ``list_action``. SciPy, which takes a tenth of a second to be imported, reads it only where it
    is no struct of plain texts: it knows more kinds, or says what is wrong."""
    try:
        _, found = read_matrix(file, "list_action").structs(*_NAMES)
        columns = [found[field].texts() for field in _NAMES]
    except DamagedFile:
        raise
    except UserError:
        return list_action(_load_mat(file, ["list_action"])["list_action"], str(file))
    return Vocabulary.from_actions(zip(*columns, strict=True), str(file))


def list_action(table: np.ndarray, source: str) -> Vocabulary:
    """The vocabulary of a file's ``list_action``; `source` names it in errors."""
    if missing := set(_NAMES).difference(table.dtype.names or ()):
        raise UserError(f"{source}: list_action has no field {min(missing)}; is it HICO-DET's file?")
    columns = [[_text(value) for value in table[key].ravel()] for key in _NAMES]
    return Vocabulary.from_actions(zip(*columns, strict=True), source)


def _load_mat(file: Path, variables: list[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        mat = loadmat(without_compression(file, variables), variable_names=variables)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except Exception as error:  # of a file of another kind, scipy lets out whatever its bytes lead to
        raise UserError(f"{file}: not a readable MATLAB file ({' '.join(str(error).split())})") from error
    for variable in variables:
        if variable not in mat:
            raise UserError(f"{file}: no variable {variable}; is it HICO-DET's file?")
    return mat


def _text(value: Any) -> str:
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return str(value)
