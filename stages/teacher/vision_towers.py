"""Vision towers of the feature maps: where an architecture keeps its tower, and what its configuration says of the map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class Tower:
    """A vision transformer of blocks of one width, and what its configuration means when it is silent.

    Attributes:
        path: the tower within the model, '' for the model itself.
        layers: the list of transformer blocks within the tower.
        norm: the final layer norm that the tower's own forward leaves to its pooled token ('' where it is applied).
        leading: tokens before the patches, registers not counted.
        projection: the linear map into the space that images share with texts, '' where there is none.
        defaults: of the configuration's keys.
        interpolates: whether the forward takes other image sizes without being asked to.
        pixels: the name of the forward's argument.
    """

    path: str
    layers: str
    norm: str
    leading: int
    projection: str
    defaults: Mapping[str, Any]
    interpolates: bool = False
    pixels: str = "pixel_values"

    def number(self, checkpoint: Checkpoint, key: str) -> int:
        """A size in the tower's configuration."""
        return checkpoint.number(vision_config(checkpoint), key, self.defaults[key])

    def depth(self, checkpoint: Checkpoint) -> int:
        """How many layers there are to choose from."""
        return self.number(checkpoint, "num_hidden_layers")

    def channels(self, checkpoint: Checkpoint, layer: int) -> int:  # noqa: ARG002 - of a pyramid it differs by layer
        """Channels of the map of a layer (1 to :meth:`depth`)."""
        return self.number(checkpoint, "hidden_size")

    def cell(self, checkpoint: Checkpoint, layer: int) -> int:  # noqa: ARG002 - of a pyramid it differs by layer
        """Pixels of the side of a cell of a layer's map."""
        return self.number(checkpoint, "patch_size")

    def usual_size(self, checkpoint: Checkpoint) -> int:
        """The side of the images that the checkpoint was trained on; of DINOv2, which its processor crops to."""
        if not self.interpolates:
            return self.number(checkpoint, "image_size")
        crop = checkpoint.preprocessing.get("crop_size")
        if not isinstance(crop, dict) or "height" not in crop:
            return self.number(checkpoint, "image_size")
        patch = self.number(checkpoint, "patch_size")
        return int(crop["height"]) // patch * patch

    def map_of(self, layer: int) -> str:
        """What a fingerprint says of the map of a layer."""
        return f"patch tokens of layer {layer} after the final layer norm"


@dataclass(frozen=True)
class Pyramid(Tower):
    """A tower of stages, each of a coarser grid and more channels: Florence-2's DaViT (Ding et al., ECCV 2022). A layer is a
    stage."""

    def _numbers(self, checkpoint: Checkpoint, key: str) -> tuple[int, ...]:
        vision = vision_config(checkpoint)
        if "dim_embed" in vision:
            raise UserError(
                f"{checkpoint.folder}/config.json: is written for remote code, which stays off; fetch the same model in "
                "transformers' own form, from florence-community"
            )
        found = vision.get(key, self.defaults[key])
        if not isinstance(found, list | tuple) or not all(isinstance(each, int) and each > 0 for each in found):
            raise UserError(
                f"{checkpoint.folder}/config.json: {key} is {found!r}, no list of whole numbers above 0; fetch it again"
            )
        return tuple(found)

    @override
    def depth(self, checkpoint: Checkpoint) -> int:
        return len(self._numbers(checkpoint, "embed_dim"))

    @override
    def channels(self, checkpoint: Checkpoint, layer: int) -> int:
        return self._numbers(checkpoint, "embed_dim")[layer - 1]

    @override
    def cell(self, checkpoint: Checkpoint, layer: int) -> int:
        return math.prod(self._numbers(checkpoint, "patch_stride")[:layer])

    @override
    def usual_size(self, checkpoint: Checkpoint) -> int:
        """The side that the processor resizes to; the tower itself knows none."""
        size = checkpoint.preprocessing.get("size")
        if not isinstance(size, dict) or "height" not in size:
            return self.number(checkpoint, "image_size")
        return int(size["height"])

    @override
    def map_of(self, layer: int) -> str:
        return f"map of stage {layer}"


def vision_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The tower's section of ``config.json``; the whole of it where the model is nothing but a tower.

    Raises:
        UserError: it is no section.
    """
    vision = checkpoint.config.get("vision_config", checkpoint.config)
    if not isinstance(vision, dict):
        raise UserError(f"{checkpoint.folder}/config.json: vision_config is {vision!r}; fetch it again")
    return vision


CLIP_DEFAULTS = {"hidden_size": 768, "image_size": 224, "patch_size": 32, "num_hidden_layers": 12}
CLIP = Tower("vision_model", "encoder.layers", "post_layernorm", 1, "visual_projection", CLIP_DEFAULTS)
CLIP_ALONE = Tower("", "encoder.layers", "post_layernorm", 1, "", CLIP_DEFAULTS)
SIGLIP_DEFAULTS = CLIP_DEFAULTS | {"patch_size": 16}
SIGLIP = Tower("vision_model", "encoder.layers", "", 0, "", SIGLIP_DEFAULTS)
SIGLIP_ALONE = Tower("", "encoder.layers", "", 0, "", SIGLIP_DEFAULTS)
DINO = Tower("", "encoder.layer", "", 1, "", CLIP_DEFAULTS | {"patch_size": 14}, interpolates=True)
DAVIT_DEFAULTS = {"embed_dim": (128, 256, 512, 1024), "patch_stride": (4, 2, 2, 2), "image_size": 768}
DAVIT = Pyramid("model.vision_tower", "blocks", "", 0, "", DAVIT_DEFAULTS, interpolates=True, pixels="hidden_states")
REGISTERS = {"Dinov2WithRegistersModel": 4}
TOWERS: Mapping[str, Tower] = {
    "CLIPModel": CLIP,
    "CLIPVisionModelWithProjection": CLIP,
    "PicoClipModel": CLIP,
    "CLIPVisionModel": CLIP_ALONE,
    "SiglipModel": SIGLIP,
    "SiglipVisionModel": SIGLIP_ALONE,
    "Dinov2Model": DINO,
    "Dinov2WithRegistersModel": DINO,
    "Florence2ForConditionalGeneration": DAVIT,
}
"""The tower of each architecture."""
