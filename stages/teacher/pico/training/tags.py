"""Tags: verbs, objects and facts that a caption names, by which a stem of convolutions learns to see."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoi_distill.stages.teacher.pico.training.captions import Grammar


class TagLearner(nn.Module, ABC):
    """A network whose stem also tells what is in the image, for as long as it trains.

    Attributes:
        membership: float ``[H, T]``, see :func:`tag_membership`.
        tags: The linear layer from a cell of the stem to the T tags.
    """

    @property
    @abstractmethod
    def stem(self) -> nn.Module:
        """The convolutions: images to cells, float ``[B, C, h, w]``."""

    def add_tags(self, width: int, grammar: Grammar) -> None:
        """Initialise the tags, for a stem of ``width`` channels, and the stem itself."""
        self.membership = tag_membership(grammar)
        self.tags = nn.Linear(width, self.membership.shape[1])
        nn.init.constant_(self.tags.bias, -6.0)  # 64 cells and few tags: start near "nothing is here"
        for module in self.stem.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def tag_loss(self, cells: Tensor, facts: Tensor) -> Tensor:
        """The binary cross-entropy of all tags, summed over an image's tags.

        Args:
            cells: float ``[B, C, h, w]`` of the stem.
            facts: float ``[B, H]``, 1 for the facts of the captions.
        """
        logits = self.tags(cells.flatten(2).transpose(1, 2)).float().logsumexp(1)
        targets = ((facts @ self.membership) > 0).float()
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


def tag_membership(grammar: Grammar) -> Tensor:
    """float ``[H, H + verbs + objects]``: which tags each fact implies."""
    verbs = sorted({verb for verb, _ in grammar.facts})
    objects = sorted({obj for _, obj in grammar.facts})
    verb = torch.tensor([verbs.index(v) for v, _ in grammar.facts])
    obj = torch.tensor([objects.index(o) for _, o in grammar.facts])
    parts = [torch.eye(len(grammar.facts)), F.one_hot(verb, len(verbs)), F.one_hot(obj, len(objects))]
    return torch.cat([part.float() for part in parts], 1)
