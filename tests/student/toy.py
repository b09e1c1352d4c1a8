"""A tiny world for students: pictures of one or two people beside an object; what they do shows in the feature map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import TestSet, TrainingSet
from hoi_distill.stages.student.source import MemorySource

VOCABULARY = Vocabulary.from_actions(
    [
        ("bicycle", "hold", "holding"),
        ("bicycle", "ride", "riding"),
        ("bicycle", "no_interaction", "no_interaction"),
        ("dog", "hold", "holding"),
        ("dog", "walk", "walking"),
        ("dog", "no_interaction", "no_interaction"),
    ],
    "the tests",
)
OBJECTS = VOCABULARY.hois[:, 1]
CHANNELS, SIDE, SIZE = 8, 4, 64


class Toy:
    """N pictures: in each a person on the left who does hoi[n] with the object beside them, and maybe a bystander."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.hoi = rng.integers(0, len(VOCABULARY), count)
        second = rng.random(count) < 0.3
        self.detections, self.maps, boxes = [], [], []
        for hoi, more in zip(self.hoi.tolist(), second.tolist(), strict=True):
            person, thing = np.array([2, 10, 20, 60]) + rng.uniform(0, 3, (2, 4))
            thing += [14, 10, 20, 0]
            bystander = np.array([44, 10, 62, 60])
            found = [person, thing, *([bystander] if more else [])]
            labels = [0, int(OBJECTS[hoi]), *([0] if more else [])]
            scores = [0.9, 0.8, 0.7][: len(found)]
            self.detections.append(
                {"boxes": np.array(found), "scores": scores, "labels": labels, "width": SIZE, "height": SIZE}
            )
            feature = rng.normal(0, 0.3, (CHANNELS, SIDE, SIDE))
            feature[VOCABULARY.hois[hoi, 0], :, :2] += 3
            self.maps.append(feature.astype(np.float16))
            boxes.append((person, thing))
        matches = np.where(np.arange(len(VOCABULARY)) == self.hoi[:, None], 4, -4) + rng.normal(0, 1, (count, 6))
        prompts = {
            p: [np.array([-m, m], np.float16) / 2 for m in matches[:, h]] for h, p in enumerate(VOCABULARY.prompts())
        }
        self.tables = {
            "detections": {"value": self.detections},
            "features": {"original": self.maps, "flip": [np.ascontiguousarray(m[..., ::-1]) for m in self.maps]},
            "itm": prompts,
        }
        self.annotations = Annotations(
            name="toy",
            split="train",
            vocabulary=VOCABULARY,
            image_id=np.array([f"picture {n}" for n in range(count)]),
            path=[""] * count,
            width=np.full(count, SIZE, np.int32),
            height=np.full(count, SIZE, np.int32),
            pair_offsets=np.arange(count + 1, dtype=np.int64),
            human_box=np.array([b[0] for b in boxes], np.float32),
            object_box=np.array([b[1] for b in boxes], np.float32),
            object=OBJECTS[self.hoi],
            verb=VOCABULARY.hois[self.hoi, 0],
            hoi=self.hoi.astype(np.int16),
        )

    def training_set(self, labelled: int, source=None) -> TrainingSet:
        count = len(self.hoi)
        return TrainingSet(
            source or MemorySource(self.tables),
            self.annotations,
            np.arange(count),
            np.arange(count) < labelled,
            VOCABULARY.prompts(),
            identity="toy",
        )

    def test_set(self) -> TestSet:
        return TestSet(MemorySource(self.tables), list(self.annotations.image_id), identity="toy")


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint" / "model.safetensors").read_bytes()
