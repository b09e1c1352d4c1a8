"""Detections from official HICO-DET ``.mat`` files, as UPT, PViC and others cache them for the Matlab evaluation.

``detections_01.mat`` to ``detections_80.mat``, laid out as :mod:`hoi_distill.stages.evaluate.formats.hico_mat` says. Sources:
``fredzzhang/upt`` (``cache.py``), ``fredzzhang/pvic`` (``utils.py``), ``ywchao/ho-rcnn`` (``evaluation/eval_one.m``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.hico_det.matlab import without_compression
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.storage.errors import UserError


def read_pocket_mat(folder: Path, image_ids: Sequence[str] | np.ndarray, vocabulary: Vocabulary) -> HoiDetections:
    """Read all files of a folder. Detections are sorted by image, then by class, then as stored in its cell.

    Args:
        folder: with one file for each object.
        image_ids: the N images of the split in the order of HICO-DET's own list, so by name. All of them: the
            place of a column says which image it is.
        vocabulary: the classes.

    Raises:
        UserError: a file is missing or no MAT-file, has no ``all_boxes``, another number of rows than its object has
            interactions (what another order of objects looks like) or of columns than there are images, a cell that
            is not [n, 9], a number that is not finite or a box that ends before it begins.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one with detections_01.mat to detections_80.mat")
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for obj in range(len(vocabulary.objects)):
        hois = np.flatnonzero(vocabulary.hois[:, 1] == obj)
        if len(hois):
            columns.append(_object_file(folder / f"detections_{obj + 1:02d}.mat", obj, hois, image_ids, vocabulary))
    image, hoi, numbers = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.lexsort((hoi, image))
    image, hoi, numbers = image[order], hoi[order], numbers[order]
    boxes = box_ops.single(numbers[:, :8] + np.tile([0, 0, 1, 1], 2))  # inclusive to half-open
    verb, obj_of = vocabulary.hois[hoi].T.astype(np.int32)
    return HoiDetections(
        image.astype(np.int32), boxes[:, :4], boxes[:, 4:],
        obj_of, verb, hoi.astype(np.int32), numbers[:, 8],
    )  # fmt: skip


def _object_file(
    file: Path, obj: int, hois: np.ndarray, image_ids: Sequence[str] | np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``image`` and ``hoi`` int64 [D] and ``numbers`` float64 [D, 9] of one object's file."""
    cells, name = _all_boxes(file), vocabulary.objects[obj]
    if cells.dtype != object:
        raise UserError(
            f"{file}: all_boxes is a table of numbers, not a cell array [interactions x pictures]; run the step that "
            "sorts it by image first"
        )
    if len(cells) != len(hois):
        raise UserError(
            f"{file}: all_boxes has {len(cells)} rows, but {name} has {len(hois)} interactions; files are numbered in "
            "COCO's order of objects (person 01, bicycle 02)"
        )
    if cells.shape[1] != len(image_ids):
        raise UserError(
            f"{file}: all_boxes has {cells.shape[1]} columns, but the split has {len(image_ids)} images; a column a "
            "image, those without pairs too"
        )
    sizes = np.array([cell.size for cell in cells.ravel()]).reshape(cells.shape)
    image, row = np.nonzero(sizes.T)
    parts = []
    for which, column in zip(row.tolist(), image.tolist(), strict=True):
        part = cells[which, column]
        if part.ndim != 2 or part.shape[1] != 9 or part.dtype.kind not in "fiu":
            raise UserError(
                f"{file}: all_boxes{{{which + 1}, {column + 1}}} is {part.dtype} {list(part.shape)}; it must be n x 9 "
                "numbers: human x1 y1 x2 y2, object x1 y1 x2 y2, score"
            )
        parts.append(part)
    lengths = [len(part) for part in parts]
    numbers = np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, 9))
    image, row = np.repeat(image, lengths), np.repeat(row, lengths)
    upright = (numbers[:, [2, 3, 6, 7]] + 1 >= numbers[:, [0, 1, 4, 5]]).all(1)
    for good, complaint in (
        (np.isfinite(numbers).all(1), "holds a number that is not finite"),
        (np.isfinite(box_ops.single(numbers[:, :8])).all(1), "holds a box that is too large"),
        (upright, "holds a box that ends before it begins; boxes are x1, y1, x2, y2"),
    ):
        if not good.all():
            first = int(np.argmin(good))
            raise UserError(
                f"{file}: all_boxes{{{row[first] + 1}, {image[first] + 1}}} ({image_ids[image[first]]}) {complaint}: "
                f"{numbers[first].tolist()}"
            )
    return image, hois[row], numbers


def _all_boxes(file: Path) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return loadmat(without_compression(file, ["all_boxes"]), variable_names=["all_boxes"])["all_boxes"]
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file; a folder of detections has one for every object") from None
    except KeyError:
        raise UserError(f"{file}: there is no variable all_boxes; the official evaluation reads that one") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: this is not a readable MAT-file ({reason}); save it again as version 7") from error
