"""Text embeddings of prompts by a teacher's own text encoder: what classifiers are initialised or compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.keys import Count, GpuShare
from hoi_distill.stages.stage import ArrowOutput, Batch, Dtype, Resources, Stage, Values
from hoi_distill.stages.teacher.blip.blip2 import text_vectors
from hoi_distill.stages.teacher.weights import CheckpointKey, load, read_json, tokenizer
from hoi_distill.storage.errors import InputFailure, UserError

if TYPE_CHECKING:
    import torch

CLIP = ("CLIPModel", "CLIPTextModelWithProjection", "PicoClipModel")
SIGLIP = ("SiglipModel", "Siglip2Model")
BLIP2 = ("Blip2ForImageTextRetrieval",)
BLIP = ("BlipForImageTextRetrieval", "PicoBlipForImageTextRetrieval")
ENCODERS = ("*Model", "*ForMaskedLM")
"""Any other text encoder, unless its configuration names images."""
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
SENTENCE_MODULES = ("*.Transformer", "*.Pooling", "*.Normalize")
HEADS = ("pooler.*", "cls.*", "lm_head.*", "*.lm_head.*", "vocab_*")
"""Of a sentence encoder: keys of heads above the token states, which nobody reads here."""


class TextEmbeddings(Stage):
    """One unit vector a text, in the space that the teacher shares with its image embeddings (column ``value``).

    BLIP and BLIP-2 retrieval models: the projection of token 0, as their contrastive heads compare it. CLIP: the projected
    end-of-text state. SigLIP: the projected last state of the text padded to the full length, as it was trained (SigLIP 2:
    and lower-cased). Any other encoder: the mean of its last token states, or the pooling that its ``1_Pooling/config.json``
    names (the layout of sentence-transformers).
    """

    name = "text_embeddings"
    source = "texts"
    columns = ("value",)
    architectures: ClassVar[tuple[str, ...]] = (*BLIP, *BLIP2, *CLIP, *SIGLIP, *ENCODERS)
    example: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A BLIP or BLIP-2 retrieval model, a CLIP, a SigLIP or a text encoder that AutoModel loads."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic. Vectors are normalised and stored in float32."""
        batch_size: Count = 64
        """Texts per forward."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        self.batch_size, self.resources = config.batch_size, Resources(gpus=config.gpus)
        self.checkpoint, self.dtype = config.checkpoint, config.dtype
        checkpoint, name, record = self.checkpoint, self.checkpoint.architecture, self.checkpoint.config
        self.pooling: str | None = None
        if name in CLIP:
            width = checkpoint.number(record, "projection_dim", 512)
        elif name in (*BLIP, *BLIP2):
            width = checkpoint.number(record, "image_text_hidden_size", 256)
        elif name in SIGLIP:
            text = record.get("text_config", {})
            width = checkpoint.number(text, "projection_size", text.get("hidden_size", 768))
        elif any(fnmatch(name, pattern) for pattern in ENCODERS) and "vision_config" not in record:
            self.pooling = pooling_of(Path(checkpoint.folder))
            key = next((key for key in ("hidden_size", "d_model", "dim", "n_embd") if key in record), None)
            if key is None:
                raise UserError(f"{checkpoint.folder}/config.json: names no hidden_size; use a text encoder")
            width = checkpoint.number(record, key, 0)
        else:
            raise UserError(
                f"{checkpoint.folder}: {name} cannot fill the {self.name} table; it takes "
                f"{', '.join((*BLIP, *BLIP2, *CLIP, *SIGLIP))} or a text encoder that AutoModel loads"
            )
        self.lowercase = name == "SiglipModel" and is_siglip2(Path(checkpoint.folder))
        self.output = ArrowOutput(pa.list_(pa.float32(), width))

    @override
    def parameters(self) -> dict[str, Any]:
        pooling = {} if self.pooling is None else {"pooling": self.pooling}
        case = {"text": "lower-cased"} if self.lowercase else {}
        return {"teacher": self.checkpoint.digest, "dtype": self.dtype, "normalised": True, **pooling, **case}

    @override
    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint.source, "revision": self.checkpoint.revision}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("model", "tokenizer", "device")}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        from transformers import AutoModel

        key = ("text", self.checkpoint.digest, self.dtype, device)
        if key not in shared:
            folder = self.checkpoint.here()
            anyhow: dict[str, Any] = {} if self.pooling is None else {"make": AutoModel, "spare": HEADS}
            model = load(self.checkpoint, folder, self.dtype, device, **anyhow)
            shared[key] = model, tokenizer(folder)
        self.model, self.tokenizer = shared[key]
        self.device = device

    def longest(self) -> int:
        """Tokens that the teacher takes."""
        own = self.model.config
        text = own.qformer_config if self.checkpoint.architecture in BLIP2 else getattr(own, "text_config", own)
        positions = int(getattr(text, "max_position_embeddings", 1 << 20))
        return min(positions, self.tokenizer.model_max_length) if self.pooling else positions

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        unit = self.embed(batch.texts)
        return {"value": pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), unit.shape[1])}

    def embed(self, texts: Sequence[str], cut: bool = False) -> np.ndarray:
        """Unit vectors, float32 ``[B, E]``.

        Args:
            texts: B texts.
            cut: leave out the end of a text that is too long.

        Raises:
            InputFailure: a text is too long, unless it is cut.
        """
        import torch

        most = self.longest()
        full = self.checkpoint.architecture in SIGLIP
        length: dict[str, Any] = {"padding": "max_length" if full else True, "truncation": cut}
        if full or cut:
            length["max_length"] = most
        texts = [text.lower() for text in texts] if self.lowercase else list(texts)
        tokens = self.tokenizer(texts, return_tensors="pt", return_attention_mask=True, **length).to(self.device)
        if tokens["input_ids"].shape[1] > most:
            raise InputFailure(f"the text has {tokens['input_ids'].shape[1]} tokens, the teacher takes {most}")
        with torch.inference_mode():
            vectors = self._vectors(tokens)
            unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
        return np.ascontiguousarray(unit.cpu().numpy())

    def _vectors(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``[B, E]``, not normalised."""
        name, ids = self.checkpoint.architecture, tokens["input_ids"]
        if self.pooling is not None:
            mask = tokens["attention_mask"]
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return pooled(states, mask, self.pooling)
        found: Any
        if name in SIGLIP:  # was trained without a mask: the padding takes part
            found = self.model.get_text_features(input_ids=ids).pooler_output
        elif name in BLIP:
            states = self.model.text_encoder(input_ids=ids, attention_mask=tokens["attention_mask"]).last_hidden_state
            found = self.model.text_proj(states[:, 0])
        elif name in BLIP2:
            found = text_vectors(self.model, ids, tokens["attention_mask"])
        elif name == "CLIPTextModelWithProjection":
            found = self.model(input_ids=ids, attention_mask=tokens["attention_mask"]).text_embeds
        else:
            found = self.model.get_text_features(input_ids=ids, attention_mask=tokens["attention_mask"]).pooler_output
        vectors: torch.Tensor = found
        return vectors


