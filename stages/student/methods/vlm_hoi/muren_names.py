"""Names of weights in checkpoints of MUREN's released code, and of CDN's, whose code it grew from, and this network's.

Both build on the original DETR: transformer layers with packed attention, torchvision's ResNet. Here they are
transformers'. :mod:`hoi_distill.stages.checkpoints.detr_state_dict` changes a layer's inside; what stands before it is
listed in this module.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hoi_distill.stages.checkpoints import detr_state_dict as detr_names
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.relation import BRANCHES
from hoi_distill.storage.errors import UserError

ENCODER = ("transformer.encoder.layers.", "model.encoder.layers.")
DECODER = ("transformer.decoder.layers.", "model.decoder.layers.")
FIRST_ENCODER = (f"{ENCODER[0]}0.", f"{ENCODER[1]}0.")
FIRST_DECODER = (f"{DECODER[0]}0.", f"{DECODER[1]}0.")
SHORT = dict(zip(BRANCHES, ("human", "obj", "rel"), strict=True))
IMAGE = {
    "backbone.0.body.": (detr_names.BODY, detr_names.OWN_BODY, "backbone.model."),
    "input_proj.": ("input_proj.", "model.input_projection.", "input_projection."),
    "transformer.encoder.layers.": (*ENCODER, "encoder.layers."),
}
"""Beginnings of released names that DETR's have inside: (DETR's original, transformers', ours)."""
LAYERED = {
    **IMAGE,
    **{f"transformer.decoder.layers_{short}.": (*DECODER, f"decoders.{branch}.") for branch, short in SHORT.items()},
    "transformer.decoder.MURE.unary_self.": (*FIRST_ENCODER, "mure.unary."),
    "transformer.decoder.MURE.pairwise_self.": (*FIRST_ENCODER, "mure.pairwise."),
    "transformer.decoder.MURE.unary_cross.": (*FIRST_DECODER, "mure.unary_cross."),
    "transformer.decoder.MURE.pairwise_cross.": (*FIRST_DECODER, "mure.pairwise_cross."),
    "transformer.decoder.MURE.mc_gen.": (*FIRST_DECODER, "mure.context."),
}
HEADS = {
    "sub_bbox_embed.": "human_box.",
    "obj_bbox_embed.": "object_box.",
    "obj_class_embed.": "object_classifier.",
    "verb_class_embed.": "verb_classifier.",
}
PLAIN = {
    **HEADS,
    **{f"transformer.decoder.norm_{short}.": f"norms.{branch}." for branch, short in SHORT.items()},
    **{f"query_embed_{short}.weight": f"queries.{branch}" for branch, short in SHORT.items()},
    "transformer.decoder.MURE.ternary.": "mure.ternary.",
    "transformer.decoder.MURE.human_obj.": "mure.pairs.human_object.",
    "transformer.decoder.MURE.human_rel.": "mure.pairs.human_relation.",
    "transformer.decoder.MURE.obj_rel.": "mure.pairs.object_relation.",
}
"""Beginnings that are all that differs: released, ours."""


def fusions(config: MurenConfig) -> dict[str, str]:
    """Beginnings of the attentive fusions' names (the spelling is theirs): released, ours."""
    numbers = {"": 0} if config.shared_fusion else {f"{index}.": index for index in range(config.decoder_layers)}
    return {
        f"transformer.decoder.aft_{short}.atfm.{number}{theirs}.": f"fusions.{branch}.{index}.{own}."
        for branch, short in SHORT.items()
        for number, index in numbers.items()
        for theirs, own in (("attetion_block", "gate"), ("mlp_layer", "update"))
    }


