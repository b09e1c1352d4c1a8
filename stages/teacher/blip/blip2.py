"""BLIP-2 as a teacher: feature maps and image-text matching from one pass of its vision tower (ViT-g, 14-pixel patches).

At 364 pixels, as the COCO checkpoint has it, the map is 26 x 26 of 1,408 channels. BLIP-2 has no [ENC] token: its matching
head was trained with [CLS], and averages over the query tokens instead of reading one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from hoi_distill.stages.teacher.blip.stages import BlipFeatures, ItmStage
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

    from hoi_distill.stages.teacher.blip.itm_scorer import PromptScorer


def text_vectors(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Texts in the space that BLIP-2 shares with its query tokens: the projected first token of the Q-Former, which reads the
    text alone. ``[P, E]``, not normalised.

    Args:
        model: a ``Blip2ForImageTextRetrieval``.
        ids: token ids ``[P, L]``.
        mask: ``[P, L]``, 1 where there is a token; None: everywhere.
    """
    embedded = model.embeddings(input_ids=ids)
    states = model.qformer(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state[:, 0]
    vectors: torch.Tensor = model.text_projection(states.to(model.text_projection.weight.dtype))
    return vectors


class Blip2Features(BlipFeatures):
    """BLIP-2's feature map ``[D, h, w]`` (no CLS), before the Q-Former. Columns are views: ``original``, ``flip``."""

    families = ("Blip2",)
    architectures = ("ForImageTextRetrieval",)

    @override
    def grid(self) -> tuple[int, int, int]:
        """``(D, h, w)`` of the tower's map; what ``config.json`` leaves out is the class's default."""
        vision = self.checkpoint.config.get("vision_config")
        if not isinstance(vision, dict):
            raise UserError(f"{self.checkpoint.folder}/config.json: has no 'vision_config'; use a BLIP-2 checkpoint")
        number = self.checkpoint.number
        side = number(vision, "image_size", 224) // number(vision, "patch_size", 14)
        return number(vision, "hidden_size", 1408), side, side


class Blip2Itm(ItmStage):
    """BLIP-2's two image-text matching logits (no match, match). Each column is a prompt."""

    families = ("Blip2",)

    @override
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "token_mode": "cls"}

    @override
    def make_scorer(self) -> PromptScorer:
        from hoi_distill.stages.teacher.blip.blip2_scorer import Blip2ItmScorer

        return Blip2ItmScorer(self.model, self.tokenizer, self.memory_mib)
