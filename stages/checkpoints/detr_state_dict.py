"""The original DETR's names of weights and transformers', both ways, without a file or a model.

The two implementations compute the same and name their weights differently: the original packs an attention's projections
to query, key and value into one matrix, every other key is only called something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Names:
    """What the weights of one family are called, the original's and transformers' for them.

    Attributes:
        model: the family, for messages.
        layer: for each side (``encoder``, ``decoder``), its modules in a layer.
        rest: beginnings of the keys outside of layers and backbone, each up to a dot.
    """

    model: str
    layer: Mapping[str, Mapping[str, str]]
    rest: Mapping[str, str]


FEED_FORWARD = {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}
DETR = Names(
    model="the original DETR",
    layer={
        "encoder": FEED_FORWARD | {
            "self_attn.out_proj": "self_attn.o_proj", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm",
        },
        "decoder": FEED_FORWARD | {
            "self_attn.out_proj": "self_attn.o_proj", "multihead_attn.out_proj": "encoder_attn.o_proj",
            "norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm",
        },
    },
    rest={
        "transformer.decoder.norm": "model.decoder.layernorm",
        "query_embed": "model.query_position_embeddings",
        "input_proj": "model.input_projection",
        "class_embed": "class_labels_classifier",
        "bbox_embed": "bbox_predictor",
    },
)  # fmt: skip
PACKED = re.compile(r"(transformer\.(?:en|de)coder\.layers\.\d+)\.(self|multihead)_attn\.in_proj_(weight|bias)")
INSIDE = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
BODY = "backbone.0.body."
OWN_BODY = "model.backbone.model."
OWN_INSIDE = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
THIRD = re.compile(r"model\.((?:en|de)coder\.layers\.\d+)\.(self_attn|encoder_attn)\.([qkv])_proj\.(weight|bias)")


def translated(weights: Mapping[str, torch.Tensor], where: str, names: Names = DETR) -> dict[str, torch.Tensor]:
    """The original's state dict under transformers' names, by default those of ``DetrForObjectDetection``.

    Raises:
        UserError: a key that a plain detector of this family does not have.
    """
    found: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        if packed := PACKED.fullmatch(key):
            layer, kind, part = packed.groups()
            attention = "self_attn" if kind == "self" else "encoder_attn"
            prefix = f"{layer.replace('transformer.', 'model.')}.{attention}"
            for name, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}.{name}_proj.{part}"] = third.contiguous()
        else:
            found[_renamed(key, where, names)] = tensor
    return found


def _renamed(key: str, where: str, names: Names) -> str:
    if key.startswith(BODY):
        try:
            return OWN_BODY + timm_backbone.renamed(key.removeprefix(BODY))
        except UserError as error:
            raise UserError(f"{where}: {error}; only a plain detector can be read") from None
    if inside := INSIDE.fullmatch(key):
        side, layer, module, part = inside.groups()
        if module in names.layer[side]:
            return f"model.{side}.layers.{layer}.{names.layer[side][module]}.{part}"
    for start, name in names.rest.items():
        if key.startswith(f"{start}."):
            return name + key.removeprefix(start)
    raise UserError(f"{where}: '{key}' is no weight of {names.model}; only its plain detector can be read")


def original(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """:func:`translated` undone. Keys that begin like none of transformers' DETR raise KeyError."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        if key.endswith("num_batches_tracked"):
            continue
        if third := THIRD.fullmatch(key):
            layer, attention, name, part = third.groups()
            if name == "q":
                kind = "self" if attention == "self_attn" else "multihead"
                thirds = [weights[f"model.{layer}.{attention}.{each}_proj.{part}"] for each in "qkv"]
                found[f"transformer.{layer}.{kind}_attn.in_proj_{part}"] = torch.cat(thirds)
        else:
            found[_original(key)] = tensor
    return found


def _original(key: str) -> str:
    if key.startswith(OWN_BODY):
        return BODY + timm_backbone.original(key.removeprefix(OWN_BODY))
    if inside := OWN_INSIDE.fullmatch(key):
        side, layer, module, part = inside.groups()
        names = {own: theirs for theirs, own in DETR.layer[side].items()}
        return f"transformer.{side}.layers.{layer}.{names[module]}.{part}"
    start, own = next((start, own) for start, own in DETR.rest.items() if key.startswith(f"{own}."))
    return start + key.removeprefix(own)
