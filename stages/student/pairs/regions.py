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
        """The same on another device."""
        return Regions(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    @property
    def pair_picture(self) -> Tensor:
        """int64 ``[P]``, the picture of each pair."""
        return self.picture[self.pairs[:, 0]]


@dataclass(frozen=True)
class Candidates:
    """N candidates of a batch: a pair and an interaction that the pair's object allows, with a prior P > 0.

    Attributes:
        pair: int64 ``[N]``, rising.
        hoi: int64 ``[N]`` interactions.
        prior: float32 ``[N]`` in (0, 1].
        image: int64 ``[N]``, the place of the pair's image in the batch.
    """

    pair: Tensor
    hoi: Tensor
    prior: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.pair)

    def where(self, mask: Tensor) -> Candidates:
        """The candidates of a bool ``[N]`` mask or of int64 positions."""
        return Candidates(*(getattr(self, field.name)[mask] for field in fields(self)))


def candidates_of(regions: Regions, valid: Tensor) -> Candidates:
    """The candidates of a batch.

    Args:
        regions: the batch.
        valid: bool ``[objects, H]``, the interactions that an object allows.
    """
    human, object_ = regions.pairs.unbind(1)
    prior = pair_prior(regions.scores[human], regions.scores[object_], regions.labels[object_], valid)
    pair, hoi = prior.nonzero(as_tuple=True)
    return Candidates(pair, hoi, prior[pair, hoi], regions.pair_picture[pair])
