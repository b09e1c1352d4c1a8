"""From a network of pairs and an image's tables to scored detections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import ImageTable, gather
from hoi_distill.stages.student.pairs.regions import Candidates, Regions, candidates_of


@dataclass(frozen=True)
class Scored:
    """The scored candidates of B images.

    Attributes:
        rows: int64 ``[B]``.
        regions: their instances and pairs.
        candidates: N candidates.
        logit: float ``[N]`` interaction logits O.
    """

    rows: np.ndarray
    regions: Regions
    candidates: Candidates
    logit: Tensor


def scored(model: nn.Module, images: ImageTable, maps: MapReader, valid: Tensor, batch: int) -> Iterator[Scored]:
    """Score all images that have a pair, with the model in evaluation mode.

    Args:
        model: from :class:`Regions` to interaction logits O, float ``[P, H]``.
        images: their instances and pairs.
        maps: reads feature maps.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        batch: images at a time.

    Yields:
        The candidates of some images.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    usable = np.flatnonzero(images.usable())
    for start in range(0, len(usable), batch):
        rows = usable[start : start + batch]
        places, values = maps(rows, np.zeros(len(rows), np.int64))
        rows = rows[places]
        regions = gather([images[row] for row in rows.tolist()], values).to(device)
        with torch.inference_mode():
            candidates = candidates_of(regions, valid.to(device))
            logit = model(regions)[candidates.pair, candidates.hoi]
        yield Scored(rows, regions, candidates, logit)
    model.train(was_training)


def detections_of(each: Scored, hois: np.ndarray, *, prior_power: float, top_k: int | None = None) -> HoiDetections:
    """The detections of some images. Their score is ``sigmoid(O) * (s_h * s_o) ** prior_power`` (UPT's lambda).

    Args:
        each: the scored candidates.
        hois: int ``[H, 2]`` (verb, object).
        prior_power: exponent of the detection scores.
        top_k: keep so many detections of each image, the best; None: all.
    """
    regions, candidates, score = (
        each.regions,
        each.candidates,
        each.logit.sigmoid() * each.candidates.prior**prior_power,
    )
    if top_k is not None:
        kept = best_of_each(candidates.image, score, top_k)
        candidates, score = candidates.where(kept), score[kept]
    human, object_ = regions.pairs[candidates.pair].cpu().unbind(1)
    boxes, hoi = regions.boxes.cpu().numpy(), candidates.hoi.cpu().numpy()
    return HoiDetections(
        image=candidates.image.cpu().numpy(),
        human_box=boxes[human],
        object_box=boxes[object_],
        object=hois[hoi, 1],
        verb=hois[hoi, 0],
        hoi=hoi,
        score=score.float().cpu().numpy(),
    )


def best_of_each(image: Tensor, score: Tensor, top_k: int) -> Tensor:
    """int64 positions, rising, of the ``top_k`` best scores of each image; of equal ones the first.

    Args:
        image: int64 ``[N]``, rising.
        score: float ``[N]``.
        top_k: how many are kept of each image.
    """
    falling = score.argsort(descending=True, stable=True)
    order = falling[image[falling].argsort(stable=True)]
    starts = torch.searchsorted(image, image)
    rank = torch.arange(len(score), device=score.device) - starts
    return order[rank < top_k].sort().values
