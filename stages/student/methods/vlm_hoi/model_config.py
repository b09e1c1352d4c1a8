"""What MUREN's tensors depend on, and nothing else; a checkpoint's ``config.json`` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hoi_distill.stages.checkpoints.timm_state_dict import resnet
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class MurenConfig:
    """The network's shape; the defaults are those of the paper (Kim et al., CVPR 2023).

    Attributes:
        backbone: a transformers backbone configuration with its ``model_type``; the last of its ``out_features`` is read.
        objects: K, object classes.
        verbs: V.
        queries: N, queries of each branch.
        missing_object: one more class, number K, for verbs whose object is not there (V-COCO).
        shared_fusion: one attentive fusion of a branch for all decoder layers, not one for each layer (V-COCO).
        d_model: width of every transformer layer.
        heads: attention heads of every transformer layer.
        ffn: hidden width of every transformer layer.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of each branch's decoder.
        dropout: of every transformer layer, also of attention weights and inside the feed-forward blocks, as in the original
            DETR.
        frozen_batch_norm: the backbone's batch norms keep their statistics and scales. Only sensible with trained ones.
        frozen_stages: how many leading parts of the backbone do not learn: 1 the stem, 2 the stem and stage 1, ...
    """

    backbone: Mapping[str, Any]
    objects: int
    verbs: int
    queries: int = 64
    missing_object: bool = False
    shared_fusion: bool = False
    d_model: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    frozen_batch_norm: bool = True
    frozen_stages: int = 2

    def __post_init__(self) -> None:
        least = dict.fromkeys(("queries", "d_model", "heads", "ffn", "decoder_layers"), 1)
        for name, lowest in {**least, "encoder_layers": 0, "frozen_stages": 0}.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name}: {getattr(self, name)}; at least {lowest} is needed")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: {self.dropout}; it must lie in 0 to 1, 1 excluded")
        if self.d_model % self.heads or self.d_model % 4:
            raise UserError(
                f"d_model: {self.d_model} must be a multiple of 4 (sines and cosines of two axes) and of heads: {self.heads}"
            )

    @classmethod
    def hico(cls, backbone: str = "resnet50") -> MurenConfig:
        """HICO-DET as published: 64 queries, 80 objects, 117 verbs, a fusion for each layer and branch."""
        return cls(resnet(backbone, [4]), objects=80, verbs=117)

    @classmethod
    def v_coco(cls, backbone: str = "resnet50") -> MurenConfig:
        """V-COCO as published: 100 queries, 80 objects and "missing", 29 verbs, fusions shared by the layers."""
        return cls(resnet(backbone, [4]), objects=80, verbs=29, queries=100, missing_object=True, shared_fusion=True)

    @property
    def no_object(self) -> int:
        """The last object class: a query that found nothing."""
        return self.objects + self.missing_object

    def to_json(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> MurenConfig:
        """From what :meth:`to_json` gave."""
        return cls(**record)