def is_siglip2(folder: Path) -> bool:
    """Whether a ``SiglipModel`` is one of SigLIP 2's at a fixed resolution, by its tokenizer, which is Gemma's.

    All of SigLIP 2 was trained on lower-cased text. transformers' own tokenizer of the naflex form (``siglip2``) sees to it;
    these checkpoints say that they are a ``siglip`` with Gemma's tokenizer, which keeps capitals.
    """
    path = folder / "tokenizer_config.json"
    return path.exists() and str(read_json(path).get("tokenizer_class")).startswith("Gemma")


def pooling_of(folder: Path) -> str:
    """How a sentence encoder's token states become one vector: ``mean``, ``cls``, ``max`` or ``last``.

    Raises:
        UserError: a pooling or a further module (a dense layer) that is not known here.
    """
    if (folder / "modules.json").exists():
        modules = read_json(folder / "modules.json", list)
        for module in modules:
            kind = module.get("type") if isinstance(module, dict) else module
            if not any(fnmatch(str(kind), pattern) for pattern in SENTENCE_MODULES):
                raise UserError(f"{folder}/modules.json: {kind} is not supported; use an encoder without it")
    records = sorted(folder.glob("*_Pooling/config.json"))
    if not records:
        return "mean"
    record = read_json(records[0])
    if isinstance(record.get("pooling_mode"), str):  # the newer spelling
        modes = [record["pooling_mode"].removesuffix("token")]
    else:
        modes = [POOLINGS.get(key, key) for key, on in record.items() if key.startswith("pooling_mode") and on is True]
    if len(modes) != 1 or modes[0] not in POOLINGS.values():
        raise UserError(
            f"{records[0]}: pooling {', '.join(modes) or 'of no kind'} is not supported; it takes mean, cls, max"
        )
    return modes[0]


def pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """``[B, E]`` of token states ``[B, L, E]``; mask int ``[B, L]``, 1 where there is a token."""
    import torch

    real = mask.unsqueeze(-1).bool()
    if pooling == "cls":
        first = mask.argmax(1)  # 0 unless padded on the left
        return states[torch.arange(len(states), device=states.device), first]
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    if pooling == "max":
        return states.masked_fill(~real, float("-inf")).amax(1)
    return (states * real).sum(1) / real.sum(1)