def from_muren(
    weights: Mapping[str, Tensor], config: MurenConfig, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A released MUREN's state dict under this network's names, and the keys that it has no place for."""
    return _renamed(weights, LAYERED, PLAIN | fusions(config), where)


def to_muren(weights: Mapping[str, Tensor], config: MurenConfig) -> dict[str, Tensor]:
    """This network's state dict as the released code names it.

    Raises:
        UserError: a backbone other than a ResNet, which the released code cannot hold.
    """
    if config.backbone.get("model_type") != "resnet":
        raise UserError(
            f"backbone: MUREN's code has no '{config.backbone.get('model_type')}'; only a resnet can be written"
        )
    found: dict[str, Tensor] = {}
    for theirs, (released, transformers, own) in LAYERED.items():
        group = {transformers + key.removeprefix(own): each for key, each in weights.items() if key.startswith(own)}
        found |= {theirs + key.removeprefix(released): each for key, each in detr_names.original(group).items()}
    for theirs, own in (PLAIN | fusions(config)).items():
        found |= {theirs + key.removeprefix(own): each for key, each in weights.items() if key.startswith(own)}
    return found


def from_cdn(weights: Mapping[str, Tensor], decoders: bool, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A CDN's state dict (or DETR's as its converter writes it) as far as this network has a place, and the other keys.

    CDN has a decoder for humans and objects together and one for interactions, whose queries are the first one's answers.
    QPIC, before it, has one for all.

    Args:
        weights: the state dict.
        decoders: start from them: the first for humans and for objects, with its queries, the second for interactions.
        where: names the file in messages.
    """
    layered, plain = dict(IMAGE), dict(HEADS)
    seconds = ("transformer.interaction_decoder.", "transformer.stage2_decoder.")
    second = next((name for name in seconds if any(key.startswith(name) for key in weights)), None)
    if decoders:
        layered[DECODER[0]] = (*DECODER, "decoders.human.")
        plain |= {"transformer.decoder.norm.": "norms.human.", "query_embed.weight": "queries.human"}
        if second is not None:
            layered[f"{second}layers."] = (*DECODER, "decoders.relation.")
            plain[f"{second}norm."] = "norms.relation."
    found, left = _renamed(weights, layered, plain, where)
    for branch in ("object",) if second is not None else ("object", "relation"):
        for start in ("decoders.", "norms.", "queries."):
            first = f"{start}human"
            found |= {
                start + branch + key.removeprefix(first): found[key] for key in list(found) if key.startswith(first)
            }
    return found, left


def from_detr(weights: Mapping[str, Tensor], decoders: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """transformers' DETR's state dict as far as this network has a place, and the other keys.

    Args:
        weights: the state dict.
        decoders: start all three from its one decoder, with its queries and its box head.
    """
    places: dict[str, tuple[str, ...]] = {
        "model.backbone.": ("backbone.",),
        "model.encoder.": ("encoder.",),
        "model.input_projection.": ("input_projection.",),
    }
    if decoders:
        places |= {
            "model.decoder.layers.": tuple(f"decoders.{branch}." for branch in BRANCHES),
            "model.decoder.layernorm.": tuple(f"norms.{branch}." for branch in BRANCHES),
            "model.query_position_embeddings.weight": tuple(f"queries.{branch}" for branch in BRANCHES),
            "bbox_predictor.": ("human_box.", "object_box."),
        }
    found: dict[str, Tensor] = {}
    left = []
    for key, tensor in weights.items():
        start = next((start for start in places if key.startswith(start)), None)
        if start is None:
            left.append(key)
        else:
            found |= {own + key.removeprefix(start): tensor for own in places[start]}
    return found, tuple(left)


def from_rt_detr(weights: Mapping[str, Tensor], channels: int, eps: float) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """transformers' RT-DETR's state dict as far as this network has a place, and the other keys.

    The backbone computes the same. The projection of the level with ``channels`` channels is a convolution and a batch
    norm, here one convolution. The encoder's layers were trained with GELU and other positions: a warm start, no more.
    """
    found, left = {}, []
    for key, tensor in weights.items():
        for start, own in (("model.backbone.", "backbone."), ("model.encoder.aifi.0.layers.", "encoder.layers.")):
            if key.startswith(start):
                found[own + key.removeprefix(start)] = tensor
                break
        else:
            left.append(key)
    levels = [key for key in left if key.startswith("model.encoder_input_proj.") and key.endswith(".0.weight")]
    for key in levels:
        if weights[key].shape[1] == channels:
            norm = key.removesuffix("0.weight") + "1."
            scale = weights[f"{norm}weight"] * (weights[f"{norm}running_var"] + eps).rsqrt()
            found["input_projection.weight"] = weights[key] * scale[:, None, None, None]
            found["input_projection.bias"] = weights[f"{norm}bias"] - weights[f"{norm}running_mean"] * scale
            used = {key, *(f"{norm}{each}" for each in ("weight", "bias", "running_mean", "running_var"))}
            left = [each for each in left if each not in used]
    return found, tuple(left)


def _renamed(
    weights: Mapping[str, Tensor], layered: Mapping[str, tuple[str, str, str]], plain: Mapping[str, str], where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    found: dict[str, Tensor] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    left = []
    for key, tensor in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        if start := next((start for start in layered if key.startswith(start)), None):
            groups.setdefault(start, {})[layered[start][0] + key.removeprefix(start)] = tensor
        elif start := next((start for start in plain if key.startswith(start)), None):
            found[plain[start] + key.removeprefix(start)] = tensor
        else:
            left.append(key)
    for start, group in groups.items():
        _, transformers, own = layered[start]
        named = detr_names.translated(group, where)
        found |= {own + key.removeprefix(transformers): tensor for key, tensor in named.items()}
    return found, tuple(left)
