"""What a teacher says of an image, sentence by sentence, as vectors: what a student's context tokens are compared with.

A reimplementation in the CL-HOI style: a text of several sentences says more than one vector holds, and is longer than
text encoders take, so each of its first sentences is embedded by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.data.prompts import PREFIX_END
from hoi_distill.stages.keys import Count, GpuShare
from hoi_distill.stages.stage import ArrowOutput, Batch, Dtype, Resources, Stage, Values
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import CheckpointKey

END = re.compile(r"(?<=[.!?;])(?<!\b\d\.)(?<!\b\d\d\.)\s+|\s*[\r\n]+\s*")
"""Where a sentence, or an item of a list, ends; not behind its number."""
MARK = re.compile(r"^(?:[-*•]|\d+[.)])\s+")
"""What may lead an item of a list."""


class SentenceEmbeddings(Stage):
    """Unit vectors ``[S, E]`` of the first sentences of a caption, S at most ``sentences`` and 0 where nothing was said; one
    column, ``value``. A sentence that is longer than the encoder takes is cut at its end.
    """

    name = "sentence_embeddings"
    decodes = False
    columns = ("value",)
    architectures = TextEmbeddings.architectures
    example: ClassVar[str] = TextEmbeddings.example

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A text encoder, see :class:`hoi_distill.stages.teacher.text_embeddings.TextEmbeddings`."""
        question: str
        """The column of the captions table. It is read along where the caption continues it."""
        captions: str = "captions"
        """The configuration's name of that table."""
        sentences: Count = 8
        """At most so many sentences of a caption."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic. Vectors are stored in float16."""
        batch_size: Count = 64
        """Rows per step."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        self.encoder = TextEmbeddings(TextEmbeddings.Config(checkpoint=config.checkpoint, dtype=config.dtype))
        self.question, self.inputs = config.question, (config.captions,)
        self.sentences, self.batch_size = config.sentences, config.batch_size
        assert isinstance(self.encoder.output, ArrowOutput)
        self.width = int(self.encoder.output.type.list_size)
        self.output = ArrowOutput(pa.list_(pa.list_(pa.float16(), self.width)))
        self.resources = Resources(gpus=config.gpus)

    @override
    def parameters(self) -> dict[str, Any]:
        return {**self.encoder.parameters(), "sentences": self.sentences, "longest": "cut"}

    @override
    def provenance(self) -> dict[str, Any]:
        return self.encoder.provenance()

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.inputs[0]: (self.question,)}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        self.encoder.open(device, shared)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        said = inputs[self.inputs[0]][self.question].to_pylist()
        lists = [split(read_along(self.question, cell["text"]))[: self.sentences] if cell else [] for cell in said]
        # By length: a text is padded to its neighbours', and a teacher repeats itself.
        texts = sorted({text for sentences in lists for text in sentences}, key=lambda text: (len(text), text))
        size = self.encoder.batch_size
        parts = [self.encoder.embed(texts[at : at + size], cut=True) for at in range(0, len(texts), size)]
        vectors = np.concatenate([np.zeros((0, self.width), np.float32), *parts]).astype(np.float16)
        place = {text: index for index, text in enumerate(texts)}
        chosen = np.array([place[text] for sentences in lists for text in sentences], np.int64)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors[chosen].reshape(-1)), self.width)
        offsets = pa.array(np.cumsum([0, *map(len, lists)]), pa.int32())
        return {"value": pa.ListArray.from_arrays(offsets, flat)}


def read_along(question: str, text: str) -> str:
    """An answer by itself, or what it continues with it."""
    return text if PREFIX_END.search(question) else f"{question} {text}".strip()


def split(text: str) -> list[str]:
    """The sentences of a text and the items of its lists, in order, without what marks them."""
    parts = (MARK.sub("", part).strip(" ;") for part in END.split(text.strip()))
    return [part for part in parts if re.search(r"\w", part)]
