"""The original DETR's ``.pth`` as a transformers checkpoint:
``python -m hoi_distill.stages.checkpoints.detr_pth FILE.pth --out DIR``.

facebookresearch/detr (Carion et al. 2020) and what was fine-tuned with its code, on HICO-DET say, keep ``{"model": state
dict, ...}``. The weights are renamed (:mod:`hoi_distill.stages.checkpoints.detr_state_dict`), nothing is left over on
either side, and the architecture is read off their shapes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.checkpoints.detr_state_dict import BODY, translated
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch


def coco_names(classes: int, where: str) -> list[str]:
    """The classes' names by their number: 91 are COCO's official ids, which leave some numbers unused ("N/A").

    Raises:
        UserError: another number, whose order nobody can guess.
    """
    if classes != 91:
        raise UserError(
            f"{where}: {classes} classes, of which only 91 (COCO's ids) speak for themselves; give --labels"
        )
    used = dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True))
    return [used.get(number, "N/A").replace("_", " ") for number in range(classes)]


def config_of(weights: Mapping[str, torch.Tensor], names: Sequence[str], where: str) -> dict[str, Any]:
    """``DetrConfig``'s keywords, by the shapes of the weights; the original always has 8 heads.

    Raises:
        UserError: a backbone that is none of :data:`timm_backbone.DEPTHS`, or as many names as there are not classes.
    """
    blocks = [len({key.split(".")[4] for key in weights if key.startswith(f"{BODY}layer{n}.")}) for n in (1, 2, 3, 4)]
    bottleneck = f"{BODY}layer1.0.conv3.weight" in weights
    backbone = next(
        (
            name
            for name, depths in timm_backbone.DEPTHS.items()
            if depths == tuple(blocks) and bottleneck == (name not in ("resnet18", "resnet34"))
        ),
        None,
    )
    if backbone is None:
        raise UserError(f"{where}: no ResNet has stages of {blocks} blocks; only ResNet backbones can be read")
    if len(names) != len(weights["class_embed.weight"]) - 1:
        raise UserError(f"{where}: {len(weights['class_embed.weight']) - 1} classes, but {len(names)} labels given")
    layers = {
        side: len({key.split(".")[3] for key in weights if key.startswith(f"transformer.{side}.layers.")})
        for side in ("encoder", "decoder")
    }
    queries, width = weights["query_embed.weight"].shape
    return {
        "use_timm_backbone": False,
        "backbone_config": timm_backbone.resnet(backbone, [4]),
        "d_model": width,
        "num_queries": queries,
        "encoder_layers": layers["encoder"],
        "decoder_layers": layers["decoder"],
        "encoder_ffn_dim": len(weights["transformer.encoder.layers.0.linear1.weight"]),
        "decoder_ffn_dim": len(weights["transformer.decoder.layers.0.linear1.weight"]),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def convert(path: Path, out: Path, labels: Sequence[str] | None = None) -> None:
    """Write a transformers checkpoint with DETR's image processor (shortest edge 800, longest 1333).

    Args:
        path: The original ``.pth``.
        out: The folder to write.
        labels: The classes' names by number; None where they are COCO's 91 ids.

    Raises:
        UserError: no DETR, a dilated (DC5) one, or weights that do not fill transformers' class exactly.
    """
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessorPil

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the original's training arguments
            record = torch.load(path, map_location="cpu", weights_only=True)
        weights = record.get("model", record)
        classes = len(weights["class_embed.weight"]) - 1
    except Exception as error:  # torch raises half a dozen classes for a file that it cannot or may not read
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: no DETR checkpoint that can be read safely ({why}); give the original .pth"
        ) from error
    if getattr(record.get("args"), "dilation", False):
        raise UserError(f"{path}: a dilated (DC5) backbone has no counterpart in transformers; use the plain one")
    names = list(labels) if labels is not None else coco_names(classes, str(path))
    model = DetrForObjectDetection(DetrConfig(**config_of(weights, names, str(path))))
    wrong = model.load_state_dict(translated(weights, str(path)), strict=False)
    if wrong.missing_keys or wrong.unexpected_keys:
        keys = ", ".join(sorted([*wrong.missing_keys, *wrong.unexpected_keys])[:4])
        raise UserError(f"{path}: the weights do not fill DETR exactly ({keys}); give an unmodified DETR")
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())  # the file's own name may say what it was tuned on
    (out / "config.json").write_text(json.dumps({**config, "_name_or_path": path.name}, indent=2) + "\n")
    DetrImageProcessorPil().save_pretrained(out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Convert an original DETR checkpoint to a transformers folder.")
    parser.add_argument("path", type=Path, help="the .pth file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the transformers checkpoint")
    parser.add_argument(
        "--labels", type=Path, help="text file with a class name a line, by number; needed unless they are COCO's 91"
    )
    options = parser.parse_args(argv)
    try:
        convert(options.path, options.out, options.labels.read_text().splitlines() if options.labels else None)
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
