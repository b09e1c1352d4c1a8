"""Detections in the formats of other code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hoi_distill.stages.evaluate.protocols.types import EvaluationResult
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.writable import refuse_unwritable, writing

EXPORTS = ("hico-mat", "v-coco-json", "coco")


def parse_exports(texts: Sequence[str], dataset: str) -> list[tuple[str, Path]]:
    """``"KIND=PATH"`` each, as kind and path.

    Raises:
        UserError: no such kind, one of another dataset, or no path.
    """
    exports = []
    for text in texts:
        kind, _, path = text.partition("=")
        if kind not in EXPORTS or not path:
            raise UserError(f"--export {text}: write KIND=PATH, where KIND is {', '.join(EXPORTS)}")
        if (kind == "v-coco-json") != (dataset == "v-coco"):
            suits = "v-coco-json" if dataset == "v-coco" else "hico-mat or coco"
            raise UserError(f"--export {kind}={path}: {dataset} is exported as {suits}")
        exports.append((kind, Path(path)))
    return exports


def refuse_exports(exports: Sequence[tuple[str, Path]]) -> None:
    """Refuse what cannot be written.

    Args:
        exports: from :func:`parse_exports`.

    Raises:
        UserError: names the first that cannot be written.
    """
    for kind, path in exports:
        refuse_unwritable(f"--export {kind}", path, folder=kind == "hico-mat")


def export_detections(result: EvaluationResult, kind: str, path: Path) -> None:
    """Write all detections of the file, whether or not the convention counts them.

    Args:
        result: of the evaluation.
        kind: one of EXPORTS that suits the dataset: HICO-DET's official ``.mat`` files into a folder; V-COCO's official
            list of dicts as JSON; the boxes as COCO results.
        path: the file, or for ``hico-mat`` the folder.

    Raises:
        UserError: the path cannot be written; no part of the export is left then.
    """
    with writing(f"--export {kind} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "v-coco-json":
            from hoi_distill.stages.evaluate.formats.v_coco_json import write_v_coco_json

            write_v_coco_json(path, result.detections, result.image_ids)
        elif kind == "hico-mat":
            from hoi_distill.stages.evaluate.formats.hico_mat import write_hico_mat

            write_hico_mat(path, result.detections, result.vocabulary, len(result.image_ids))
        else:
            from hoi_distill.stages.evaluate.formats.coco_results import write_coco_results

            write_coco_results(path, result.detections, result.image_ids, result.vocabulary)
