"""Deformable DETR with mixed selection, which transformers' class lacks: the network of PViC's Defm-DETR and H-Defm-DETR.

In two-stage Deformable DETR the best proposals of the encoder give the decoder's queries both what they are and where they are.
With mixed selection (DINO, Zhang et al. 2022, section 3.4) they only say where; what a query is at first, is learnt.
H-Deformable-DETR (Jia et al. 2022) adds to this what only training needs, 1,500 queries for one-to-many matching and boxes whose
gradient reaches back two layers. To predict, all of these are one network.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoder
from typing_extensions import override


class MixedSelectionDecoder(DeformableDetrDecoder):
    """The decoder, whose queries start from learnt contents.

    Attributes:
        contents: what each of N queries is at first, ``[N, D]``.
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        self.contents = nn.Embedding(config.two_stage_num_proposals, config.d_model)

    @override
    def forward(self, inputs_embeds: Tensor, **others: Any) -> Any:
        """transformers' own, but for the queries.

        Args:
            inputs_embeds: the contents that proposals would give, ``[B, N, D]``; only their shape is used.
            others: as they are.
        """
        return super().forward(inputs_embeds=self.contents.weight.expand_as(inputs_embeds), **others)


class MixedSelectionDeformableDetr(DeformableDetrForObjectDetection):
    """Two-stage Deformable DETR with box refinement and mixed selection."""

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__(config)
        plain, self.model.decoder = self.model.decoder, MixedSelectionDecoder(config)
        self.model.decoder.bbox_embed, self.model.decoder.class_embed = plain.bbox_embed, plain.class_embed
