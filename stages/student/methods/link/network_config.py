"""What LINK's tensors depend on, as frozen records of plain values; written into a checkpoint's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hoi_distill.stages.keys import Count, Positive, Rate, settings
from hoi_distill.storage.errors import UserError


@settings
class NetworkConfig:
    """The network's shape and switches. Sizes are those of PViC (Zhang et al. 2023), which LINK builds on; the paper's own
    are not published.

    The rows of its ablation: A1 ``geometric_encoder`` and ``linking_decoder`` off, A2 the first off, A3 the second off,
    A4 both on.

    Attributes:
        width: D, of unary queries and of the latent map; pair_width: E, of pair queries.
        heads: of every attention; ffn, pair_ffn: hidden widths of the feed-forward blocks of encoder and decoder.
        roi_size: each box is sampled at the points of a grid of so many rows and columns of bins, and averaged.
        geometric_encoder: off: plain self-attention over the instances, no box encoding.
        linking_decoder: off: plain cross-attention over the latent map, no box guidance and no semantic branch.
        pair_self_attention: pairs of a picture look at each other before they look at the map.
        classes: rows of the text classifier: one an interaction, or one a verb whose logit serves all its interactions.
        train_rows: off: rows stay the text embeddings, as zero-shot and open-vocabulary prediction want.
        logit_scale: of the cosines between pairs and rows; learn_scale: it is where training starts.
        dropout: in attention's and feed-forward's outputs; feature_dropout: of whole channels of the map.
    """

    width: Count = 256
    pair_width: Count = 384
    heads: Count = 8
    ffn: Count = 1024
    pair_ffn: Count = 1536
    encoder_layers: Count = 2
    decoder_layers: Count = 2
    roi_size: Count = 7
    geometric_encoder: bool = True
    linking_decoder: bool = True
    pair_self_attention: bool = True
    classes: Literal["hoi", "verb"] = "hoi"
    train_rows: bool = True
    logit_scale: Positive = 14.3
    learn_scale: bool = True
    dropout: Rate = 0.1
    feature_dropout: Rate = 0.2

    def __post_init__(self) -> None:
        if self.width % 4:
            raise UserError(f"width: {self.width}; sines and cosines of two axes want a multiple of 4")
        for name in ("width", "pair_width"):
            if getattr(self, name) % self.heads:
                raise UserError(f"{name}: {getattr(self, name)}; not a multiple of heads: {self.heads}")


@dataclass(frozen=True)
class LinkShape:
    """All that the network's tensors depend on beside its vocabulary.

    Attributes:
        channels: C of the feature map.
        text_width: T of the text embeddings; None: random rows as wide as the pair queries.
    """

    channels: int
    text_width: int | None
    network: NetworkConfig

    def __post_init__(self) -> None:
        if self.network.linking_decoder and self.channels % self.network.heads:
            raise UserError(
                f"student.network.heads: {self.network.heads}; the semantic branch attends to the feature map's own "
                f"{self.channels} channels, choose a divisor of them"
            )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LinkShape:
        """From what :func:`dataclasses.asdict` made of one."""
        return cls(record["channels"], record["text_width"], NetworkConfig(**record["network"]))
