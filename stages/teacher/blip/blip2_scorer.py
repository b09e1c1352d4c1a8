"""Image-text matching of many prompts against an image, exactly as the stock BLIP-2 forward and several times cheaper.

In BLIP-2's Q-Former, Q learned query tokens stand before the prompt's tokens; both attend to each other in every layer's
self-attention, the query tokens alone to the image in every second layer's cross-attention. So what can be shared is

* an image's cross-attention keys and values, once per image and layer for all prompts;
* the first layer up to the image, all of it for the text tokens, and their projections in the second layer's
  self-attention: once per prompt;
* the text tokens' part of the last layer, of which nothing but keys and values is read. The matching head averages its
  answer over all query tokens, so that they are all needed.

Shapes: B images, N image tokens, P prompts, Q query tokens, L text tokens, D width, H heads, d = D/H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from hoi_distill.stages.teacher.blip.itm_scorer import KeysValues, Prefix, PromptScorer
from hoi_distill.storage.errors import UserError


class Blip2ItmScorer(PromptScorer):
    """Of a loaded ``Blip2ForImageTextRetrieval`` in evaluation mode.

    The Q-Former computes in the dtype in which the class loads it: under float16 that is float32, as in the stock forward.

    Args:
        model: the loaded model; all but its vision tower and its contrastive projections is used.
        tokenizer: the checkpoint's tokenizer.
        memory_mib: see :class:`PromptScorer`.

    Raises:
        UserError: the Q-Former was configured without text input.
    """

    def __init__(self, model: Any, tokenizer: Any, memory_mib: int = 256) -> None:
        if not model.config.qformer_config.use_qformer_text_input:
            raise UserError(
                "BLIP-2: this Q-Former reads no text (use_qformer_text_input: false); use an ITM checkpoint"
            )
        super().__init__(model.config.qformer_config, tokenizer, model.itm_head.weight.device, memory_mib)
        self.embeddings, self.query_tokens = model.embeddings, model.query_tokens
        self.norm = model.qformer.layernorm
        self.layers = list(model.qformer.encoder.layer)
        self.head = model.itm_head
        self.dtype = self.norm.weight.dtype

    @override
    def prefix(self, ids_PL: torch.Tensor) -> Prefix:
        """Of the first layer: the query tokens after self-attention and their projection to cross-attention queries, both
        ``[P, Q, D]``. Of the second, if there is one: the text tokens and their query, key and value, ``[P, L, D]``."""
        first, count = self.layers[0], self.query_tokens.shape[1]
        tokens = self.embeddings(input_ids=ids_PL, query_embeds=self.query_tokens.expand(len(ids_PL), -1, -1))
        embedded = self.norm(tokens.to(self.dtype))
        attended = self._self_attention(first, embedded, self._projected(first, embedded))
        queries = attended[:, :count].contiguous()
        asked = first.crossattention.attention.query(queries)
        if len(self.layers) == 1:
            return queries, asked
        text = first.feed_forward_chunk(attended[:, count:])
        return queries, asked, text, *self._projected(self.layers[1], text)

    @override
    def keys_values(self, image_BND: torch.Tensor) -> list[KeysValues]:
        """Of the Q-Former's layers that look at the image."""
        image = image_BND.to(self.dtype)
        attentions = [layer.crossattention.attention for layer in self.layers if layer.has_cross_attention]
        return [(self.split(a.key(image)).contiguous(), self.split(a.value(image)).contiguous()) for a in attentions]

    @override
    def score_chunk(self, prefix: Prefix, memory: Sequence[KeysValues], images: int) -> torch.Tensor:
        """From the queries, which look at the image, and the text, which looks at them."""
        queries, asked, *text = prefix
        prompts, count, width = queries.shape
        left = iter(memory)

        def folded(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(images, -1, width)

        def over_images(x: torch.Tensor) -> torch.Tensor:
            return x.expand(images, *x.shape).reshape(images * prompts, -1, width)

        residual = queries.reshape(1, -1, width).expand(images, -1, -1)
        found = self.attend_image(asked.reshape(1, -1, width).expand(images, -1, -1), next(left))
        x = self.layers[0].crossattention.output(found, residual)
        x = self.layers[0].feed_forward_chunk_query(x).reshape(images * prompts, count, width)
        for index, layer in enumerate(self.layers[1:], start=1):
            last = index == len(self.layers) - 1
            if index == 1:
                words, *of_words = map(over_images, text)
                both = tuple(torch.cat(pair, 1) for pair in zip(self._projected(layer, x), of_words, strict=True))
                x = torch.cat((x, words), 1)
            else:
                both = self._projected(layer, x, count if last else None)
            if last:  # of the text tokens only keys and values are read
                x, both = x[:, :count], (both[0][:, :count], *both[1:])
            x = self._self_attention(layer, x, both)
            seen = x[:, :count]
            if layer.has_cross_attention:
                residual = folded(seen)
                found = self.attend_image(layer.crossattention.attention.query(residual), next(left))
                seen = layer.crossattention.output(found, residual).reshape(images * prompts, count, width)
            answered = layer.feed_forward_chunk_query(seen)
            x = answered if last else torch.cat((answered, layer.feed_forward_chunk(x[:, count:])), 1)
        logits: torch.Tensor = self.head(x.to(self.head.weight.dtype)).mean(1)
        return logits.reshape(images, prompts, 2)

    def _projected(self, layer: Any, x: torch.Tensor, asking: int | None = None) -> tuple[torch.Tensor, ...]:
        """Self-attention's query (of the first ``asking`` tokens), key and value, ``[*, T, D]``."""
        attention = layer.attention.attention
        return attention.query(x[:, :asking]), attention.key(x), attention.value(x)

    def _self_attention(self, layer: Any, x: torch.Tensor, projected: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The block of tokens ``x [*, T, D]``: attention of their projections, residual, norm."""
        query, key, value = projected
        attended: torch.Tensor = layer.attention.output(self.attend(query, key, value), x)
        return attended

    @override
    def bytes_per_image(self, tokens: int) -> int:
        """Of the layers that look at the image."""
        layers = sum(layer.has_cross_attention for layer in self.layers)
        return 2 * layers * tokens * self.config.hidden_size * self.dtype.itemsize

    @override
    def bytes_per_prompt(self, length: int) -> int:
        """The feed-forward's two wide activations and some eight of width D."""
        width = 2 * self.config.intermediate_size + 8 * self.config.hidden_size
        return (self.query_tokens.shape[1] + length) * width * self.dtype.itemsize
