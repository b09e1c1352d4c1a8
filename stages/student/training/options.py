"""How any student's training is computed. Reading a configuration imports this, and no torch."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from hoi_distill.stages.keys import settings
from hoi_distill.stages.student.method import LATER

Precision = Literal["no", "fp16", "bf16"]
"""Of matrix products; ``no``: float32. Losses are float32 in any."""


@settings
class TrainingOptions:
    """Keys of every student that trade last bits for speed. A training with a default is the training of before."""

    fused_optimizer: bool = field(default=False, metadata=LATER)
    """AdamW as one kernel, with another rounding."""
    tf32: bool = field(default=False, metadata=LATER)
    """float32 products by TF32 on GPUs that have it: 10 bits of mantissa."""
