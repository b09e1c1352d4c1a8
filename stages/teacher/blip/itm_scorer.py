"""Image-text matching of many prompts against an image, exactly as the stock BLIP forward and several times cheaper.

The stock forward projects an image's tokens to cross-attention keys and values once per prompt and layer: for many
prompts that is most of its work. Here they are projected once per image and layer, and prompts of equal length are
folded into the query axis (no padding, hence no masks; a prompt's shape is its own length whatever is asked with it).
What comes before the first cross-attention depends on the prompt alone, is computed once and kept. The last layer runs
for token 0 only, the one that the matching head reads.

:class:`PromptScorer` is what BLIP and BLIP-2 (:mod:`hoi_distill.stages.teacher.blip.blip2_scorer`) have in common.

Shapes: B images, N image tokens, P prompts, L text tokens, D text width, H heads, d = D/H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from hoi_distill.storage.errors import UserError

TokenMode = Literal["cls", "enc"]
"""What token 0 is: ``cls`` as transformers' forward leaves it, ``enc`` BLIP's own [ENC], as its heads were trained."""
KeysValues = tuple[torch.Tensor, torch.Tensor]
"""An image's cross-attention keys and values in one layer, ``[B, H, N, d]`` each."""
Prefix = tuple[torch.Tensor, ...]
"""What depends on the prompt alone; the first axis of each tensor counts prompts, all of one length."""


