"""MUREN: one encoder, three decoders (human, object, interaction) that exchange a relation context after every layer.

Kim et al., "Relational Context Learning for Human-Object Interaction Detection", CVPR 2023; VLM-HOI (arXiv 2411.18038)
trains the same network. Names inside the backbone, encoder and decoder layers are those of transformers' DETR.

Shape legend: B images, H x W pixels, S = h * w cells of the map, N queries, D width, L decoder layers, K objects, V verbs.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.models.detr.modeling_detr import DetrDecoderLayer
from typing_extensions import override

from hoi_distill.stages.student.methods.vlm_hoi.attention import MLP, EncoderLayer, layer_config, sine_positions
from hoi_distill.stages.student.methods.vlm_hoi.backbone import Backbone, mask_of_map
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.relation import BRANCHES, AttentiveFusion, MultiplexRelation


class MurenOutput(NamedTuple):
    """The network's output for B images after each of L decoder layers; the last one is the answer.

    Attributes:
        human_boxes: float32 ``[L, B, N, 4]`` cxcywh in 0..1 of the image without its padding.
        object_boxes: float32 ``[L, B, N, 4]`` likewise.
        object_logits: ``[L, B, N, K + 1]`` for a softmax; the last class is "no object". With ``missing_object`` there is
            one more before it, K.
        verb_logits: ``[L, B, N, V]`` for sigmoids.
    """

    human_boxes: Tensor
    object_boxes: Tensor
    object_logits: Tensor
    verb_logits: Tensor

    def layer(self, index: int) -> MurenOutput:
        """One decoder layer's output; every tensor loses its L axis."""
        return MurenOutput(*(each[index] for each in self))


class EncoderLayers(nn.Module):
    """Holds ``layers``, so that names are DETR's."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Muren(nn.Module):
    """See the module's docstring. Weights are random;
    :func:`~hoi_distill.stages.student.methods.vlm_hoi.initial_weights.initialise` loads."""

    def __init__(self, config: MurenConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.d_model, config.decoder_layers
        layer = layer_config(width, config.heads, config.ffn, config.dropout)
        self.backbone = Backbone(
            config.backbone, frozen_batch_norm=config.frozen_batch_norm, frozen_stages=config.frozen_stages
        )
        self.input_projection = nn.Conv2d(self.backbone.channels, width, kernel_size=1)
        self.encoder = EncoderLayers([EncoderLayer(layer) for _ in range(config.encoder_layers)])
        self.queries = nn.ParameterDict({name: nn.Parameter(torch.randn(config.queries, width)) for name in BRANCHES})
        self.decoders = nn.ModuleDict(
            {name: nn.ModuleList(DetrDecoderLayer(layer) for _ in range(depth)) for name in BRANCHES}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in BRANCHES})
        self.mure = MultiplexRelation(layer)
        count = 1 if config.shared_fusion else depth
        self.fusions = nn.ModuleDict(
            {name: nn.ModuleList(AttentiveFusion(width) for _ in range(count)) for name in BRANCHES}
        )
        self.human_box = MLP(width, width, 4, 3)
        self.object_box = MLP(width, width, 4, 3)
        self.object_classifier = nn.Linear(width, config.no_object + 1)
        self.verb_classifier = nn.Linear(width, config.verbs)
        self._draw()

    @override
    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> MurenOutput:
        """Of images in one frame.

        Args:
            pixel_values: float ``[B, 3, H, W]``, normalised as the backbone wants, 0 where padded.
            pixel_mask: ``[B, H, W]`` bool or 0/1, True in the image, which begins at the top left corner.
        """
        feature_map = self.backbone(pixel_values)
        return self.transform(feature_map, mask_of_map(pixel_mask, feature_map))

    def transform(self, feature_map: Tensor, cells: Tensor) -> MurenOutput:
        """Everything after the backbone: map ``[B, C, h, w]``, bool ``[B, h, w]`` of its cells in the image."""
        memory = self.input_projection(feature_map).flatten(2).transpose(1, 2)  # [B, S, D]
        positions = sine_positions(cells, self.config.d_model).to(memory.dtype)
        mask = cells.flatten(1)[:, None, None]  # [B, 1, 1, S]
        for layer in self.encoder.layers:
            memory = layer(memory, mask, spatial_position_embeddings=positions)
        return self.heads(self.decode(memory, mask, positions))

    def decode(self, memory: Tensor, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Each branch's normed tokens after each decoder layer, ``[L, B, N, D]``, of the encoded image."""
        queries = {name: self.queries[name].expand(len(memory), -1, -1) for name in BRANCHES}
        tokens = {name: torch.zeros_like(query) for name, query in queries.items()}
        normed: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
        for index in range(self.config.decoder_layers):
            for name in BRANCHES:
                layer = cast(nn.ModuleList, self.decoders[name])[index]
                tokens[name] = layer(
                    tokens[name],
                    spatial_position_embeddings=positions,
                    object_queries_position_embeddings=queries[name],
                    encoder_hidden_states=memory,
                    encoder_attention_mask=mask,
                )
            context = self.mure(tuple(tokens[name] for name in BRANCHES), memory, mask, positions)
            for name in BRANCHES:
                fusion = cast(nn.ModuleList, self.fusions[name])[0 if self.config.shared_fusion else index]
                tokens[name] = fusion(tokens[name], context)
                normed[name].append(self.norms[name](tokens[name]))
        return {name: torch.stack(each) for name, each in normed.items()}

    def heads(self, tokens: dict[str, Tensor]) -> MurenOutput:
        """Answers of normed tokens ``[..., D]``; boxes are float32 whatever the arithmetic."""
        return MurenOutput(
            self.human_box(tokens["human"]).float().sigmoid(),
            self.object_box(tokens["object"]).float().sigmoid(),
            self.object_classifier(tokens["object"]),
            self.verb_classifier(tokens["relation"]),
        )

    def _draw(self) -> None:
        """Xavier for all matrices between backbone and heads, as DETR has it: there the projections to query, key and
        value are one matrix of 3 D rows, so each third is drawn narrower; attention's biases begin at 0."""
        for part in (self.encoder, self.decoders, self.mure, self.fusions):
            for name, parameter in part.named_parameters():
                attention = "_attn." in name
                if parameter.dim() > 1:
                    packed = attention and "o_proj" not in name
                    nn.init.xavier_uniform_(parameter, gain=0.5**0.5 if packed else 1.0)
                elif attention and name.endswith("_proj.bias"):
                    nn.init.zeros_(parameter)
