"""Many questions about one image through BLIP's decoder at once, each with marks of its own or with none.

The image's keys and values are projected once; the questions are folded into the query axis, where none sees another. The
answers are those of one question a forward, to rounding.

Shapes: B images, Q questions an image, L tokens, N image tokens, D text width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from hoi_distill.stages.teacher.blip.itm_scorer import merge


@dataclass(frozen=True)
class Marks:
    """What shows the decoder about which pair it is asked.

    Attributes:
        tokens: float ``[B, Q, M, D]``, embeddings that stand after a question's first token.
        bias: float ``[layers, B, Q, H, N]``, added to the attention of a question's tokens to the image.
    """

    tokens: torch.Tensor
    bias: torch.Tensor


def answer_logits(
    decoder: Any, image_BND: torch.Tensor, ids_BQL: torch.Tensor, length_BQ: torch.Tensor, marks: Marks | None = None
) -> torch.Tensor:
    """The logits of the first token of each answer, ``[B, Q, vocabulary]``.

    Args:
        decoder: ``BlipTextLMHeadModel``, without dropout.
        image_BND: float, the vision tower's last hidden state, CLS included.
        ids_BQL: int64, each question with its first token, filled up at the end with any token.
        length_BQ: int64, tokens of each question.
        marks: of each question; None: it is asked about the image.
    """
    images, questions, _ = ids_BQL.shape
    x = decoder.bert.embeddings(input_ids=ids_BQL.flatten(0, 1))
    marked = 0 if marks is None else marks.tokens.shape[2]
    if marks is not None:
        x = torch.cat((x[:, :1], marks.tokens.flatten(0, 1).to(x.dtype), x[:, 1:]), 1)
    length, width = x.shape[1:]
    ahead = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
    layers = decoder.bert.encoder.layer
    for number, layer in enumerate(layers):
        attended = layer.attention(x, attention_mask=ahead)[0]
        if number == len(layers) - 1:  # only what is read has to look at the image once more
            attended = attended[torch.arange(len(x), device=x.device), length_BQ.flatten() + marked - 1]
            length = 1
        attended = attended.reshape(images, questions * length, width)
        cross = layer.crossattention
        query, key, value = (
            each.unflatten(-1, (cross.self.num_attention_heads, -1)).transpose(1, 2)
            for each in (cross.self.query(attended), cross.self.key(image_BND), cross.self.value(image_BND))
        )
        bias = None if marks is None else _by_token(marks.bias[number], length)
        found = merge(scaled_dot_product_attention(query, key, value, attn_mask=bias))
        x = layer.feed_forward_chunk(cross.output(found, attended)).reshape(images * questions, length, width)
    logits: torch.Tensor = decoder.cls(x[:, 0]).unflatten(0, (images, questions))
    return logits


def _by_token(bias_BQHN: torch.Tensor, length: int) -> torch.Tensor:
    """``[B, H, Q * L, N]``: a question's bias for each of its tokens."""
    return bias_BQHN.transpose(1, 2).repeat_interleave(length, 2)


def padded(questions: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """``questions[image][question]``, lists of token ids, as int64 ``[B, Q, L]``, and int64 ``[B, Q]`` lengths."""
    lengths = torch.tensor([[len(ids) for ids in own] for own in questions])
    longest = int(lengths.max())
    rows = [torch.stack([pad(torch.tensor(ids), (0, longest - len(ids))) for ids in own]) for own in questions]
    return torch.stack(rows), lengths
