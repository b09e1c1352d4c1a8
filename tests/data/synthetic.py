"""Annotations with chosen classes, without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary


def annotations(
    hoi: Sequence[Sequence[int]],
    boxes: Sequence[Sequence[Sequence[float]]] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Annotations:
    """A picture for each list of interactions; boxes: [human and object corners, 8] of each, by default all apart."""
    vocabulary = vocabulary or hico_vocabulary()
    counts = [len(row) for row in hoi]
    flat = np.array([h for row in hoi for h in row], np.int16)
    corners = 20 * np.arange(len(flat) * 2, dtype=np.float32).reshape(-1, 2)[:, [0, 0, 0, 0, 1, 1, 1, 1]]
    corners[:, [2, 3, 6, 7]] += 10
    if boxes is not None:
        corners = np.array([box for row in boxes for box in row], np.float32).reshape(-1, 8)
    verb, thing = np.append(vocabulary.hois, [[0, -1]], axis=0)[flat].T.astype(np.int16)
    names = [f"{i:04d}.jpg" for i in range(len(hoi))]
    image_hois = np.zeros((len(hoi), len(vocabulary)), bool)
    image_hois[np.repeat(np.arange(len(hoi)), counts)[flat >= 0], flat[flat >= 0]] = True
    return Annotations(
        name="hico-det", split="train", vocabulary=vocabulary, image_id=np.array(names, str), path=names,
        width=np.full(len(hoi), 640, np.int32), height=np.full(len(hoi), 480, np.int32),
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        human_box=corners[:, :4], object_box=corners[:, 4:], object=thing, verb=verb, hoi=flat, image_hois=image_hois,
    )  # fmt: skip
