"""Text embeddings of prompts by a teacher's own text encoder: what classifiers are initialised or compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.stage import ArrowOutput, Batch, Resources, Stage, Values
from stages.teacher.blip import Dtype
from stages.teacher.weights import Checkpoint, load
from storage.errors import InputFailure, UserError


class TextEmbeddings(Stage):
    """One unit vector a text, in the space that the teacher shares with its image embeddings (column ``value``).

    BLIP retrieval models: the projection ``text_proj`` of token 0. CLIP: the projected end-of-text state.

    Args:
        checkpoint: a ``Blip...ForImageTextRetrieval`` or a ``CLIPModel``.
    """

    name = "text_embeddings"
    source = "texts"
    columns = ("value",)

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: Dtype = "float32", batch_size: int = 64, gpus: float = 0.0
    ) -> None:
        self.checkpoint, self.dtype, self.batch_size = checkpoint, dtype, batch_size
        self.is_clip = checkpoint.architecture == "CLIPModel"
        if not self.is_clip and not checkpoint.architecture.endswith("BlipForImageTextRetrieval"):
            raise UserError(
                f"{checkpoint.folder}: {checkpoint.architecture} cannot fill the {self.name} table; "
                "it takes BlipForImageTextRetrieval or CLIPModel"
            )
        size, default = ("projection_dim", 512) if self.is_clip else ("image_text_hidden_size", 256)
        self.output = ArrowOutput(pa.list_(pa.float32(), int(checkpoint.config.get(size, default))))
        self.resources = Resources(gpus=gpus)

    def parameters(self) -> dict[str, Any]:
        return {"teacher": self.checkpoint.digest, "dtype": self.dtype, "normalised": True}

    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint.source, "revision": self.checkpoint.revision}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("model", "tokenizer", "device")}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        from transformers import AutoTokenizer

        key = ("text", self.checkpoint.digest, self.dtype, device)
        if key not in shared:
            folder = self.checkpoint.here()
            model = load(self.checkpoint, folder, self.dtype, device)
            shared[key] = model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model, self.tokenizer = shared[key]
        self.device = device

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(batch.texts), padding=True, return_tensors="pt").to(self.device)
        if tokens["input_ids"].shape[1] > most:
            raise InputFailure(f"the text has {tokens['input_ids'].shape[1]} tokens, the teacher takes {most}")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        with torch.inference_mode():
            if self.is_clip:
                vectors = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            else:
                states = self.model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                vectors = self.model.text_proj(states[:, 0])
            unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
        flat = np.ascontiguousarray(unit.cpu().numpy()).reshape(-1)
        return {"value": pa.FixedSizeListArray.from_arrays(pa.array(flat), unit.shape[1])}
