"""A trained student in the CL-HOI style: the two networks, their vocabulary, the chosen exponents, and how it answers.

No teacher is asked at test time: a detector and a vision encoder are enough.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.methods.cl_hoi.cognition import ClHoi, ClHoiShape, CognitionNetwork, Scorer
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.exponents import Exponents
from hoi_distill.stages.student.methods.cl_hoi.translator import Translator
from hoi_distill.stages.student.pairs.student import StudentOfPairs
from hoi_distill.stages.student.student import (
    CheckpointRecord,
    Identities,
    load_weights,
    refuse_other_version,
    save_student,
)


@dataclass(frozen=True)
class ClHoiStudent(StudentOfPairs):
    """Translator and network with their vocabulary; ``exponents`` of the inference score."""

    method: ClassVar[str] = "cl_hoi"
    version: ClassVar[int] = 1

    model: ClHoi
    vocabulary: Vocabulary
    config: ClHoiConfig
    shape: ClHoiShape
    exponents: Exponents
    identities: Identities = field(default_factory=dict)
    origin: None = None

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        save_student(self, self.model, folder, shape=asdict(self.shape), exponents=asdict(self.exponents))

    @override
    def scorer(self) -> nn.Module:
        """The logits with interactiveness."""
        return Scorer(self.model, self.exponents.gamma).eval()

    @override
    def prior_power(self) -> float:
        """The exponent that was chosen."""
        return self.exponents.power


def build(
    shape: ClHoiShape, config: ClHoiConfig, vocabulary: Vocabulary, text: Tensor, translator: Translator | None = None
) -> ClHoi:
    """A fresh student.

    Args:
        shape: what the tensors depend on beside vocabulary and configuration.
        config: the method's parameters.
        vocabulary: says how many object classes there are.
        text: float ``[H, T]`` embeddings of the interactions' prompts.
        translator: a trained one; default: a fresh one where there is to be one.
    """
    if translator is None and config.network.context:
        translator = Translator(shape.channels, shape.context_width, config.translator)
    context = config.translator.width if config.network.context else None
    network = CognitionNetwork(shape.channels, len(vocabulary.objects), context, text, config.network)
    return ClHoi(translator, network, frozen=not config.translator_rate)


def load(folder: Path, record: CheckpointRecord, vocabulary: Vocabulary) -> ClHoiStudent:
    """A saved student, see :func:`hoi_distill.stages.student.pretrained.load_student`."""
    refuse_other_version(folder, record, ClHoiStudent.version)
    config, shape = ClHoiConfig(**record["student"]), ClHoiShape(**record["shape"])
    model = build(shape, config, vocabulary, torch.zeros(len(vocabulary.hois), shape.text_width))
    load_weights(model, folder)
    tried = tuple((gamma, power, score) for gamma, power, score in record["exponents"].pop("tried"))
    exponents = Exponents(**record["exponents"], tried=tried)
    return ClHoiStudent(model.eval(), vocabulary, config, shape, exponents, record["identities"])
