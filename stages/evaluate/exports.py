"""Detections as other people's code reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.evaluate.protocols import Judged
from storage.errors import UserError

EXPORTS = ("hico-mat", "v-coco-json", "coco")


def parse_exports(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """``"KIND=PATH"`` each, as kind and path.

    Raises:
        UserError: no such kind, or no path.
    """
    exports = []
    for text in texts:
        kind, _, path = text.partition("=")
        if kind not in EXPORTS or not path:
            raise UserError(f"--export {text}: write KIND=PATH, where KIND is {', '.join(EXPORTS)}")
        exports.append((kind, Path(path)))
    return exports


def export_detections(judged: Judged, kind: str, path: Path) -> None:
    """Write the detections that were evaluated.

    Raises:
        UserError: the kind belongs to another dataset.
    """
    raise UserError(f"--export {kind}={path}: not for {judged.record['dataset']}")
