"""Pictures with boxes at random, as batches; and a small network to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape, NetworkConfig
from hoi_distill.stages.student.pairs.instances import NO_POSITIVES, Picture, gather
from hoi_distill.stages.student.pairs.regions import Regions

CHANNELS, GRID, TEXT_WIDTH = 24, (5, 6), 20
VERB = torch.tensor([0, 1, 0, 2, 1])
SMALL = NetworkConfig(
    width=16, pair_width=24, heads=4, ffn=32, pair_ffn=32, encoder_layers=2, decoder_layers=2, roi_size=3
)


def picture(humans: int, instances: int, seed: int, width: int = 90, height: int = 60) -> Picture:
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, (width - 10, height - 10), (instances, 2))
    boxes = np.concatenate((start, np.minimum(start + rng.uniform(5, 50, (instances, 2)), (width, height))), 1)
    labels = np.where(np.arange(instances) < humans, 0, 17).astype(np.int16)
    return Picture(width, height, humans, boxes.astype(np.float32), np.full(instances, 0.9, "f4"), labels, NO_POSITIVES)


def batch(counts: Sequence[tuple[int, int]], channels: int = CHANNELS, grid: tuple[int, int] = GRID) -> Regions:
    """Pictures of (humans, instances). Each one is the same in whatever batch its number is."""
    maps = torch.stack(
        [torch.randn(channels, *grid, generator=torch.Generator().manual_seed(n)) for n in range(len(counts))]
    )
    return gather([picture(*count, seed) for seed, count in enumerate(counts)], maps)


def subset(regions: Regions, order: Sequence[int]) -> tuple[Regions, torch.Tensor, torch.Tensor]:
    """Some pictures in some order as a batch of their own, with the positions of its instances and pairs in the whole."""
    instances = torch.cat([(regions.picture == n).nonzero().flatten() for n in order])
    pairs = torch.cat([(regions.pair_picture == n).nonzero().flatten() for n in order])
    counts = torch.tensor([int((regions.picture == n).sum()) for n in order])
    position = torch.empty(len(regions.picture), dtype=torch.long).index_copy(
        0, instances, torch.arange(len(instances))
    )
    part = Regions(
        regions.maps[list(order)],
        regions.size[list(order)],
        torch.repeat_interleave(torch.arange(len(order)), counts),
        *(getattr(regions, name)[instances] for name in ("boxes", "labels", "scores")),
        position[regions.pairs[pairs]],
    )
    return part, instances, pairs


def network(seed: int = 0, text: bool = True, **changes: Any) -> Link:
    """In evaluation mode; equal seeds give equal weights."""
    torch.manual_seed(seed)
    shape = LinkShape(CHANNELS, TEXT_WIDTH if text else None, replace(SMALL, **changes))
    return Link(shape, VERB, torch.randn(len(VERB), TEXT_WIDTH) if text else None).eval()
