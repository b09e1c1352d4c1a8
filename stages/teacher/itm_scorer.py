"""Image-text matching of many prompts against an image, exactly as the stock BLIP forward and several times cheaper.

The stock forward projects an image's tokens to cross-attention keys and values once per prompt and layer: for many,
that is most of its work. Here they are projected once per image and layer, and prompts of equal length are folded into
the query axis (no padding, hence no masks). What comes before the first cross-attention depends on the prompt alone and
is computed once per prompt. The last layer runs for token 0 only, the one that the matching head reads.

Shapes: B images, N image tokens, P prompts, L text tokens, D text width, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from storage.errors import UserError

TokenMode = Literal["cls", "enc"]
"""What token 0 is: ``cls`` as transformers' forward leaves it, ``enc`` BLIP's own [ENC], as its heads were trained."""


@dataclass(frozen=True)
class _Bucket:
    """Prompts of equal length: where they stand in the call, and their image-independent part."""

    indices_P: torch.Tensor
    attended_PLD: torch.Tensor
    """After the first layer's self-attention."""
    query_PLD: torch.Tensor
    """Its projection to the first cross-attention's queries."""


class ItmScorer:
    """Scores prompts with a loaded ``BlipForImageTextRetrieval`` (or a subclass) in evaluation mode.

    Args:
        model: the loaded model; only its text encoder and matching head are used.
        tokenizer: the checkpoint's tokenizer.
        token_mode: which token leads a prompt.
        memory_mib: bound on the working memory of one chunk of images x prompts; scores do not depend on it.
    """

    def __init__(self, model: Any, tokenizer: Any, token_mode: TokenMode = "cls", memory_mib: int = 256) -> None:
        self.encoder = model.text_encoder
        self.layers = list(model.text_encoder.encoder.layer)
        self.head = model.itm_head
        self.tokenizer = tokenizer
        self.config = model.config.text_config
        self.first_token = encoder_token(tokenizer, self.config) if token_mode == "enc" else None
        self.budget = memory_mib << 20
        self._prompts: tuple[str, ...] = ()
        self._buckets: list[_Bucket] = []

    @torch.no_grad()
    def score(self, image_BND: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw matching logits ``float32 [B, P, 2]`` (no match, match).

        Args:
            image_BND: the vision tower's last hidden state, CLS included, in the model's dtype.

        Raises:
            UserError: a prompt is too long, or has words that the tokenizer does not know.
        """
        if tuple(prompts) != self._prompts:  # batch after batch asks the same
            self._buckets, self._prompts = self._prepare(prompts), tuple(prompts)
        scores = torch.empty(len(image_BND), len(prompts), 2, device=image_BND.device)
        for images in torch.arange(len(image_BND)).split(self._images_at_once(image_BND)):
            start, stop = int(images[0]), int(images[-1]) + 1
            memory = [self._image_keys_values(layer, image_BND[start:stop]) for layer in self.layers]
            for bucket in self._buckets:
                for chunk in torch.arange(len(bucket.indices_P)).split(self._prompts_at_once(len(images), bucket)):
                    part = slice(int(chunk[0]), int(chunk[-1]) + 1)
                    scores[start:stop, bucket.indices_P[part]] = self._score_chunk(bucket, part, memory, len(images))
        return scores

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's token ids, unpadded, led by the token of the chosen mode."""
        ids_by_prompt: list[list[int]] = self.tokenizer(list(prompts))["input_ids"]
        for prompt, ids in zip(prompts, ids_by_prompt, strict=True):
            if len(ids) > (most := self.config.max_position_embeddings):
                raise UserError(f"prompt '{prompt}': {len(ids)} tokens, the teacher takes {most}; shorten it")
            if self.tokenizer.unk_token_id in ids:
                raise UserError(f"prompt '{prompt}': has words that the teacher's tokenizer does not know; reword it")
            if self.first_token is not None:
                ids[0] = self.first_token
        return ids_by_prompt

    def _prepare(self, prompts: Sequence[str]) -> list[_Bucket]:
        ids_by_prompt = self.token_ids(prompts)
        device, layer = self.head.weight.device, self.layers[0]
        buckets = []
        for length in sorted({len(ids) for ids in ids_by_prompt}):
            indices = [i for i, ids in enumerate(ids_by_prompt) if len(ids) == length]
            ids_PL = torch.tensor([ids_by_prompt[i] for i in indices], device=device)
            embedded = self.encoder.embeddings(input_ids=ids_PL)
            attended = self._attend_text(layer, embedded, embedded)
            query = layer.crossattention.self.query(attended)
            buckets.append(_Bucket(torch.tensor(indices, device=device), attended, query))
        return buckets

    def _score_chunk(
        self, bucket: _Bucket, part: slice, memory: list[tuple[torch.Tensor, torch.Tensor]], images: int
    ) -> torch.Tensor:
        """``[images, prompts of the part, 2]``."""
        attended, query = bucket.attended_PLD[part], bucket.query_PLD[part]
        prompts, length, width = attended.shape
        x = attended
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, memory, strict=True)):
            read = 1 if index == len(self.layers) - 1 else length
            if index == 0:
                residual = attended[:, :read].reshape(1, -1, width).expand(images, -1, -1)
                asked = query[:, :read].reshape(1, -1, width).expand(images, -1, -1)
            else:
                x = x.reshape(images * prompts, length, width)
                residual = self._attend_text(layer, x[:, :read], x).reshape(images, prompts * read, width)
                asked = layer.crossattention.self.query(residual)
            found = _merge(scaled_dot_product_attention(self._split(asked), keys, values))
            x = layer.feed_forward_chunk(layer.crossattention.output(found, residual))
        return self.head(x.reshape(images, prompts, width)).float()

    def _attend_text(self, layer: Any, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Self-attention block (projections, residual, norm) of tokens ``x [*, L', D]`` over ``context [*, L, D]``."""
        attention = layer.attention.self
        query, key, value = attention.query(x), attention.key(context), attention.value(context)
        found = scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        return layer.attention.output(_merge(found), x)

    def _image_keys_values(self, layer: Any, image_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, H, N, d]`` each."""
        attention = layer.crossattention.self
        return self._split(attention.key(image_BND)).contiguous(), self._split(attention.value(image_BND)).contiguous()

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """``[*, T, D] -> [*, H, T, d]``."""
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(-3, -2)

    def _images_at_once(self, image_BND: torch.Tensor) -> int:
        """Half of the budget is for the keys and values of all layers."""
        per_image = 2 * len(self.layers) * image_BND.shape[1] * self.config.hidden_size * image_BND.element_size()
        return max(1, self.budget // 2 // per_image)

    def _prompts_at_once(self, images: int, bucket: _Bucket) -> int:
        """The other half is for activations: the feed-forward's two wide ones and some six of width D."""
        length = bucket.attended_PLD.shape[1]
        width = 2 * self.config.intermediate_size + 6 * self.config.hidden_size
        return max(1, self.budget // 2 // (images * length * width * bucket.attended_PLD.element_size()))


def encoder_token(tokenizer: Any, text_config: Any) -> int:
    """The id of [ENC]: the tokenizer's own, else the id that BLIP gave it, one after [DEC]."""
    known = tokenizer.get_vocab().get("[ENC]")
    token = text_config.bos_token_id + 1 if known is None else known
    if token >= text_config.vocab_size:
        raise UserError("token_mode enc: this checkpoint has no [ENC] token; use token_mode cls")
    return int(token)


def _merge(x: torch.Tensor) -> torch.Tensor:
    """``[*, H, T, d] -> [*, T, D]``."""
    return x.transpose(-3, -2).flatten(-2)