class PromptScorer(ABC):
    """Scores any list of prompts against images, in chunks that fit a memory budget.

    Args:
        config: of the text model (sizes, ``num_attention_heads``, ``max_position_embeddings``).
        tokenizer: the checkpoint's tokenizer.
        device: where the model is.
        memory_mib: bound on the working memory of one chunk of images x prompts, half of it for the images' keys and
            values, and again on the prefixes that are kept; what does not fit is computed anew for every chunk of images.
            Scores do not depend on it.
        first_token: id that leads every prompt; None leaves the tokenizer's.
    """

    def __init__(
        self, config: Any, tokenizer: Any, device: torch.device, memory_mib: int, first_token: int | None = None
    ) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.first_token = first_token
        self.budget = memory_mib << 20
        self._ids: dict[str, list[int]] = {}
        self._kept: dict[int, tuple[dict[str, int], Prefix]] = {}
        self._kept_bytes = 0

    numbers = 2
    """What :meth:`score` gives for an image and a prompt."""

    @abstractmethod
    def prefix(self, ids_PL: torch.Tensor) -> Prefix:
        """The image-independent part of prompts of one length."""

    @abstractmethod
    def keys_values(self, image_BND: torch.Tensor) -> list[KeysValues]:
        """Of each layer with cross-attention."""

    @abstractmethod
    def score_chunk(self, prefix: Prefix, memory: Sequence[KeysValues], images: int) -> torch.Tensor:
        """``[images, prompts, numbers]``."""

    @abstractmethod
    def bytes_per_image(self, tokens: int) -> int:
        """Of the keys and values of all layers."""

    @abstractmethod
    def bytes_per_prompt(self, length: int) -> int:
        """Of one prompt's activations against one image."""

    @torch.no_grad()
    def score(self, image_BND: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """``float32 [B, P, numbers]``; of matching: the raw logits (no match, match).

        Args:
            image_BND: The vision tower's last hidden state, CLS included.
            prompts: P texts.

        Raises:
            UserError: a prompt is too long, or has words that the tokenizer does not know.
        """
        lengths = [len(ids) for ids in self.token_ids(prompts)]
        members = {length: [i for i, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))}
        scores = torch.empty(len(image_BND), len(prompts), self.numbers, device=image_BND.device)
        largest = max(self.bytes_per_image(image_BND.shape[1]), self.bytes_per_prompt(max(lengths)))
        at_once = max(1, self.budget // 2 // largest)
        for start in range(0, len(image_BND), at_once):
            part = image_BND[start : start + at_once]
            memory = self.keys_values(part)
            for length, indices in members.items():
                step = max(1, self.budget // 2 // (len(part) * self.bytes_per_prompt(length)))
                for first in range(0, len(indices), step):
                    chosen = indices[first : first + step]
                    prefix = self._prefix_of([prompts[index] for index in chosen])
                    where = torch.tensor(chosen, device=image_BND.device)
                    scores[start : start + at_once, where] = self.score_chunk(prefix, memory, len(part)).float()
        return scores

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt's token ids, unpadded, led by the token of the chosen mode."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._ids]:
            lead = [] if self.first_token is None else [self.first_token]
            for prompt, ids in zip(new, encode_prompts(self.tokenizer, new, self.config), strict=True):
                self._ids[prompt] = [*lead, *ids[len(lead) :]]
        return [self._ids[prompt] for prompt in prompts]

    def _prefix_of(self, prompts: Sequence[str]) -> Prefix:
        """The prefix of prompts of one length: what is kept of it, and what is new is kept while there is room."""
        ids_by_prompt = self.token_ids(prompts)
        rows, kept = self._kept.get(len(ids_by_prompt[0]), ({}, ()))
        new = {prompt: ids for prompt, ids in zip(prompts, ids_by_prompt, strict=True) if prompt not in rows}
        if new and self._kept_bytes >= self.budget:
            return self.prefix(torch.tensor(ids_by_prompt, device=self.device))
        if new:
            made = self.prefix(torch.tensor(list(new.values()), device=self.device))
            kept = tuple(torch.cat(pair) for pair in zip(kept, made, strict=True)) if kept else made
            rows |= {prompt: len(rows) + index for index, prompt in enumerate(new)}
            self._kept[len(ids_by_prompt[0])] = rows, kept
            self._kept_bytes += sum(tensor.nbytes for tensor in made)
        chosen = torch.tensor([rows[prompt] for prompt in prompts], device=self.device)
        return tuple(tensor[chosen] for tensor in kept)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[*, T, D] -> [*, H, T, d]``."""
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(-3, -2)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """Attention of projected ``[*, T, D]`` over projected ``[*, S, D]``, heads merged."""
        heads = self.split(query), self.split(key), self.split(value)
        return merge(scaled_dot_product_attention(*heads, is_causal=causal))

    def attend_image(self, query: torch.Tensor, image: KeysValues) -> torch.Tensor:
        """Cross-attention of projected ``[B, T, D]``, heads merged."""
        return merge(scaled_dot_product_attention(self.split(query), *image))


class BlipTextScorer(PromptScorer):
    """Of a BLIP text model whose layers attend to the image, as encoder or as decoder.

    Args:
        text: the text model (``BlipTextModel``) in evaluation mode.
        causal: whether a token attends to what stands before it alone; the last token is read then, else token 0.
        options: see :class:`PromptScorer`.
    """

    def __init__(self, text: Any, config: Any, tokenizer: Any, causal: bool, **options: Any) -> None:
        self.weight = text.embeddings.word_embeddings.weight
        super().__init__(config, tokenizer, self.weight.device, **options)
        self.embeddings, self.layers, self.causal = text.embeddings, list(text.encoder.layer), causal

    @abstractmethod
    def head(self, x: torch.Tensor) -> torch.Tensor:
        """``[images, prompts, numbers]`` of the token that is read, ``[images, prompts, D]``."""

    @override
    def prefix(self, ids_PL: torch.Tensor) -> Prefix:
        """``[P, L, D]`` each: after the first layer's self-attention, and its projection to the first cross-attention's
        queries."""
        layer, embedded = self.layers[0], self.embeddings(input_ids=ids_PL)
        attended = self._attend_text(layer, embedded, embedded)
        return attended, layer.crossattention.self.query(attended)

    @override
    def keys_values(self, image_BND: torch.Tensor) -> list[KeysValues]:
        """Of all layers: every layer of BLIP's text encoder looks at the image."""
        attentions = [layer.crossattention.self for layer in self.layers]
        return [
            (self.split(a.key(image_BND)).contiguous(), self.split(a.value(image_BND)).contiguous()) for a in attentions
        ]

    @override
    def score_chunk(self, prefix: Prefix, memory: Sequence[KeysValues], images: int) -> torch.Tensor:
        """From the first layer's self-attention on, which is the same for all images."""
        attended, query = prefix
        prompts, length, width = attended.shape
        x = attended
        for index, (layer, image) in enumerate(zip(self.layers, memory, strict=True)):
            last = index == len(self.layers) - 1
            read = (slice(-1, None) if self.causal else slice(1)) if last else slice(None)
            if index == 0:
                residual = attended[:, read].reshape(1, -1, width).expand(images, -1, -1)
                asked = query[:, read].reshape(1, -1, width).expand(images, -1, -1)
            else:
                x = x.reshape(images * prompts, length, width)
                residual = self._attend_text(layer, x[:, read], x).reshape(images, -1, width)
                asked = layer.crossattention.self.query(residual)
            found = self.attend_image(asked, image)
            x = layer.feed_forward_chunk(layer.crossattention.output(found, residual))
        return self.head(x.reshape(images, prompts, width))

    def _attend_text(self, layer: Any, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Self-attention block (projections, residual, norm) of tokens ``x [*, L', D]`` over ``context [*, L, D]``: all
        of them, or the one that is read."""
        attention = layer.attention.self
        causal = self.causal and x.shape[-2] > 1
        found = self.attend(attention.query(x), attention.key(context), attention.value(context), causal)
        attended: torch.Tensor = layer.attention.output(found, x)
        return attended

    @override
    def bytes_per_image(self, tokens: int) -> int:
        """Of the keys and values of all layers."""
        return 2 * len(self.layers) * tokens * self.config.hidden_size * int(self.weight.element_size())

    @override
    def bytes_per_prompt(self, length: int) -> int:
        """The feed-forward's two wide activations and some six of width D."""
        width = 2 * self.config.intermediate_size + 6 * self.config.hidden_size
        return length * width * int(self.weight.element_size())


class ItmScorer(BlipTextScorer):
    """Of a loaded ``BlipForImageTextRetrieval`` (or a subclass) in evaluation mode.

    Args:
        model: the loaded model; only its text encoder and matching head are used.
        tokenizer: the checkpoint's tokenizer.
        token_mode: which token leads a prompt.
        memory_mib: see :class:`PromptScorer`.
    """

    def __init__(self, model: Any, tokenizer: Any, token_mode: TokenMode = "cls", memory_mib: int = 256) -> None:
        config = model.config.text_config
        first_token = encoder_token(tokenizer, config) if token_mode == "enc" else None
        options = {"memory_mib": memory_mib, "first_token": first_token}
        super().__init__(model.text_encoder, config, tokenizer, causal=False, **options)
        self.itm_head = model.itm_head

    @override
    def head(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the matching head: no match, match."""
        logits: torch.Tensor = self.itm_head(x)
        return logits


def encode_prompts(tokenizer: Any, prompts: Sequence[str], config: Any) -> list[list[int]]:
    """Token ids of each prompt, [CLS] and [SEP] included, unpadded. ``config`` is the text model's.

    Raises:
        UserError: a prompt is too long, or has words that the tokenizer does not know.
    """
    ids_by_prompt: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    for prompt, ids in zip(prompts, ids_by_prompt, strict=True):
        if len(ids) > (most := config.max_position_embeddings):
            raise UserError(f"prompt '{prompt}': {len(ids)} tokens, the teacher takes {most}; shorten it")
        if tokenizer.unk_token_id in ids:
            raise UserError(f"prompt '{prompt}': has words that the teacher's tokenizer does not know; reword it")
    return ids_by_prompt


def encoder_token(tokenizer: Any, text_config: Any) -> int:
    """The id of [ENC]: the tokenizer's own, else the id that BLIP gave it, one after [DEC]."""
    known = tokenizer.get_vocab().get("[ENC]")
    token = text_config.bos_token_id + 1 if known is None else known
    if token >= text_config.vocab_size:
        raise UserError("token_mode enc: this checkpoint has no [ENC] token; use token_mode cls")
    return int(token)


def merge(x: torch.Tensor) -> torch.Tensor:
    """``[*, H, T, d] -> [*, T, D]``."""
    return x.transpose(-3, -2).flatten(-2)
