"""The toy world for LINK: a small configuration, and tables of what a trained teacher says of every picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.distillation import KdConfig
from hoi_distill.stages.student.methods.link.network_config import NetworkConfig
from hoi_distill.stages.student.methods.link.student import LinkStudent
from hoi_distill.stages.student.methods.link.teaching import PairTeacher
from hoi_distill.stages.student.methods.link.train import train
from hoi_distill.stages.student.source import MemorySource
from tests.student.toy import Toy

NETWORK = NetworkConfig(
    width=16, pair_width=24, heads=2, ffn=32, pair_ffn=32, encoder_layers=1, decoder_layers=2, roi_size=3
)
PAIRS, MAPS = "teacher_pairs", "teacher_maps"
ALL_LEVELS = KdConfig((PAIRS,), (MAPS,), logit=1.0, query=1.0, map=1.0)
TEXT = np.random.default_rng(1).normal(size=(6, 10)).astype(np.float32)


def link_config(**changes: Any) -> LinkConfig:
    values: dict[str, Any] = {
        "network": NETWORK, "steps": 12, "labelled_per_step": 6, "unlabelled_per_step": 8, "warmup_steps": 2,
        "save_every": 4, "log_every": 3,
    }  # fmt: skip
    return LinkConfig(**{**values, **changes})


def quiet(line: str) -> None:
    pass


def trained(config: LinkConfig, data: TrainingSet, folder: Path) -> LinkStudent:
    return train(config, data, folder, Extras(text_embeddings=TEXT), report=quiet)


def taught(data: TrainingSet, toy: Toy, student: LinkStudent) -> TrainingSet:
    """The same pictures, with the tables of a teacher."""
    teacher = PairTeacher(student.model, student.config, student.valid())
    tables: dict[str, Any] = {PAIRS: {}, MAPS: {}}
    for view in ("original", "flip"):
        answers = teacher.answer(toy.detections, np.stack(toy.tables["features"][view]), view == "flip")
        tables[PAIRS][view] = [answer.cell for answer in answers]
        tables[MAPS][view] = [answer.latent.astype(np.float16) for answer in answers]
    return replace(data, source=MemorySource({**data.source.tables, **tables}))
