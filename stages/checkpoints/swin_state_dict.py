"""A Swin backbone as its authors' code for detection saves it (Liu et al. 2021), under transformers' names.

That code and transformers' ``SwinBackbone`` compute the same: windows are padded and shifted whatever the size of the image, and
each map that leaves the backbone has a norm of its own. The first packs the projections to query, key and value into one matrix;
every other key is only called something else. Keys here have no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

TABLE = "attn.relative_position_bias_table"
INDEX = "attn.relative_position_index"
"""A constant: which row of the table belongs to each pair of a window's cells."""
BLOCK = {
    "norm1.": "layernorm_before.", "norm2.": "layernorm_after.", "mlp.": "mlp.", "attn.proj.": "attention.o_proj.",
    TABLE: "attention.relative_position_bias.relative_position_bias_table",
}  # fmt: skip
REST = {
    "patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "swin.embeddings.norm.",
}
"""Beginnings of the original's keys in a block and outside of one, and transformers' for them."""
_INSIDE = re.compile(r"(layers\.\d+\.blocks\.\d+\.)(.+)")
_PACKED = re.compile(r"(layers\.\d+\.blocks\.\d+\.)attn\.qkv\.(weight|bias)")
_BETWEEN = re.compile(r"layers\.\d+\.downsample\.(norm|reduction)\.(weight|bias)")
_MAP = re.compile(r"norm(\d)\.(weight|bias)")


def recognised(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a backbone's weights are a Swin's."""
    return "patch_embed.proj.weight" in weights


def config(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """transformers' configuration of a whole Swin, by the shapes of its weights; KeyError where it is not whole."""
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    stages = sorted({int(key.split(".")[1]) for key in weights if _INSIDE.fullmatch(key)})
    tables = [weights[f"layers.{stage}.blocks.0.{TABLE}"] for stage in stages]
    maps = {int(found[1]) for key in weights if (found := _MAP.fullmatch(key))}
    return {
        "model_type": "swin",
        "num_channels": channels,
        "patch_size": patch,
        "embed_dim": width,
        "depths": [sum(key.startswith(f"layers.{n}.") and key.endswith(TABLE) for key in weights) for n in stages],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (isqrt(len(tables[0])) + 1) // 2,
        "mlp_ratio": len(weights["layers.0.blocks.0.mlp.fc1.weight"]) / width,
        "out_features": [f"stage{number + 1}" for number in sorted(maps)],
    }


def translated(weights: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The weights of a whole Swin under the names of ``SwinBackbone``.

    transformers' class also has a norm whose result no backbone uses; it gets ones and zeros.

    Raises:
        UserError: a key that is no weight of a Swin without absolute positions.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        if packed := _PACKED.fullmatch(key):
            for name, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"swin.encoder.{packed[1]}attention.{name}_proj.{packed[2]}"] = third.contiguous()
        elif not key.endswith(INDEX):
            found[_renamed(key, where)] = tensor
    unused = torch.zeros(8 * len(weights["patch_embed.proj.weight"]))  # channels double three times
    return found | {"swin.layernorm.weight": unused + 1, "swin.layernorm.bias": unused}


def _renamed(key: str, where: str) -> str:
    if number := _MAP.fullmatch(key):
        return f"hidden_states_norms.stage{int(number[1]) + 1}.{number[2]}"
    if _BETWEEN.fullmatch(key):
        return f"swin.encoder.{key}"
    inside = _INSIDE.fullmatch(key)
    prefix, rest = (f"swin.encoder.{inside[1]}", inside[2]) if inside else ("", key)
    for start, own in (BLOCK if inside else REST).items():
        if rest.startswith(start):
            return prefix + own + rest.removeprefix(start)
    raise UserError(
        f"{where}: '{key}' is no weight of a Swin for detection; only one without absolute positions can be read"
    )
