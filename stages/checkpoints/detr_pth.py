"""A DETR or Deformable DETR in its authors' ``.pth`` as a transformers checkpoint:
``python -m hoi_distill.stages.checkpoints.detr_pth FILE.pth --out DIR``.

The codes of DETR (Carion et al. 2020), Deformable DETR (Zhu et al. 2020) and H-Deformable-DETR (Jia et al. 2022) keep ``{"model":
state dict, ...}``; what was fine-tuned on HICO-DET or V-COCO for UPT and PViC is ``{"model_state_dict": ...}``. The weights are
renamed (:mod:`hoi_distill.stages.checkpoints.detr_state_dict`,
:mod:`hoi_distill.stages.checkpoints.deformable_state_dict`), nothing is left over on either side but queries that only training
uses, and the architecture is read off their shapes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.stages.checkpoints import deformable_state_dict as deformable
from hoi_distill.stages.checkpoints import detr_state_dict as detr
from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch


def coco_names(classes: int, where: str) -> list[str]:
    """The classes' names by their number: 91 are COCO's official ids, which leave some numbers unused ("N/A"), 80 are its objects
    in COCO's order, as in the detectors of UPT and PViC.

    Raises:
        UserError: another number, whose order nobody can guess.
    """
    if classes not in (80, 91):
        raise UserError(
            f"{where}: {classes} classes, of which only 91 (COCO's ids) and 80 (its objects) speak for themselves; give --labels"
        )
    numbers = COCO_CATEGORY_IDS if classes == 91 else range(80)
    used = dict(zip(numbers, COCO_OBJECTS, strict=True))
    return [used.get(number, "N/A").replace("_", " ") for number in range(classes)]


def config_of(weights: Mapping[str, torch.Tensor], where: str) -> dict[str, Any]:
    """``DetrConfig``'s keywords, but for the names of the classes, by the shapes of the weights; the original always has 8 heads.

    Raises:
        KeyError: a weight is missing.
        UserError: a backbone that is none of :data:`timm_backbone.DEPTHS`.
    """
    body = {key.removeprefix(detr.BODY): each for key, each in weights.items() if key.startswith(detr.BODY)}
    layers = {
        side: len({key.split(".")[3] for key in weights if key.startswith(f"transformer.{side}.layers.")})
        for side in ("encoder", "decoder")
    }
    queries, width = weights["query_embed.weight"].shape
    return {
        "use_timm_backbone": False,
        "backbone_config": timm_backbone.recognised(body, [4], where),
        "d_model": width,
        "num_queries": queries,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_ffn_dim": len(weights["transformer.encoder.layers.0.linear1.weight"]),
        "decoder_ffn_dim": len(weights["transformer.decoder.layers.0.linear1.weight"]),
    }


def convert(
    path: Path, out: Path, labels: Sequence[str] | None = None, *, queries: int | None = None, dilated: bool = False
) -> None:
    """Write a transformers checkpoint with DETR's image processor (shortest edge 800, longest 1333).

    Args:
        path: The original ``.pth``.
        out: The folder to write.
        labels: The classes' names by number; None where they are COCO's 91 ids or its 80 objects.
        queries: How many queries of a Deformable DETR predict, where neither the file nor their number tells it.
        dilated: The backbone's last stage is dilated (DC5), which weights do not show. It need not be said where the file's
            training arguments or its name say so.

    Raises:
        UserError: no DETR, a dilated Deformable DETR, or weights that do not fill transformers' class exactly.
    """
    from transformers import DetrImageProcessorPil

    weights, arguments = _read(path)
    queries = queries or getattr(arguments, "num_queries_one2one", getattr(arguments, "num_queries", None))
    try:
        kind, config, found = _renamed(weights, queries, str(path))
    except KeyError as error:
        raise UserError(f"{path}: it lacks {error}; give an unmodified checkpoint") from None
    if dilated or getattr(arguments, "dilation", False) or "dc5" in path.name.lower():
        kind = _dilated(kind, config, str(path))
    names = list(labels) if labels is not None else coco_names(config["num_labels"], str(path))
    if len(names) != config["num_labels"]:
        raise UserError(f"{path}: {config['num_labels']} classes, but {len(names)} labels given")
    words = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = kind(kind.config_class(**{**config, **words}))
    own = model.state_dict()
    wrong = [
        key
        for key in sorted({*own, *found})
        if key not in own or key not in found or own[key].shape != found[key].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: the weights do not fill {kind.__name__} exactly ({', '.join(wrong[:4])}); give an unmodified checkpoint"
        )
    model.load_state_dict(found)
    model.save_pretrained(out)
    record = json.loads((out / "config.json").read_text())  # the file's own name may say what it was tuned on
    (out / "config.json").write_text(json.dumps({**record, "_name_or_path": path.name}, indent=2) + "\n")
    DetrImageProcessorPil().save_pretrained(out)


def _renamed(
    weights: Mapping[str, torch.Tensor], queries: int | None, where: str
) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """The class that can hold these weights, its configuration but for the names of its classes, and the weights as it names
    them; KeyError where a weight is missing by which a size is told."""
    import transformers

    if not deformable.recognised(weights):
        config = {**config_of(weights, where), "num_labels": len(weights["class_embed.weight"]) - 1}
        return transformers.DetrForObjectDetection, config, detr.translated(weights, where)
    from hoi_distill.stages.checkpoints.mixed_selection import MixedSelectionDeformableDetr

    mixed = deformable.mixed_selection(weights)
    kind = MixedSelectionDeformableDetr if mixed else transformers.DeformableDetrForObjectDetection
    count = deformable.queries_of(weights, queries, where)
    config = {**deformable.config_of(weights, count, where), "num_labels": len(weights["class_embed.0.weight"])}
    return kind, config, deformable.translated(weights, count, where)


def _dilated(kind: Any, config: Mapping[str, Any], where: str) -> Any:
    """The class with a dilated backbone; UserError where there is none."""
    from transformers import DetrForObjectDetection

    from hoi_distill.stages.checkpoints.dilated import DilatedDetr

    if kind is not DetrForObjectDetection:
        raise UserError(f"{where}: a Deformable DETR with a dilated (DC5) backbone cannot be read; use the plain one")
    timm_backbone.require_bottlenecks(config["backbone_config"], where)
    return DilatedDetr


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The state dict in a file, and the training's arguments if it has them."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the original's training arguments
            record = torch.load(path, map_location="cpu", weights_only=True)
        weights = record.get("model", record.get("model_state_dict", record))
        if not any(key.startswith("class_embed.") for key in weights):
            raise ValueError("it has no class_embed")
    except Exception as error:  # torch raises half a dozen classes for a file that it cannot or may not read
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: no DETR checkpoint that can be read safely ({why}); give the original .pth"
        ) from error
    return weights, record.get("args")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Convert an original DETR or Deformable DETR checkpoint to a transformers folder."
    )
    parser.add_argument("path", type=Path, help="the .pth file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the transformers checkpoint")
    parser.add_argument(
        "--labels",
        type=Path,
        help="text file with a class name a line, by number; needed unless they are COCO's 91 ids or its 80 objects",
    )
    parser.add_argument(
        "--queries", type=int, help="how many queries of a Deformable DETR predict; needed where the file does not tell"
    )
    parser.add_argument(
        "--dilated",
        action="store_true",
        help="a DETR-DC5, if neither its training arguments nor its file's name say so",
    )
    options = parser.parse_args(argv)
    labels = options.labels.read_text().splitlines() if options.labels else None
    try:
        convert(options.path, options.out, labels, queries=options.queries, dilated=options.dilated)
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
