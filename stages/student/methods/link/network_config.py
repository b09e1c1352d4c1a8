"""What LINK's tensors depend on, as frozen records of plain values; written into a checkpoint's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hoi_distill.stages.keys import Count, Positive, Rate, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.storage.errors import UserError


@settings
class LinkNetworkConfig:
    """The network's shape and switches. Sizes are those of PViC (Zhang et al. 2023), which LINK builds on; the paper's own
    are not published.

    The rows of its ablation: A1 has ``geometric_encoder``, ``pair_geometry`` and ``linking_decoder`` off, A2 the first two
    off, A3 the third off, A4 all on.
    """

    width: Count = 256
    """D, of unary queries and of the latent map."""
    pair_width: Count = 384
    """E, of pair queries."""
    heads: Count = 8
    """Heads of every attention."""
    ffn: Count = 1024
    """Hidden width of the encoder's feed-forward blocks."""
    pair_ffn: Count = 1536
    """Hidden width of the decoder's feed-forward blocks."""
    encoder_layers: Count = 2
    decoder_layers: Count = 2
    roi_size: Count = 7
    """Rows and columns of bins of the grid at whose points each box is sampled; the samples are averaged."""
    geometric_encoder: bool = True
    """Off: plain self-attention over the instances, no box encoding."""
    linking_decoder: bool = True
    """Off: plain cross-attention over the latent map, no box guidance and no semantic branch."""
    pair_self_attention: bool = True
    """Pairs of an image attend to each other before they attend to the map."""
    classes: Literal["hoi", "verb"] = "hoi"
    """Rows of the text classifier: one for each interaction, or one for each verb, whose logit serves all its interactions."""
    train_rows: bool = True
    """Off: rows stay the text embeddings, as zero-shot and open-vocabulary prediction need."""
    logit_scale: Positive = 14.3
    """Factor of the cosines between pairs and rows."""
    learn_scale: bool = True
    """``logit_scale`` is where training starts."""
    dropout: Rate = 0.1
    """Dropout of the outputs of attention and feed-forward blocks."""
    feature_dropout: Rate = 0.2
    """Dropout of whole channels of the map."""
    pair_geometry: bool = field(default=True, metadata=LATER)
    """The 36 numbers of each pair's boxes (IoU, direction, relative sizes) enter its query. The paper counts them to its
    geometric encoder, so it is off with that in the rows A1 and A2. Off: a pair's query is made of its two instances alone."""
    box_encoding: Literal["keys", "sum"] = field(default="keys", metadata=LATER)
    """How boxes enter the geometric encoder. ``keys``: projected, added to queries and keys in every layer (PViC). ``sum``:
    the encodings of centre and size added to the unary queries before the first layer, as the paper writes it."""
    linking_branches: Literal["both", "spatial", "semantic"] = field(default="both", metadata=LATER)
    """Which branches the linking decoder has. The paper has both."""
    semantic_start: Literal["random", "zero"] = field(default="random", metadata=LATER)
    """Where the semantic branch's weights in the MLP over both branches start. ``zero``: training starts with the spatial
    branch alone."""

    def __post_init__(self) -> None:
        if self.width % 4:
            raise UserError(f"width: {self.width}; sines and cosines of two axes want a multiple of 4")
        for name in ("width", "pair_width"):
            if getattr(self, name) % self.heads:
                raise UserError(f"{name}: {getattr(self, name)}; not a multiple of heads: {self.heads}")
        if self.semantic_start == "zero" and self.linking_branches != "both":
            raise UserError(f"semantic_start: zero; there is one branch, {self.linking_branches}, alone; choose random")

    @property
    def reads_native(self) -> bool:
        """Whether the decoder attends to the feature map's own channels."""
        return self.linking_decoder and self.linking_branches != "spatial"


@dataclass(frozen=True)
class LinkShape:
    """All that the network's tensors depend on beside its vocabulary.

    Attributes:
        channels: C of the feature map.
        text_width: T of the text embeddings; None: random rows as wide as the pair queries.
        network: shape and switches.
    """

    channels: int
    text_width: int | None
    network: LinkNetworkConfig

    def __post_init__(self) -> None:
        if self.network.reads_native and self.channels % self.network.heads:
            raise UserError(
                f"student.network.heads: {self.network.heads}; the semantic branch attends to the feature map's own "
                f"{self.channels} channels, choose a divisor of them"
            )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LinkShape:
        """From what :func:`dataclasses.asdict` made of one."""
        return cls(record["channels"], record["text_width"], LinkNetworkConfig(**record["network"]))
