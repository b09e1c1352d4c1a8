"""Detections as other people's code reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.evaluate.detections import Detections
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
    """Write the detections that were read, all of them, whatever the convention counted.

    Args:
        kind: one of EXPORTS: HICO-DET's official ``.mat`` files into a folder; V-COCO's official list of dicts as JSON;
            the boxes as COCO results.

    Raises:
        UserError: the kind belongs to another dataset, or the path cannot be written.
    """
    found, dataset = judged.detections, judged.record["dataset"]
    if isinstance(found, Detections) == (kind == "v-coco-json"):
        raise UserError(f"--export {kind}={path}: {dataset} is exported as {_suits(found)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "v-coco-json":
            from stages.evaluate.v_coco_json import write_v_coco_json

            write_v_coco_json(path, found, judged.image_ids)
        elif kind == "hico-mat":
            from stages.evaluate.hico_mat import write_hico_mat

            write_hico_mat(path, found, judged.vocabulary, len(judged.image_ids))
        else:
            from stages.evaluate.coco_results import write_coco_results

            write_coco_results(path, found, judged.image_ids, judged.vocabulary)
    except OSError as error:
        raise UserError(f"--export {kind}={path}: {error.strerror}; give a path that can be written") from None


def _suits(found: object) -> str:
    return "hico-mat or coco" if isinstance(found, Detections) else "v-coco-json"
