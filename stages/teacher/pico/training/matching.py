"""The loss by which a BLIP learns to match images and prompts."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipForImageTextRetrieval
from hoi_distill.stages.teacher.pico.training.packing import Packed


def match_loss(itm: PicoBlipForImageTextRetrieval, states: Tensor, prompts: Packed, matches: Tensor) -> Tensor:
    """The cross-entropy of the matching head.

    Args:
        itm: The model.
        states: float ``[B, 1 + h*w, D]``, the tower's last hidden state.
        prompts: Some prompts of each image.
        matches: int64 ``[T]``, 1 where a prompt is true, image after image.
    """
    hidden = itm.text_encoder(
        prompts.ids,
        attention_mask=prompts.mask(causal=False),
        position_ids=prompts.positions,
        encoder_hidden_states=states,
    ).last_hidden_state
    return F.cross_entropy(itm.itm_head(hidden.flatten(0, 1)[prompts.starts]).float(), matches)
