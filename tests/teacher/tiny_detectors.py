"""Tiny random checkpoints of the DETR family's real classes, saved as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS

FAMILIES = ("detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2")
SIDE = 64
COCO_80 = {number: name.replace("_", " ") for number, name in enumerate(COCO_OBJECTS)}
COCO_91 = dict.fromkeys(range(91), "N/A") | dict(zip(COCO_CATEGORY_IDS, COCO_80.values(), strict=True))


def tiny_detector(family: str, folder: Path, backbone: dict[str, Any] | None = None) -> Path:
    """A detector of ``family`` in ``folder``; DETR's classes are COCO's 91 ids, the others' the 80."""
    import torch
    import transformers as hf

    torch.manual_seed(len(family))
    names = COCO_91 if family == "detr" else COCO_80
    words = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12, **ffn, **words}
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
    resnet = hf.ResNetConfig(**(backbone or {**sizes, "out_features": ["stage4"]}))
    edges = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    processor: Any
    config: Any
    if family.startswith("rt_detr"):
        stages = hf.RTDetrResNetConfig(**sizes, layer_type="basic", out_indices=[2, 3, 4])
        wide = {"encoder_hidden_dim": 32, "encoder_in_channels": [24, 32, 40], "decoder_in_channels": [32] * 3}
        make = hf.RTDetrConfig if family == "rt_detr" else hf.RTDetrV2Config
        config = make(backbone_config=stages, **small, **wide, num_denoising=0)
        processor = hf.RTDetrImageProcessorPil(size={"height": SIDE, "width": SIDE})
        model = hf.RTDetrForObjectDetection(config) if family == "rt_detr" else hf.RTDetrV2ForObjectDetection(config)
    elif family == "detr":
        model = hf.DetrForObjectDetection(hf.DetrConfig(use_timm_backbone=False, backbone_config=resnet, **small))
        processor = hf.DetrImageProcessorPil(size=edges)
    elif family == "conditional_detr":
        config = hf.ConditionalDetrConfig(use_timm_backbone=False, backbone_config=resnet, **small)
        model = hf.ConditionalDetrForObjectDetection(config)
        processor = hf.ConditionalDetrImageProcessorPil(size=edges)
    else:
        stages = hf.ResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])
        config = hf.DeformableDetrConfig(
            use_timm_backbone=False, backbone_config=stages, **small, num_feature_levels=3, two_stage=False
        )
        model = hf.DeformableDetrForObjectDetection(config)
        processor = hf.DeformableDetrImageProcessorPil(size=edges)
    stir(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def stir(model: Any) -> None:
    """Weights with which picture, query and class all move the answers (the library's leave some of them at zero)."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_normal_(parameter, gain=1.5)
        elif "norm" not in name and not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
        if name.endswith("class_labels_classifier") and module.out_features == 92:
            unused = sorted(set(range(91)) - set(COCO_CATEGORY_IDS))
            with torch.no_grad():
                module.bias[unused] = -30.0  # as in any trained DETR: nothing was ever labelled N/A
