"""From a trained network and pictures to scored triplets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import detections_table, detections_writer
from hoi_distill.stages.evaluate.metrics.pair_nms import pairwise_nms
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.methods.vlm_hoi.augment import test_view
from hoi_distill.stages.student.methods.vlm_hoi.config import Scoring, TransformConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.picture_set import in_frame

WAITING = 8
"""At most so many batches of pictures wait for others of their size."""


@dataclass(frozen=True)
class ScoredTriplets:
    """Scored triplets of one picture, D of them.

    Attributes:
        human: float32 ``[D, 4]`` xyxy pixels of the picture, clipped to it unless scored ``as_published``.
        object_: float32 ``[D, 4]`` likewise, all 0 where the object is not there.
        objects: int64 ``[D]``, -1 where the object is not there.
        verbs: int64 ``[D]``.
        scores: float32 ``[D]``, falling.
    """

    human: npt.NDArray[np.float32]
    object_: npt.NDArray[np.float32]
    objects: npt.NDArray[np.int64]
    verbs: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def valid_verbs(vocabulary: Vocabulary, missing_object: bool) -> Tensor:
    """bool ``[O, V]`` or ``[O + 1, V]``: which verbs an object class allows; a missing object allows all."""
    valid = (vocabulary.hoi_id() >= 0).T
    if missing_object:
        valid = np.concatenate([valid, np.ones((1, valid.shape[1]), bool)])
    return torch.from_numpy(np.ascontiguousarray(valid))


def triplets(
    output: MurenOutput, size: tuple[int, int], valid: Tensor, scoring: Scoring, objects: int
) -> ScoredTriplets:
    """Score one picture's queries, keep the best, suppress duplicates.

    Args:
        output: the final layer's, of one picture: ``[N, *]`` tensors on the CPU.
        size: (width, height) of the picture.
        valid: see :func:`valid_verbs`.
        scoring: how triplets are scored and suppressed.
        objects: O, the class of a missing object.
    """
    chance, label = output.object_logits.float().softmax(-1)[:, :-1].max(-1)
    allowed = valid[label]
    score = (chance[:, None] * output.verb_logits.float().sigmoid() * allowed).numpy()
    label_, width, height = label.numpy(), *size
    scale = np.array([width, height, width, height], np.float32)
    human, thing = (
        box_ops.cxcywh_to_xyxy(each.float().numpy()) * scale for each in (output.human_boxes, output.object_boxes)
    )
    if not scoring.as_published:
        human, thing = box_ops.clip(human, width, height), box_ops.clip(thing, width, height)
    thing[label_ == objects] = 0
    suppression = {
        "threshold": scoring.nms,
        "human_power": scoring.nms_human_power,
        "object_power": scoring.nms_object_power,
        "short": -1.0 if scoring.as_published else 0.0,
    }
    if scoring.nms_within == "object":
        kept = pairwise_nms(label_, score.max(1), (human, thing), **suppression)
        score = score * kept[:, None]
    best = np.argsort(-score, axis=None, kind="stable")[: scoring.top]
    query, verb = np.unravel_index(best[score.flat[best] > 0], score.shape)
    if scoring.nms_within == "hoi":
        group = verb * (objects + 1) + label_[query]
        kept = pairwise_nms(group, score[query, verb], (human[query], thing[query]), **suppression)
        query, verb = query[kept], verb[kept]
    return ScoredTriplets(
        human[query], thing[query], np.where(label_[query] == objects, -1, label_[query]), verb, score[query, verb]
    )


def of_one_size(
    count: int, read: Callable[[int], np.ndarray], config: TransformConfig, batch: int
) -> Iterator[list[tuple[int, tuple[int, int], np.ndarray]]]:
    """Images in groups of one size as the network sees them, so that none is padded: what padding lets into a feature map
    depends on the pictures beside it.

    Yields:
        lists of at most ``batch`` (row, (width, height) of the picture, uint8 ``[h, w, 3]``).
    """
    waiting: dict[tuple[int, ...], list[tuple[int, tuple[int, int], np.ndarray]]] = {}
    for row in range(count):
        picture = read(row)
        whole = (picture.shape[1], picture.shape[0])
        seen = test_view(config, *whole).of_picture(picture)
        group = waiting.setdefault(seen.shape, [])
        group.append((row, whole, seen))
        if len(group) == batch:
            yield waiting.pop(seen.shape)
        elif sum(map(len, waiting.values())) > WAITING * batch:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


@dataclass(frozen=True)
class Inference:
    """How images are prepared and scored.

    Attributes:
        pictures: their size and normalisation.
        scoring: how triplets are scored and suppressed.
        batch: how many pictures of one size the network sees at once.
    """

    pictures: TransformConfig
    scoring: Scoring
    batch: int


@torch.inference_mode()
def predicted(
    model: nn.Module,
    count: int,
    read: Callable[[int], np.ndarray],
    inference: Inference,
    *,
    vocabulary: Vocabulary,
    missing_object: bool,
) -> Iterator[tuple[int, ScoredTriplets]]:
    """(row, its triplets) of every picture, in no particular order; the model is left in evaluation mode."""
    pictures = inference.pictures
    device = next(model.parameters()).device
    model.eval()
    valid, objects = valid_verbs(vocabulary, missing_object), len(vocabulary.objects)
    for group in of_one_size(count, read, pictures, inference.batch):
        height, width = group[0][2].shape[:2]
        pixels, mask = in_frame([seen for _, _, seen in group], width, height, pictures)
        output = model(pixels.to(device), mask.to(device)).layer(-1)
        output = MurenOutput(*(each.float().cpu() for each in output))
        for place, (row, whole, _) in enumerate(group):
            yield row, triplets(output.layer(place), whole, valid, inference.scoring, objects)


def write_triplets(
    path: Path, found: Iterator[tuple[int, ScoredTriplets]], image_ids: Sequence[str], vocabulary: Vocabulary
) -> int:
    """Write the triplets of pictures as a file of detections, in the pictures' order.

    Args:
        path: the file.
        found: row and triplets of each picture, in any order.
        image_ids: names of all pictures.
        vocabulary: names the interactions of verb and object.

    Returns:
        How many triplets there are.
    """
    by_row = dict(found)
    order = sorted(by_row)
    hoi_id = np.pad(vocabulary.hoi_id(), ((0, 0), (0, 1)), constant_values=-1)  # the last column is object -1's
    count = 0
    with detections_writer(path) as writer:
        for start in range(0, len(order), 1000):
            rows = order[start : start + 1000]
            part = [by_row[row] for row in rows]
            human, object_, objects, verbs, scores = (
                np.concatenate([getattr(each, name) for each in part])
                for name in ("human", "object_", "objects", "verbs", "scores")
            )
            image, hoi = np.repeat(rows, [len(each.scores) for each in part]), hoi_id[verbs, objects]
            detections = HoiDetections(image, human, object_, objects, verbs, hoi, scores.astype(np.float32))
            writer.write_table(detections_table(detections, image_ids))
            count += len(scores)
    return count
