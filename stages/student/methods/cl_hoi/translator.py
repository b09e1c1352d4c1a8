"""The Visual Linguistic Translator: from an image's feature map to tokens in the space of the text encoder.

In the CL-HOI style: that visual information is turned into linguistic form, and learnt by contrast, is the paper's; learnt
queries that attend to the map (BLIP-2's Q-Former, Li et al. 2023) are our reading of it. No text is generated.

Shape legend: B pictures, C channels, S = h * w cells, Q queries, D width, T text width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.methods.cl_hoi.config import TranslatorConfig
from hoi_distill.stages.student.pairs.layers.attention import attend
from hoi_distill.stages.student.pairs.layers.box_encoding import grid_encoding
from hoi_distill.stages.student.pairs.regions import Regions


class Attention(nn.Module):
    """Pre-norm attention with a residual: queries ``[B, Q, D]`` to keys and values ``[B, S, K]``, or to themselves."""

    def __init__(self, width: int, heads: int, dropout: float, keys: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if keys is None else keys, 2 * width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor, to: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``mask``: bool, true where a query may attend, broadcast to ``[B, heads, Q, S]``."""
        normed = self.norm(x)
        key, value = self.key_value(normed if to is None else to).chunk(2, -1)
        return x + self.dropout(self.mix(attend(self.query(normed), key, value, self.heads, mask)))


class PreNormFeedForward(nn.Module):
    """The transformer's pre-norm block of two layers, with a residual."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Block(nn.Module):
    """Tokens attend to each other, then to the map."""

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.among = Attention(config.width, config.heads, config.dropout)
        self.look = Attention(config.width, config.heads, config.dropout)
        self.feed_forward = PreNormFeedForward(config.width, config.ffn, config.dropout)

    @override
    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        return self.feed_forward(self.look(self.among(tokens), cells))


class Translated(NamedTuple):
    """The translator's output for B images.

    Attributes:
        phrases: float ``[B, Q, T]``, each token in the text encoder's space, of length 1.
        whole: float ``[B, T]`` of length 1, the image as one text.
    """

    phrases: Tensor
    whole: Tensor


class Translator(nn.Module):
    """See the module's docstring.

    Args:
        channels: C of the maps.
        text_width: T of the texts' embeddings.
        config: the shape.
    """

    def __init__(self, channels: int, text_width: int, config: TranslatorConfig) -> None:
        super().__init__()
        self.map_norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, config.width)
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.attention_pool = nn.Linear(config.width, 1)
        self.to_text = nn.Linear(config.width, text_width)
        self.whole_to_text = nn.Linear(config.width, text_width)

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """``[B, C, h, w]`` to context tokens ``[B, Q, D]``."""
        h, w = maps.shape[-2:]
        cells = self.project(self.map_norm(maps.float().flatten(2).transpose(1, 2)))
        cells = cells + grid_encoding(h, w, cells.shape[-1], maps.device)
        tokens = self.queries.expand(len(maps), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, cells)
        return self.norm(tokens)

    def translate(self, maps: Tensor) -> Translated:
        """``[B, C, h, w]`` to the text encoder's space."""
        tokens = self(maps)
        pooled = (self.attention_pool(tokens).softmax(1) * tokens).sum(1)
        return Translated(F.normalize(self.to_text(tokens), dim=-1), F.normalize(self.whole_to_text(pooled), dim=-1))


class ContextLearner(nn.Module):
    """What stage 1 trains: the translator and the temperature of its loss."""

    def __init__(self, translator: Translator, temperature: float) -> None:
        super().__init__()
        self.translator = translator
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    @override
    def forward(self, regions: Regions) -> tuple[Translated, Tensor]:
        """The translation of ``regions.maps``, and the log of the temperature."""
        return self.translator.translate(regions.maps), self.log_temperature
