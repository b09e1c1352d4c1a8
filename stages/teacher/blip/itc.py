"""Image-text contrastive similarity (ITC) of BLIP and BLIP-2: a table of its own, far cheaper than matching (ITM).

A cell is the cosine of image and prompt in the teacher's common space, float32: the cosines of one image lie close
together, and halves would tie prompts that a ranking has to tell apart. BLIP compares its image [CLS]; BLIP-2 takes the
most similar of its query tokens. The prompt's vector is read from its [CLS] in both.

Shapes: B images, N image tokens, Q image vectors (BLIP: 1), P prompts, L text tokens, E the common width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.stage import ArrowOutput, Batch, Values
from hoi_distill.stages.teacher.blip.blip2 import text_vectors
from hoi_distill.stages.teacher.blip.stages import BlipStage

if TYPE_CHECKING:
    import torch

PROMPTS_AT_ONCE = 64


class ItcStage(BlipStage):
    """Cosine similarities. Each column is a prompt."""

    name = "itc"
    architectures = ("ForImageTextRetrieval",)
    output = ArrowOutput(pa.float32())

    @abstractmethod
    def image_vectors(self, image_BND: torch.Tensor) -> torch.Tensor:
        """``[B, Q, E]`` of the tower's last hidden state, not normalised."""

    @abstractmethod
    def prompt_vectors(self, ids_PL: torch.Tensor) -> torch.Tensor:
        """``[P, E]`` of prompts of one length, not normalised."""

    @abstractmethod
    def text_config(self) -> Any:
        """The text model's configuration."""

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        from hoi_distill.stages.teacher.blip.itm_scorer import encode_prompts

        super().open(device, shared)
        encode_prompts(self.tokenizer, self.columns, self.text_config())  # told before the first image
        self.vectors: dict[str, torch.Tensor] = {}

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch
        from torch.nn.functional import normalize

        self.computed_cells += batch.count * len(columns)
        image = self.encode(batch)
        with torch.inference_mode():
            text_PE = self._texts(columns)
            image_BQE = normalize(self.image_vectors(image), dim=-1)
            similarity_BP = (image_BQE @ text_PE.T).amax(1).float().cpu().numpy()
        if not np.isfinite(similarity_BP).all():
            raise FloatingPointError(f"table {self.name}: similarities are not finite at dtype {self.dtype}")
        by_column = np.ascontiguousarray(similarity_BP.T)
        return {prompt: pa.array(values) for prompt, values in zip(columns, by_column, strict=True)}

    def _texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """``[P, E]`` of unit length; each prompt is encoded once, with others of its own length, so without padding."""
        import torch
        from torch.nn.functional import normalize

        from hoi_distill.stages.teacher.blip.itm_scorer import encode_prompts

        if new := [prompt for prompt in prompts if prompt not in self.vectors]:
            ids_by_prompt = encode_prompts(self.tokenizer, new, self.text_config())
            for length in {len(ids) for ids in ids_by_prompt}:
                members = [(prompt, ids) for prompt, ids in zip(new, ids_by_prompt, strict=True) if len(ids) == length]
                for start in range(0, len(members), PROMPTS_AT_ONCE):
                    part = members[start : start + PROMPTS_AT_ONCE]
                    ids_PL = torch.tensor([ids for _, ids in part], device=self.device)
                    units = normalize(self.prompt_vectors(ids_PL), dim=-1)
                    self.vectors.update(zip([prompt for prompt, _ in part], units, strict=True))
        return torch.stack([self.vectors[prompt] for prompt in prompts])


class BlipItc(ItcStage):
    """BLIP's cosine similarity of image and prompt. Each column is a prompt."""

    @override
    def image_vectors(self, image_BND: torch.Tensor) -> torch.Tensor:
        """The projected CLS token."""
        vectors: torch.Tensor = self.model.vision_proj(image_BND[:, :1])
        return vectors

    @override
    def prompt_vectors(self, ids_PL: torch.Tensor) -> torch.Tensor:
        """The projected first token of the text encoder."""
        vectors: torch.Tensor = self.model.text_proj(self.model.text_encoder(input_ids=ids_PL).last_hidden_state[:, 0])
        return vectors

    @override
    def text_config(self) -> Any:
        """Of the text encoder."""
        return self.model.config.text_config


class Blip2Itc(ItcStage):
    """BLIP-2's cosine similarity of prompt and most similar query token. Each column is a prompt."""

    families = ("Blip2",)

    @override
    def image_vectors(self, image_BND: torch.Tensor) -> torch.Tensor:
        """The projected query tokens."""
        queries = self.model.query_tokens.expand(len(image_BND), -1, -1)
        states = self.model.qformer(query_embeds=queries, encoder_hidden_states=image_BND).last_hidden_state
        vectors: torch.Tensor = self.model.vision_projection(states.to(self.model.vision_projection.weight.dtype))
        return vectors

    @override
    def prompt_vectors(self, ids_PL: torch.Tensor) -> torch.Tensor:
        """The projected first token of the Q-Former."""
        return text_vectors(self.model, ids_PL)

    @override
    def text_config(self) -> Any:
        """Of the Q-Former."""
        return self.model.config.qformer_config
