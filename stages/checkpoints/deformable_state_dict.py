"""Deformable DETR in its authors' format, H-Deformable-DETR's and PViC's, under transformers' names.

The three codes (Zhu et al. 2020, Jia et al. 2022, Zhang et al. 2023) name their weights alike. Which variant a checkpoint is, and
all sizes, are read off the weights: a ResNet or a Swin, one stage or two, boxes refined or not, mixed selection or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hoi_distill.stages.checkpoints import detr_state_dict as detr
from hoi_distill.stages.checkpoints import swin_state_dict as swin
from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
NAMES = detr.Names(
    model="Deformable DETR",
    layer={
        "encoder": detr.FEED_FORWARD | {f"self_attn.{name}": f"self_attn.{name}" for name in _DEFORMABLE} | {
            "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm",
        },
        "decoder": detr.FEED_FORWARD | {f"cross_attn.{name}": f"encoder_attn.{name}" for name in _DEFORMABLE} | {
            "self_attn.out_proj": "self_attn.o_proj",
            "norm1": "encoder_attn_layer_norm", "norm2": "self_attn_layer_norm", "norm3": "final_layer_norm",
        },
    },
    rest={
        **{f"transformer.{name}": f"model.{name}" for name in (
            "decoder.bbox_embed", "decoder.class_embed", "enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm",
            "reference_points",
        )},
        "input_proj": "model.input_proj", "class_embed": "class_embed", "bbox_embed": "bbox_embed",
    },
)  # fmt: skip
LEVELS = "transformer.level_embed"
QUERIES = "query_embed.weight"
HEADS = 8
"""Attention heads, which shapes do not show; all published checkpoints have as many."""
ONE_TO_ONE = {300: 300, 900: 900, 1800: 300, 2400: 900}
"""How many of a published checkpoint's queries predict: the others are 1,500 for one-to-many matching in training."""


def recognised(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is some Deformable DETR's."""
    return LEVELS in weights


def mixed_selection(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the decoder's queries have learnt contents and the encoder's places."""
    return QUERIES in weights and "transformer.enc_output.weight" in weights


def config_of(weights: Mapping[str, torch.Tensor], queries: int, where: str) -> dict[str, Any]:
    """``DeformableDetrConfig``'s keywords, but for the names of the classes.

    Args:
        weights: a whole state dict of the original.
        queries: how many predict, from :func:`queries_of`.
        where: the file, for messages.

    Raises:
        KeyError: a weight is missing.
        UserError: a backbone that is neither a Swin nor a ResNet.
    """
    levels, width = weights[LEVELS].shape
    sides = ("encoder", "decoder")
    layers = {side: _count(weights, f"transformer.{side}.layers.") for side in sides}
    rows = {
        "encoder": len(weights["transformer.encoder.layers.0.self_attn.attention_weights.bias"]),
        "decoder": len(weights["transformer.decoder.layers.0.cross_attn.attention_weights.bias"]),
    }
    body, maps = _backbone(weights), [2, 3, 4] if levels > 1 else [4]
    return {
        "use_timm_backbone": False,
        "backbone_config": swin.config(body) if swin.recognised(body) else timm_backbone.recognised(body, maps, where),
        "d_model": width,
        "num_feature_levels": levels,
        "num_queries": queries,
        "two_stage": "transformer.enc_output.weight" in weights,
        "two_stage_num_proposals": queries,
        "with_box_refine": _count(weights, "transformer.decoder.bbox_embed.") > 0,
        "dropout": 0.0,
        "tie_word_embeddings": False,  # of transformers, which then ties no layer's heads to another's
        **{f"{side}_layers": layers[side] for side in sides},
        **{f"{side}_ffn_dim": len(weights[f"transformer.{side}.layers.0.linear1.weight"]) for side in sides},
        **{f"{side}_attention_heads": HEADS for side in sides},
        **{f"{side}_n_points": rows[side] // (HEADS * levels) for side in sides},
    }


def queries_of(weights: Mapping[str, torch.Tensor], told: int | None, where: str) -> int:
    """How many queries predict.

    Args:
        weights: a state dict of the original.
        told: what the user or the checkpoint's own training arguments say.
        where: the file, for messages.

    Raises:
        UserError: nobody says it, or more than there are.
    """
    learnt = len(weights[QUERIES]) if QUERIES in weights else None
    if learnt is None:
        return told or 300
    count = told or ONE_TO_ONE.get(learnt)
    if count is None or count > learnt:
        raise UserError(
            f"{where}: {learnt} queries, and how many of them predict is {count or 'not told'}; give --queries, the number "
            "for one-to-one matching"
        )
    return count


def translated(weights: Mapping[str, torch.Tensor], queries: int, where: str) -> dict[str, torch.Tensor]:
    """The state dict under the names of ``DeformableDetrForObjectDetection`` or, with mixed selection, of
    :class:`hoi_distill.stages.checkpoints.mixed_selection.MixedSelectionDeformableDetr`.

    Args:
        weights: the original's.
        queries: how many predict, from :func:`queries_of`; they are the first. The others are left out.
        where: the file, for messages.

    Raises:
        UserError: a key that no plain detector of these has.
    """
    rest = dict(weights)
    found = {"model.level_embed": rest.pop(LEVELS)}
    if QUERIES in rest:
        own = "model.decoder.contents.weight" if mixed_selection(weights) else "model.query_position_embeddings.weight"
        found[own] = rest.pop(QUERIES)[:queries].clone()
    body = _backbone(rest)
    if swin.recognised(body):
        found |= {detr.OWN_BODY + key: each for key, each in swin.translated(body, where).items()}
        rest = {key: each for key, each in rest.items() if not key.startswith(detr.BODY)}
    return found | detr.translated(rest, where, NAMES)


def _backbone(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(detr.BODY): each for key, each in weights.items() if key.startswith(detr.BODY)}


def _count(weights: Mapping[str, torch.Tensor], start: str) -> int:
    """How many numbers follow ``start`` in the names of weights."""
    return len({key.removeprefix(start).split(".")[0] for key in weights if key.startswith(start)})
