"""Detections as HICO-DET's official Matlab code reads them: one ``.mat`` file an object category.

``detections_01.mat`` to ``detections_80.mat``, objects in COCO's order (person 01), each with a cell array
``all_boxes`` [interactions of the object x pictures] in the order of the interaction and image lists. A cell is
``double [n, 9]``: human x1 y1 x2 y2, object x1 y1 x2 y2, score; boxes zero-based *inclusive* (the code adds 1). Layout:
``ywchao/ho-rcnn``, ``evaluation/eval_one.m``; MAT-files of level 5, compressed, put together here cell headers and all,
because the six million cells of a test split would take any general writer minutes.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.storage.files.writable import writing

_HEADER = b"MATLAB 5.0 MAT-file, detections of human-object interactions".ljust(124) + struct.pack(
    "<H2s", 0x0100, b"IM"
)
_INT8, _INT32, _UINT32, _DOUBLE, _MATRIX, _COMPRESSED = 1, 5, 6, 9, 14, 15
_CELL_CLASS, _DOUBLE_CLASS = 1, 6
_EMPTY_WORDS = 14  # 32-bit words before a cell's numbers: its tag, class, dimensions, name and the numbers' tag


def write_hico_mat(folder: Path, detections: HoiDetections, vocabulary: Vocabulary, images: int) -> list[Path]:
    """Write one file for each object that has interactions; files of other detections in the folder are replaced.

    Args:
        folder: it is created.
        detections: ``image`` counts the split's images; rows without a class (hoi -1) are left out.
        vocabulary: the classes.
        images: images of the split, N.

    Returns:
        The files, by object.

    Raises:
        UserError: the folder cannot be written; its files are as they were.
    """
    boxes = np.concatenate([detections.human_box, detections.object_box], axis=1).astype(np.float64)
    boxes[:, [2, 3, 6, 7]] -= 1
    numbers = np.concatenate([boxes, detections.score[:, None]], axis=1)
    order = np.lexsort((detections.image, detections.hoi))
    hoi = detections.hoi[order]
    names = []
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        # Half a set would be read beside half of an older one.
        with TemporaryDirectory(dir=folder, prefix=".") as drafts:
            for obj in range(len(vocabulary.objects)):
                hois = np.flatnonzero(vocabulary.hois[:, 1] == obj)
                if not len(hois):
                    continue
                rows = order[np.concatenate([np.arange(*np.searchsorted(hoi, [which, which + 1])) for which in hois])]
                cell = np.searchsorted(hois, detections.hoi[rows]) + len(hois) * detections.image[rows].astype(np.int64)
                by_cell = np.argsort(cell, kind="stable")
                packed = _cell_file("all_boxes", len(hois), images, cell[by_cell], numbers[rows[by_cell]])
                names.append(f"detections_{obj + 1:02d}.mat")
                Path(drafts, names[-1]).write_bytes(packed)
            return [Path(drafts, name).replace(folder / name) for name in names]


def _cell_file(name: str, rows: int, columns: int, cell: np.ndarray, numbers: np.ndarray) -> bytes:
    """A MAT-file with one cell array.

    Args:
        name: of the variable.
        rows: of the cell array.
        columns: of the cell array.
        cell: ``int64 [D]`` cell of each row of numbers, non-decreasing, counted down the columns.
        numbers: ``float64 [D, K]``.
    """
    width = numbers.shape[1]
    count = np.bincount(cell, minlength=rows * columns)
    length = _EMPTY_WORDS + 2 * width * count
    start = np.cumsum(length) - length
    words = np.zeros(length.sum(), np.uint32)
    head = np.array([_MATRIX, 0, _UINT32, 8, _DOUBLE_CLASS, 0, _INT32, 8, 0, 0, _INT8, 0, _DOUBLE, 0], np.uint32)
    words[start[:, None] + np.arange(_EMPTY_WORDS)] = head
    words[start + 1] = 4 * length - 8
    words[start + 8], words[start + 9] = count, np.where(count, width, 0)
    words[start + 13] = 8 * width * count
    nth = np.arange(len(cell)) - (np.cumsum(count) - count)[cell]
    place = (start[cell] + _EMPTY_WORDS)[:, None] // 2 + nth[:, None] + count[cell][:, None] * np.arange(width)
    words.view(np.float64)[place] = numbers
    label = name.encode()
    shape = struct.pack("<IIIIIIii", _UINT32, 8, _CELL_CLASS, 0, _INT32, 8, rows, columns)
    named = struct.pack("<II", _INT8, len(label)) + label.ljust(-(-len(label) // 8) * 8, b"\0")
    inside = shape + named + words.astype("<u4", copy=False).tobytes()
    packed = zlib.compress(struct.pack("<II", _MATRIX, len(inside)) + inside, 1)
    return _HEADER + struct.pack("<II", _COMPRESSED, len(packed)) + packed
