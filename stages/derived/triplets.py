"""Interaction triplets from a teacher's sentences: plain text in, (verb, object, weight) of a vocabulary out.

Words are matched by tables of synonyms and a lemmatiser (:mod:`hoi_distill.stages.derived.lexicon`), with weight 1;
what they lack may be aligned by text embeddings, with the cosine as weight. What is dropped is kept with its reason, so
that the drop rate can be read off the table. (CL-HOI publishes no parser; this one is a reconstruction.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from typing_extensions import override

from hoi_distill.stages.data.prompts import PREFIX_END
from hoi_distill.stages.data.triplet_cells import TRIPLETS
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.lexicon.alignment import Aligner, prompts
from hoi_distill.stages.derived.lexicon.findings import Reading
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon
from hoi_distill.stages.derived.lexicon.reader import read
from hoi_distill.stages.derived.lexicon.words import LEMMATISER, tables
from hoi_distill.stages.keys import Columns, Count, GpuShare
from hoi_distill.stages.stage import ArrowOutput, Batch, Resources, Stage, Values
from hoi_distill.stages.teacher.weights import Checkpoint, CheckpointKey
from hoi_distill.storage.digests import fingerprint

Placed = tuple[dict[tuple[int, int], tuple[float, str]], list[tuple[str, str]]]
"""Of one text: weight and phrase of each (verb, object), and the dropped (phrase, reason)."""


class Triplets(Stage):
    """Triplets read from the captions table; pure text, so it needs neither images nor, without embeddings, a GPU.

    Each column is a column of the captions table. A question that the teacher continued is read together with its
    continuation; one that ends in a colon, a full stop or a question mark is not part of the answer. For a yes/no question
    the triplet is the question's own and its weight the teacher's score; else the weight is 1, or the cosine where the
    triplet was aligned.
    """

    name = "triplets"
    version = 2
    decodes = False
    output = ArrowOutput(TRIPLETS)

    class Config(Stage.Config):
        columns: Columns
        """The caption questions to read."""
        captions: str = "captions"
        """The configuration's name of the captions table."""
        embeddings: CheckpointKey | None = None
        """A text encoder (see :class:`hoi_distill.stages.teacher.text_embeddings.TextEmbeddings`) for phrases without
        exact match; without it they are dropped. The encoders of CLIP and BLIP give most pairs of prompts a high cosine:
        a sentence encoder suits better, or a higher threshold."""
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
        """The least cosine that counts. ``python -m bench alignment`` measures precision and recall by threshold."""
        batch_size: Count = 256
        """Rows per step."""
        gpus: GpuShare = 0.0
        """Share of a GPU that the text encoder occupies."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        self.columns, self.inputs, self.batch_size = config.columns, (config.captions,), config.batch_size
        self.verbs, self.objects = vocabulary.verbs, vocabulary.objects
        self.hois = tuple((int(verb), int(obj)) for verb, obj in vocabulary.hois)
        self.embeddings, self.threshold = config.embeddings, config.threshold
        self.resources = Resources(gpus=config.gpus)
        if self.embeddings is not None:
            self._encoder(self.embeddings)  # refuses a checkpoint that has no text encoder

    @staticmethod
    def _encoder(checkpoint: Checkpoint) -> Any:
        from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings

        return TextEmbeddings(TextEmbeddings.Config(checkpoint=checkpoint, batch_size=1))

    @override
    def parameters(self) -> dict[str, Any]:
        vocabulary = {"verbs": self.verbs, "objects": self.objects, "hois": self.hois}
        record = {
            "vocabulary": fingerprint(vocabulary),
            "words": fingerprint(dict(zip(("objects", "verbs"), tables(), strict=True))),
            "lemmatiser": LEMMATISER,
        }
        if self.embeddings is None:
            return record
        said = {"prompts": sorted(prompts(Lexicon(self.verbs, self.objects, self.hois)).values())}
        encoder = self._encoder(self.embeddings).parameters()
        return {**record, "embeddings": encoder, "threshold": self.threshold, "prompts": fingerprint(said)}

    @override
    def provenance(self) -> dict[str, Any]:
        return {} if self.embeddings is None else {"checkpoint": self.embeddings.source}

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.inputs[0]: (column,)}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        lexicon = Lexicon(self.verbs, self.objects, self.hois)
        aligner = None
        if self.embeddings is not None:
            encoder = self._encoder(self.embeddings)
            encoder.open(device, shared)

            def embed(text: str) -> np.ndarray:
                batch = Batch(np.zeros(1, "V16"), [text], 1, texts=[text])
                vector: np.ndarray = encoder.compute(batch, encoder.columns, {})["value"].flatten().to_numpy()
                return vector

            aligner = Aligner(lexicon, embed, self.threshold)
        # A teacher repeats itself: a text is read once.
        self._read = lru_cache(maxsize=20_000)(lambda text: placed(read(text, lexicon), aligner))

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        captions = inputs[self.inputs[0]]
        return {
            column: pa.array([self._cell(column, cell) for cell in captions[column].to_pylist()], self.output.type)
            for column in columns
        }

    def _cell(self, question: str, caption: dict[str, Any] | None) -> dict[str, Any] | None:
        if caption is None:  # a row of the batch that does not want this column
            return None
        score = caption.get("score")
        if score is not None:
            text = question.rstrip("? ")
        else:
            text = caption["text"] if PREFIX_END.search(question) else f"{question} {caption['text']}"
        triplets, dropped = self._read(text)
        return {
            "verb": [verb for verb, _ in triplets],
            "object": [obj for _, obj in triplets],
            "weight": [weight * (1.0 if score is None else score) for weight, _ in triplets.values()],
            "phrase": [phrase for _, phrase in triplets.values()],
            "dropped": [{"phrase": phrase, "reason": reason} for phrase, reason in dropped],
        }


def placed(reading: Reading, aligner: Aligner | None) -> Placed:
    """A reading with what the aligner places moved from the dropped to the triplets; an exact match stands."""
    triplets = {pair: (1.0, phrase) for pair, phrase in reading.triplets.items()}
    dropped = []
    for drop in reading.dropped:
        pairs, weight = ([], 0.0) if aligner is None else aligner.place(drop)
        for pair in pairs:
            if weight > triplets.get(pair, (0.0, ""))[0]:
                triplets[pair] = weight, drop.phrase
        if not pairs:
            dropped.append((drop.phrase, drop.reason))
    return triplets, dropped


def drop_report(cells: Iterable[Mapping[str, Any] | None]) -> dict[str, int]:
    """How many phrases of the cells were taken, and how many dropped for each reason, the most frequent first."""
    taken, dropped = 0, Counter[str]()
    for cell in cells:
        if cell is not None:
            taken += len(cell["verb"])
            dropped.update(drop["reason"] for drop in cell["dropped"])
    return {"taken": taken, **dict(dropped.most_common())}
