"""The students' toy world with what a teacher wrote of it: image-level labels, and a text of one or two sentences."""

from __future__ import annotations

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig, ContextConfig, NetworkConfig, TranslatorConfig
from hoi_distill.stages.student.source import MemorySource
from tests.student.toy import OBJECTS, VOCABULARY, Toy

TEXT_WIDTH = 12
TEXT = np.random.default_rng(7).normal(size=(len(VOCABULARY), TEXT_WIDTH)).astype(np.float32)
"""Embeddings of the interactions' prompts."""

CONFIG = ClHoiConfig(
    translator=TranslatorConfig(queries=4, blocks=1, width=16, heads=2, ffn=16, dropout=0.1),
    context_stage=ContextConfig(steps=6, pictures_per_step=6, queue=8, learning_rate=3e-3, warmup_steps=1, clip_norm=1.0),
    network=NetworkConfig(width=16, heads=2, layers=1, ffn=16, roi_size=2, dropout=0.1),
    steps=8, unlabelled_per_step=6, learning_rate=3e-3, warmup_steps=2, clip_norm=1.0, save_every=3, log_every=2,
    held_out=0.25, gammas=(1.0, 0.5), lambdas=(1.0, 2.0),
)  # fmt: skip


class TaughtToy(Toy):
    """Each picture's own interaction is a positive, its object's ``no_interaction`` is ignored, the others of its object
    are negatives. The second column of ``context`` cells: sometimes a sentence on something else."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        rng = np.random.default_rng([seed, 1])
        unit = TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True)
        labels, context = [], []
        for hoi in self.hoi.tolist():
            listed = np.flatnonzero(OBJECTS[hoi] == OBJECTS)
            kind = np.where(listed == hoi, 1, np.where(listed == listed[-1], -1, 0))
            labels.append({
                "hoi": listed.astype(np.int16),
                "target": np.where(kind == 1, 0.9, np.where(kind == 0, 0.05, 0.3)).astype(np.float32),
                "kind": kind.astype(np.int8),
                "weight": np.where(kind == 0, 0.2, np.where(kind == 1, 1.0, 0.0)).astype(np.float32),
            })  # fmt: skip
            said = [unit[hoi], *(unit[[rng.integers(len(unit))]] if rng.random() < 0.4 else [])]
            context.append(np.array(said, np.float16))
        context[0] = context[0][:0]  # nothing was said of the first
        self.tables |= {"labels": {"value": labels}, "context": {"value": context}}

    def taught(self, annotations: Annotations | None = None, **tables) -> TrainingSet:
        """The training set that the pipeline would hand over, with other annotations or tables if given."""
        count = len(self.hoi)
        return TrainingSet(
            MemorySource({**self.tables, **tables}),
            annotations or self.annotations,
            np.arange(count),
            np.zeros(count, bool),
            VOCABULARY.prompts(),
            identity="toy",
        )
