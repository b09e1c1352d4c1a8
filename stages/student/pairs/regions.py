"""What a network reads of a batch of images: their instances and pairs, and where these stand on the feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from hoi_distill.stages.student.pairs.candidates import pair_prior
from hoi_distill.stages.student.training.loading import moved


class Counts(NamedTuple):
    """How many there are in each of B images.

    Attributes:
        instances: of the instances.
        pairs: of the pairs.
    """

    instances: Sequence[int]
    pairs: Sequence[int]


NOT_COUNTED = Counts((), ())


@dataclass
class Regions:
    """The instances and pairs of a batch of images, as the network reads them.

    Attributes:
        maps: float ``[B, C, h, w]`` feature maps, each of a whole image squeezed into the map's grid.
        size: float ``[B, 2]`` (width, height) of the images in pixels.
        image: int64 ``[I]``, the image of each instance.
        boxes: float ``[I, 4]`` xyxy pixels of the original image (mirrored where the map is).
        labels: int64 ``[I]`` object classes, COCO-80.
        scores: float ``[I]`` detection scores.
        pairs: int64 ``[P, 2]`` (human, object) positions among the instances.
        counts: how many instances each image has, and how many pairs. They are counted where the batch is made, on the
            host, and go with it to any device: a network that counted them there would wait for it.
    """

    maps: Tensor
    size: Tensor
    image: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    pairs: Tensor
    counts: Counts = NOT_COUNTED

    def __post_init__(self) -> None:
        if self.counts is NOT_COUNTED:
            whose = (self.image, self.pair_image)
            self.counts = Counts(*(torch.bincount(image, minlength=len(self.maps)).tolist() for image in whose))

    def to(self, device: torch.device) -> Regions:
        """The same on another device."""
        return moved(self, device)

    @property
    def pair_image(self) -> Tensor:
        """int64 ``[P]``, the image of each pair."""
        return self.image[self.pairs[:, 0]]


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
        """The candidates of int64 positions, or of a bool ``[N]`` mask, for which the host waits."""
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
    return Candidates(pair, hoi, prior[pair, hoi], regions.pair_image[pair])


@dataclass(frozen=True)
class Groups:
    """M of the candidates of a batch, gathered by image and interaction into G groups.

    Attributes:
        positions: int64 ``[M]`` among the candidates, rising.
        member: int64 ``[M]``, the group of each.
        image: int64 ``[G]``, the place of each group's image in the batch.
        hoi: int64 ``[G]``, each group's interaction.
    """

    positions: Tensor
    member: Tensor
    image: Tensor
    hoi: Tensor

    def __len__(self) -> int:
        return len(self.hoi)

    @classmethod
    def of(cls, candidates: Candidates, mask: Tensor, interactions: int) -> Groups:
        """Made on the host, with the batch: how many there are depends on values.

        Args:
            candidates: N candidates.
            mask: bool ``[N]``, those that are gathered.
            interactions: H.
        """
        chosen = candidates.where(mask)
        group, member = torch.unique(chosen.image * interactions + chosen.hoi, return_inverse=True)
        return cls(positions_of(mask), member, group // interactions, group % interactions)


def positions_of(mask: Tensor) -> Tensor:
    """int64 positions, rising, where a bool ``[N]`` mask is set."""
    return mask.nonzero().flatten()
