"""A trained LINK student: the network, its vocabulary, and how it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.methods.link.attention import pair_attention
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.pairs.instances import image_of
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.pairs.student import StudentOfPairs
from hoi_distill.stages.student.student import (
    CheckpointRecord,
    Identities,
    PairAttention,
    load_weights,
    refuse_other_version,
    save_student,
)


class LastLayer(nn.Module):
    """A network's answer alone: the last decoder layer's interaction logits, float ``[P, H]``."""

    def __init__(self, network: Link) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, regions: Regions) -> Tensor:
        logits: Tensor = self.network(regions).logits[-1]
        return logits


@dataclass(frozen=True)
class LinkStudent(StudentOfPairs):
    """A LINK network with its vocabulary."""

    method: ClassVar[str] = "link"
    version: ClassVar[int] = 1

    model: Link
    vocabulary: Vocabulary
    config: LinkConfig
    identities: Identities = field(default_factory=dict)
    origin: None = None

    @override
    def valid(self) -> Tensor:
        """bool ``[objects, H]``: which interactions a detected object allows at prediction."""
        return torch.from_numpy(allowed(self.config, self.vocabulary))

    def with_vocabulary(self, vocabulary: Vocabulary, text: np.ndarray) -> LinkStudent:
        """The same student for other interactions (open vocabulary).

        Args:
            vocabulary: the H' interactions.
            text: float ``[H', T]``, embeddings of their prompts by the encoder that the student was trained with.
        """
        model = self.model.with_classes(verbs(vocabulary), torch.from_numpy(text.astype(np.float32)))
        return replace(self, model=model, vocabulary=vocabulary)

    @override
    def pair_attention(self, detections: Any, features: np.ndarray) -> PairAttention:
        """See :meth:`hoi_distill.stages.student.student.Student.pair_attention`."""
        return pair_attention(self.model, image_of(detections, self.config), features)

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        save_student(self, self.model, folder, shape=asdict(self.model.shape))

    @override
    def scorer(self) -> nn.Module:
        """The last decoder layer's logits."""
        return LastLayer(self.model).eval()

    @override
    def top_k(self) -> int | None:
        """As configured."""
        return self.config.top_k


def allowed(config: LinkConfig, vocabulary: Vocabulary) -> np.ndarray:
    """bool ``[objects, H]``: which interactions a detected object allows."""
    valid = valid_classes(vocabulary)
    return np.ones_like(valid) if config.any_object else valid


def verbs(vocabulary: Vocabulary) -> Tensor:
    """int64 ``[H]``, the verb of each interaction."""
    return torch.from_numpy(vocabulary.hois[:, 0].astype(np.int64))


def load(folder: Path, record: CheckpointRecord, vocabulary: Vocabulary) -> LinkStudent:
    """A saved student, see :func:`hoi_distill.stages.student.pretrained.load_student`."""
    refuse_other_version(folder, record, LinkStudent.version)
    model = Link(LinkShape.from_json(record["shape"]), verbs(vocabulary))
    load_weights(model, folder)
    return LinkStudent(model.eval(), vocabulary, LinkConfig(**record["student"]), record["identities"])
