"""How a drawn world gets to disk: whole or not at all, never over something else, in several processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS
from hoi_distill.storage.errors import UserError

_STALE_SECONDS = 3600
_PARALLEL_FROM = 1_000  # images; below, starting processes costs more than it saves

ResultT = TypeVar("ResultT")


def write_once(root: Path, identity: Mapping[str, Any], kind: str, fill: Callable[[Path], None]) -> Path:
    """Write a world unless the folder holds this very one.

    Args:
        root: The world's folder.
        identity: What the world is a function of; becomes ``world.json``.
        kind: What such a world is called.
        fill: Writes everything else into the folder that it is given.

    Returns:
        ``root``, which appears whole or not at all.

    Raises:
        UserError: If the folder holds something else.
    """
    if holds(root, identity, kind):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}-rendering-"
    for stale in root.parent.glob(f"{prefix}*"):  # of a writer that was killed
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        work.chmod(0o755)
        fill(work)
        (work / "world.json").write_text(json.dumps(identity, indent=1) + "\n")
        try:
            os.replace(work, root)  # fails on a folder that is no longer empty
        except OSError:
            if not holds(root, identity, kind):  # unless somebody else has just written the same world
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def holds(root: Path, identity: Mapping[str, Any], kind: str) -> bool:
    """Whether the folder holds that very world; False where there is nothing.

    Raises:
        UserError: If it holds something else.
    """
    try:
        found = json.loads((root / "world.json").read_text())
    except (OSError, ValueError):
        found = None
    if found == identity:
        return True
    if isinstance(found, dict):
        changes = (
            f"{key}: {found.get(key, 'none')} -> {identity.get(key, 'none')}"
            for key in [*identity, *(key for key in found if key not in identity)]
            if found.get(key) != identity.get(key)
        )
        raise UserError(
            f"{root}: holds another {kind} ({', '.join(changes)}), which is never rewritten; "
            "give another dataset.root, or remove the folder"
        )
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: not empty and no {kind}; give an empty or new folder as dataset.root")
    return False


def for_each_image(write: Callable[..., ResultT], processes: int, *jobs: Sequence[Any]) -> list[ResultT]:
    """``write`` of the jobs' first items, of their second ones and so on; in several processes where it pays."""
    if processes > 1 and len(jobs[0]) >= _PARALLEL_FROM:
        # spawn: the caller may have threads (Ray, torch), which a fork would not survive
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(write, *jobs, chunksize=100))
    return list(map(write, *jobs))


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 ``[H, W, 3]`` as a JPEG of high quality."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=95, subsampling=0)
    path.write_bytes(encoded.getvalue())


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``[n, 4]``, xyxy, grown to pixel borders, int64: HICO-DET's boxes are whole numbers."""
    return np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)


def coco_results(name: str, rows: Iterable[tuple[np.ndarray, int, float]], size: int) -> Iterable[dict[str, object]]:
    """An image's detections as COCO results, best first.

    Args:
        name: The image's file.
        rows: Box (float ``[4]``, xyxy pixels), COCO-80 label and score of each.
        size: Of the square image that boxes are clipped to, in pixels.
    """
    for box, label, score in sorted(rows, key=lambda row: -row[2]):
        x1, y1, x2, y2 = np.clip(box, 0, size).round(2).tolist()
        xywh = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        yield {"image_id": name, "category_id": COCO_CATEGORY_IDS[label], "bbox": xywh, "score": round(float(score), 4)}


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Write a JSON list, one item a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")
