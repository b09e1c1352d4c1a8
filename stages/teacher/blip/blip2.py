"""BLIP-2 as a teacher: feature maps and image-text matching from one pass of its vision tower (ViT-g, 14-pixel patches).

At 364 pixels, as the COCO checkpoint has it, the map is 26 x 26 of 1,408 channels. BLIP-2 has no [ENC] token: its matching
head was trained with [CLS], and averages over the query tokens instead of reading one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hoi_distill.stages.stage import Codec, TensorOutput
from hoi_distill.stages.teacher.blip.stages import BlipFeatures, ItmStage
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.teacher.blip.itm_scorer import PromptScorer


class Blip2Features(BlipFeatures):
    """BLIP-2's feature map ``[D, h, w]`` (no CLS), before the Q-Former. Columns are views: ``original``, ``flip``."""

    families = ("Blip2",)
    architectures = ("ForImageTextRetrieval",)

    def __init__(
        self, checkpoint: Checkpoint, columns: Sequence[str] = ("original",), *, codec: Codec = "fp16", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(checkpoint, columns, codec=codec, **options)
        self.output = TensorOutput(grid(checkpoint), codec)


class Blip2Itm(ItmStage):
    """BLIP-2's two image-text matching logits (no match, match). Each column is a prompt."""

    families = ("Blip2",)

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "token_mode": "cls"}

    def make_scorer(self) -> PromptScorer:
        from hoi_distill.stages.teacher.blip.blip2_scorer import Blip2ItmScorer

        return Blip2ItmScorer(self.model, self.tokenizer, self.memory_mib)


def grid(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """``(D, h, w)`` of the tower's map; what ``config.json`` leaves out is the class's default."""
    vision = checkpoint.config.get("vision_config")
    if not isinstance(vision, dict):
        raise UserError(f"{checkpoint.folder}/config.json: has no 'vision_config'; use a BLIP-2 checkpoint")
    side = checkpoint.number(vision, "image_size", 224) // checkpoint.number(vision, "patch_size", 14)
    return checkpoint.number(vision, "hidden_size", 1408), side, side
