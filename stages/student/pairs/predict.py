"""From a student and a picture's tables to scored triplets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from hoi_distill.stages.student.pairs.regions import Regions, entries
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.files.atomic import atomic_path

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


def scored(
    model: nn.Module, pictures: PictureTable, maps: MapReader, valid: Tensor, batch: int
) -> Iterator[tuple[np.ndarray, Regions, Tensor, Tensor, Tensor, Tensor]]:
    """Go through all pictures that have a pair, ``batch`` at a time, in evaluation mode.

    Args:
        model: from :class:`Regions` to interaction logits O, float ``[P, H]``.

    Yields:
        rows (int64 ``[B]``), regions, and of every entry pair, class, prior and interaction logit (``[E]`` each).
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
            pair, hoi, prior = entries(regions, valid.to(device))
            logit = model(regions)[pair, hoi]
        yield rows, regions, pair, hoi, prior, logit
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
    with atomic_path(path) as draft, pq.ParquetWriter(draft, SCHEMA) as writer:
        for rows, regions, pair, hoi, prior, logit in scored(model, pictures, maps, valid, batch):
            score = logit.sigmoid() * prior**prior_power
            if top_k is not None:
                kept = best_of_each(regions.pair_picture[pair], score, top_k)
                pair, hoi, score = pair[kept], hoi[kept], score[kept]
            table = triplets(regions, pair, hoi, score, hois, [image_ids[r] for r in rows])
            writer.write_table(table)
            count += len(table)
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
    regions: Regions, pair: Tensor, hoi: Tensor, score: Tensor, hois: np.ndarray, image_ids: Sequence[str]
) -> pa.Table:
    """E scored entries of a batch of pictures (named ``image_ids``, ``[B]``) as a table of :data:`SCHEMA`."""
    human, object_ = regions.pairs[pair].cpu().unbind(1)
    boxes, classes = regions.boxes.cpu(), hoi.cpu().numpy()
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
    name = content_name(test.identity.encode(), 6)
    pictures = picture_table(run_dir / "state" / f"test-{name}", test.source, config)
    maps = TableMaps.of(test.source, config.views[:1]) if maps_of is None else maps_of(pictures)
    path = run_dir / "detections.parquet"
    count = write_predictions(
        path, model, pictures, maps, valid, vocabulary.hois, test.image_ids, config.prior_power,
        config.predict_batch, top_k,
    )  # fmt: skip
    report(f"predicted {count} triplets in {int(pictures.usable().sum())} of {len(pictures)} pictures")
    return path
