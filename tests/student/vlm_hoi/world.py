"""A tiny world of painted pictures: a person on the left, an object beside them whose colour says what is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.student.data import TestSet, TrainingSet
from hoi_distill.stages.student.methods.vlm_hoi.config import Pictures, Scoring, VlmHoiConfig
from hoi_distill.stages.student.methods.vlm_hoi.itm_loss import ItmConfig
from hoi_distill.stages.student.source import MemorySource
from tests.student.toy import VOCABULARY

SIDE = 64
COLOURS = [[0], [1], [2], [0, 1]]
"""The channels of each verb."""
DETECTOR = str(Path(__file__).parents[3] / "stages/teacher/pico/detector")
MODEL: dict[str, Any] = {
    "backbone": {"folder": DETECTOR, "out_features": ["stage3"]}, "queries": 6, "d_model": 32, "heads": 2, "ffn": 64,
    "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0, "frozen_stages": 0,
}  # fmt: skip


def tiny_config(**changes: Any) -> VlmHoiConfig:
    values: dict[str, Any] = {
        "itm": ItmConfig(ramp=1.0),
        "model": MODEL,
        "start": DETECTOR,
        "allow_random_decoder": True,
        "pictures": Pictures(short_sides=(48, 64), max_side=96, test_short_side=64, crop=0.5, crop_short_sides=(64,),
                             crop_sides=(40, 64)),
        "scoring": Scoring(top=20),
        "epochs": 3.0, "drop_epoch": 2.0, "learning_rate": 1e-3, "backbone_learning_rate": 1e-3,
        "labelled_per_step": 4, "unlabelled_per_step": 4, "log_every": 1, "save_every": 4, "predict_batch": 4,
    }  # fmt: skip
    return VlmHoiConfig(**{**values, **changes})


class World:
    """N pictures of 64 to 96 x 64 pixels. In each a person does hoi[n] with the object beside them."""

    def __init__(self, count: int = 24, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.hoi = rng.integers(0, len(VOCABULARY), count)
        self.width = np.where(rng.random(count) < 0.5, SIDE, 96).astype(np.int32)
        self.person = np.array([4, 12, 24, 60]) + rng.integers(0, 4, (count, 4))
        self.thing = np.array([32, 20, 52, 56]) + rng.integers(0, 4, (count, 4))
        self.noise = rng.integers(0, 30, (count, SIDE, 96, 3), np.uint8)
        odds = np.where(np.arange(len(VOCABULARY)) == self.hoi[:, None], 4.0, -4.0) + rng.normal(0, 1, (count, 6))
        self.itm = {
            prompt: [np.array([-m, m], np.float16) / 2 for m in odds[:, hoi]]
            for hoi, prompt in enumerate(VOCABULARY.prompts())
        }
        self.annotations = Annotations(
            name="toy",
            split="train",
            vocabulary=VOCABULARY,
            image_id=np.array([f"picture {n}" for n in range(count)]),
            path=[""] * count,
            width=self.width,
            height=np.full(count, SIDE, np.int32),
            pair_offsets=np.arange(count + 1, dtype=np.int64),
            human_box=self.person.astype(np.float32),
            object_box=self.thing.astype(np.float32),
            object=VOCABULARY.hois[self.hoi, 1],
            verb=VOCABULARY.hois[self.hoi, 0],
            hoi=self.hoi.astype(np.int16),
        )

    def read(self, row: int) -> np.ndarray:
        """uint8 ``[64, width, 3]``; verbs are colours, objects are stripes."""
        picture = self.noise[row, :, : self.width[row]].copy()
        verb, thing = VOCABULARY.hois[self.hoi[row]]
        x1, y1, x2, y2 = self.person[row]
        picture[y1:y2, x1:x2] += 100
        x1, y1, x2, y2 = self.thing[row]
        picture[y1:y2, x1:x2, COLOURS[verb]] += 200
        if thing:
            picture[y1:y2:4, x1:x2] = 0
        return picture

    def training_set(self, labelled: int = 16) -> TrainingSet:
        count = len(self.hoi)
        return TrainingSet(
            MemorySource({"itm": self.itm}),
            self.annotations,
            np.arange(count),
            np.arange(count) < labelled,
            (),
            self.read,
            identity="toy",
        )

    def test_set(self) -> TestSet:
        return TestSet(MemorySource({}), list(self.annotations.image_id), self.read, identity="toy")


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint" / "model.safetensors").read_bytes()
