"""From a student and a picture's tables to scored triplets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import Report, TestSet
from hoi_distill.stages.student.pairs.batches import MapReader, TableMaps
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import PictureTable, gather
from hoi_distill.stages.student.pairs.prepare import picture_table
from hoi_distill.stages.student.pairs.regions import Candidates, Regions, candidates_of

BOX = pa.list_(pa.float32(), 4)
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("human_box", BOX),
        ("object_box", BOX),
        ("object", pa.int32()),
        ("verb", pa.int32()),
        ("hoi", pa.int32()),
        ("score", pa.float32()),
    ]
)
"""One row a scored triplet. Boxes: xyxy pixels of the original picture, zero-based, half-open; classes: 0-based."""


@dataclass(frozen=True)
class Scored:
    """The scored candidates of B pictures.

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


def scored(model: nn.Module, pictures: PictureTable, maps: MapReader, valid: Tensor, batch: int) -> Iterator[Scored]:
    """Score all pictures that have a pair, with the model in evaluation mode.

    Args:
        model: from :class:`Regions` to interaction logits O, float ``[P, H]``.
        pictures: their instances and pairs.
        maps: reads feature maps.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        batch: pictures at a time.

    Yields:
        The candidates of some pictures.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    usable = np.flatnonzero(pictures.usable())
    for start in range(0, len(usable), batch):
        rows = usable[start : start + batch]
        places, values = maps(rows, np.zeros(len(rows), np.int64))
        rows = rows[places]
        regions = gather([pictures[row] for row in rows.tolist()], values).to(device)
        with torch.inference_mode():
            candidates = candidates_of(regions, valid.to(device))
            logit = model(regions)[candidates.pair, candidates.hoi]
        yield Scored(rows, regions, candidates, logit)
    model.train(was_training)


def write_predictions(
    path: Path,
    model: nn.Module,
    pictures: PictureTable,
    maps: MapReader,
    valid: Tensor,
    hois: np.ndarray,
    image_ids: Sequence[str],
    prior_power: float,
    batch: int = 64,
    top_k: int | None = None,
) -> int:
    """Write every entry's triplet to a Parquet file of :data:`SCHEMA`; returns their number.

    The score is ``sigmoid(O) * (s_h * s_o) ** prior_power`` (UPT's lambda).

    Args:
        hois: int ``[H, 2]`` (verb, object); top_k: keep only so many triplets of each picture, the best.
    """
    count = 0
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with pq.ParquetWriter(draft, SCHEMA) as writer:
        for each in scored(model, pictures, maps, valid, batch):
            candidates, score = each.candidates, each.logit.sigmoid() * each.candidates.prior**prior_power
            if top_k is not None:
                kept = best_of_each(candidates.image, score, top_k)
                candidates, score = candidates.where(kept), score[kept]
            table = triplets(each.regions, candidates, score, hois, [image_ids[row] for row in each.rows])
            writer.write_table(table)
            count += len(table)
    os.replace(draft, path)
    return count


def best_of_each(picture: Tensor, score: Tensor, top_k: int) -> Tensor:
    """int64 positions, rising, of the ``top_k`` best scores of each picture; of equal ones the first.

    Args:
        picture: int64 ``[E]``, rising; score: float ``[E]``.
    """
    falling = score.argsort(descending=True, stable=True)
    order = falling[picture[falling].argsort(stable=True)]
    starts = torch.searchsorted(picture, picture)
    rank = torch.arange(len(score), device=score.device) - starts
    return order[rank < top_k].sort().values


def triplets(
    regions: Regions, candidates: Candidates, score: Tensor, hois: np.ndarray, image_ids: Sequence[str]
) -> pa.Table:
    """N scored candidates of a batch of pictures as a table of :data:`SCHEMA`.

    Args:
        regions: the batch.
        candidates: its candidates.
        score: float ``[N]``.
        hois: int ``[H, 2]`` (verb, object).
        image_ids: the B pictures' names.
    """
    human, object_ = regions.pairs[candidates.pair].cpu().unbind(1)
    boxes, classes = regions.boxes.cpu(), candidates.hoi.cpu().numpy()
    names = pa.array(list(image_ids), pa.string()).take(pa.array(regions.picture.cpu()[human].numpy()))

    def box(instance: Tensor) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(boxes[instance].flatten().numpy()), 4)

    columns = {
        "image_id": names,
        "human_box": box(human),
        "object_box": box(object_),
        "object": hois[classes, 1].astype(np.int32),
        "verb": hois[classes, 0].astype(np.int32),
        "hoi": classes.astype(np.int32),
        "score": score.float().cpu().numpy(),
    }
    return pa.table(columns, SCHEMA)


def predict_test_set(
    model: nn.Module,
    test: TestSet,
    run_dir: Path,
    config: PairsConfig,
    vocabulary: Vocabulary,
    valid: Tensor,
    *,
    maps_of: Callable[[PictureTable], MapReader] | None = None,
    top_k: int | None = None,
    report: Report = print,
) -> Path:
    """Write ``run_dir/detections.parquet`` and return its path.

    Args:
        model: see :func:`scored`; valid: bool ``[objects, H]``; maps_of: where feature maps come from; default: the table
            of the test set; top_k: see :func:`write_predictions`.
    """
    name = hashlib.blake2b(test.identity.encode(), digest_size=6).hexdigest()
    pictures = picture_table(run_dir / "state" / f"test-{name}", test.source, config)
    maps = TableMaps.of(test.source, config.views[:1]) if maps_of is None else maps_of(pictures)
    path = run_dir / "detections.parquet"
    count = write_predictions(
        path, model, pictures, maps, valid, vocabulary.hois, test.image_ids, config.prior_power,
        config.predict_batch, top_k,
    )  # fmt: skip
    report(f"predicted {count} triplets in {int(pictures.usable().sum())} of {len(pictures)} pictures")
    return path
