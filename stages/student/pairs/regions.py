"""What a network reads of a batch of pictures: their instances and pairs, and where these stand on the feature maps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hoi_distill.stages.student.pairs.candidates import pair_prior


@dataclass
class Regions:
    """The instances and pairs of a batch of pictures, as the network reads them.

    Attributes:
        maps: float ``[B, C, h, w]`` feature maps, each of a whole picture squeezed into the map's grid.
        size: float ``[B, 2]`` (width, height) of the pictures in pixels.
        picture: int64 ``[I]``, the picture of each instance.
        boxes: float ``[I, 4]`` xyxy pixels of the original picture (mirrored where the map is).
        labels: int64 ``[I]`` object classes, COCO-80.
        scores: float ``[I]`` detection scores.
        pairs: int64 ``[P, 2]`` (human, object) positions among the instances.
    """

    maps: Tensor
    size: Tensor
    picture: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    pairs: Tensor

    def to(self, device: torch.device) -> Regions:
        return Regions(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def pair_picture(self) -> Tensor:
        """int64 ``[P]``."""
        return self.picture[self.pairs[:, 0]]


def entries(regions: Regions, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (pair, class) entries with prior P > 0: int64 ``[E]``, int64 ``[E]``, float32 ``[E]`` prior."""
    human, object_ = regions.pairs.unbind(1)
    prior = pair_prior(regions.scores[human], regions.scores[object_], regions.labels[object_], valid)
    pair, hoi = prior.nonzero(as_tuple=True)
    return pair, hoi, prior[pair, hoi]
