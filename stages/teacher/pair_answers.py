"""Yes/no answers about each human-object pair, by models that read images and write: LLaVA, Qwen2-VL, Qwen2.5-VL.

The prompt says where the pair is, or the image shows it, and then asks about one verb. The image goes through the model once,
what is said of the pair once a pair, each question by itself (:mod:`hoi_distill.stages.teacher.shared_prefix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count, GpuShare
from hoi_distill.stages.stage import Batch, Dtype, Resources, Values
from hoi_distill.stages.teacher.answers import Answers, ImageInputs
from hoi_distill.stages.teacher.blip.first_token import answer_ids, log_probabilities
from hoi_distill.stages.teacher.pair_questions import Form, answer_cells
from hoi_distill.stages.teacher.pair_words import AsksInWords, Coordinates, PairQuestion, written
from hoi_distill.stages.teacher.preprocessing import joined
from hoi_distill.stages.teacher.seen_objects import PERSON
from hoi_distill.stages.teacher.shared_prefix import Branch, Packed, in_chunks, packed_states
from hoi_distill.stages.teacher.weights import CheckpointKey
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.shards.cells import cells

if TYPE_CHECKING:
    import torch
    from PIL import Image

COORDINATES: Mapping[str, Coordinates] = {
    "LlavaForConditionalGeneration": "fractions",
    "Qwen2VLForConditionalGeneration": "thousandths",
    "Qwen2_5_VLForConditionalGeneration": "pixels",
}
"""How each family was taught to write a box."""


class PairAnswers(AsksInWords):
    """Answers of an image-text-to-text model about each human-object pair. Each column is a verb.

    A cell has, of each pair whose object allows the verb, the logarithms of the probabilities that the answer's first token is a
    yes and that it is a no. With ``form: likelihood`` it has those of the whole answer that names the verb, with the image and
    without it, so that their difference says what the image adds (pointwise mutual information).
    """

    architectures: ClassVar[tuple[str, ...]] = tuple(COORDINATES)
    example: ClassVar[str] = "Qwen/Qwen2.5-VL-7B-Instruct"

    class Config(AsksInWords.Config):
        checkpoint: CheckpointKey
        """LLaVA, Qwen2-VL or Qwen2.5-VL (``...ForConditionalGeneration``)."""
        coordinates: Coordinates | None = None
        """How a box is written: pixels of the image as the model gets it, thousandths of its sides, or fractions of them with two
        decimals. Default: as the checkpoint's family was taught."""
        form: Form = "yes_no"
        """``likelihood``: the question is "What is this person doing?", without ``{action}``, and the likelihood of the answer
        "riding a bicycle" is computed, as by DA-HOI's training-free teacher. Another table."""
        prompt: str | None = None
        """How both are put, as in stage ``answers``. Default: the checkpoint's chat template, else the family's plain prompt."""
        max_pixels: Count | None = None
        """Bound on an image's pixels after resizing (Qwen only, whose images keep their shape)."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic."""
        tokens_at_once: Count = 2048
        """Tokens of pairs and questions in one forward: it bounds the memory. Where memory runs out it is halved."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary, config.form)
        architecture = config.checkpoint.architecture
        if architecture not in COORDINATES:
            raise UserError(
                f"{config.checkpoint.folder}: {architecture} cannot be asked about pairs; it takes {', '.join(COORDINATES)}"
            )
        self.coordinates: Coordinates = config.coordinates or COORDINATES[architecture]
        self.tokens_at_once = config.tokens_at_once
        self.resources = Resources(gpus=config.gpus)
        self.speaker = Answers(
            Answers.Config(
                checkpoint=config.checkpoint, columns=(self.question,), prompt=config.prompt,
                max_pixels=config.max_pixels, dtype=config.dtype, batch_size=1, gpus=config.gpus,
            ),
            vocabulary,
        )  # fmt: skip
        """The model, its preprocessing and its prompt."""
        self.vision_key = self.speaker.vision_key if self.view == "whole" else None

    @override
    def parameters(self) -> dict[str, Any]:
        model = self.speaker.parameters()
        kept = {key: value for key, value in model.items() if key not in ("max_new_tokens", "decoding")}
        kind = (
            "log-probabilities of the first token"
            if self.form == "yes_no"
            else "log-likelihoods with and without image"
        )
        return {**kept, **self.words(self.coordinates), "answer": kind}

    @override
    def provenance(self) -> dict[str, Any]:
        return {**self.speaker.provenance(), **super().provenance()}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("template", "ids", "budget", "whole")}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        self.speaker.open(device, shared)
        self.template = self.speaker.prompt_text(self.question)
        self.ids = answer_ids(self.speaker.tokenizer, self.speaker.checkpoint.folder)
        mark = self.speaker.tokenizer.convert_ids_to_tokens(self.speaker.image_id)
        before = self.template.partition(self.question)[0]  # a question before the image leaves nothing to share
        self.whole = not self.speaker.shared_prefix or mark not in before
        self.budget = self.tokens_at_once
        if self.form == "likelihood":  # an answer that cannot follow the prompt is told before any image
            some = {"labels": [PERSON, int(np.flatnonzero(self.hoi_of[0] >= 0)[0])], "humans": 1}
            sample = self.said(["", ""], some, self.columns[:1])
            self.candidate_ids(sample, self.token_ids(sample))

    @override
    def prepare(self, image: Image.Image) -> ImageInputs | Image.Image:
        return self.speaker.prepare(image) if self.view == "whole" else image

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        found = cells(inputs[self.instances]["value"])
        rows = []
        with torch.inference_mode():
            for row, image in enumerate(self.prepared(batch)):
                rows.append(self.answers(image, found(row), columns))
        return {column: answer_cells([row[column] for row in rows]) for column in columns}

    def answers(
        self, image: ImageInputs | Image.Image, instances: Mapping[str, Any] | None, columns: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The answers about one image.

        Args:
            image: what :meth:`prepare` made of it.
            instances: its cell of the table of boxes; None: it has none.
            columns: the questions.

        Returns:
            By column the numbers of N pairs, int64 ``[N]``, and float32 ``[N, 2]``, logarithms of yes and no.
        """
        ask = self.one_by_one if self.whole else self.as_tree
        questions: list[PairQuestion] = []
        parts = [np.zeros((0, 2), np.float32)]
        if instances is not None:
            for seen, pairs in self.seen(image, instances, columns):
                own = self.questions(seen, instances, columns, pairs)
                parts += [ask(seen, own)] if own else []
                questions += own
        told = np.concatenate(parts)
        number = np.array([each.number for each in questions], np.int64)
        asked = np.array([columns.index(each.column) for each in questions], np.int64)
        return {column: (number[asked == at], told[asked == at]) for at, column in enumerate(columns)}

    def seen(
        self, image: ImageInputs | Image.Image, instances: Mapping[str, Any], columns: Sequence[str]
    ) -> Iterator[tuple[ImageInputs, int | None]]:
        """What the model sees: an image, for all pairs (None), or a view for the number of each pair that is asked about."""
        if isinstance(image, ImageInputs):
            yield image, None
            return
        for number, pair in self.asked_pairs(instances, columns).items():
            yield self.speaker.prepare(self.view_of(image, instances, pair)), number

    def asked_pairs(self, instances: Mapping[str, Any], columns: Sequence[str]) -> dict[int, list[int]]:
        """Human and object among the instances, by the number of each pair that some column asks about, rising."""
        asked: dict[int, list[int]] = {}
        for column in columns:
            numbers, pairs = self.pairs_of(instances, column)
            asked.update(zip(numbers.tolist(), pairs.tolist(), strict=True))
        return dict(sorted(asked.items()))

    def questions(
        self, image: ImageInputs, instances: Mapping[str, Any], columns: Sequence[str], only: int | None = None
    ) -> list[PairQuestion]:
        """All questions about an image, or about the pair of one number, by pair, then by column."""
        return self.said(self.boxes(image, instances), instances, columns, only)

    def boxes(self, image: ImageInputs, instances: Mapping[str, Any]) -> list[str]:
        """The boxes of an image as they are written."""
        return written(instances, self.coordinates, self.seen_size(image))

    def seen_size(self, image: ImageInputs) -> tuple[int, int]:
        """(width, height) in pixels of the image as the model gets it."""
        if self.speaker.is_qwen:
            _, rows, columns = image.tensors["image_grid_thw"][0].tolist()
            patch = int(self.speaker.processor.patch_size)
            return columns * patch, rows * patch
        height, width = image.tensors["pixel_values"].shape[-2:]
        return int(width), int(height)

    def token_ids(self, questions: Sequence[PairQuestion]) -> list[list[int]]:
        """Token ids of the prompts; the image's mark is a single token among them."""
        return self.encoded([self.template.replace(self.question, each.text) for each in questions])

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that begin as a prompt does."""
        start = self.speaker.tokenizer.bos_token
        has_start = bool(start) and self.template.startswith(start)
        ids: list[list[int]] = self.speaker.tokenizer(list(texts), add_special_tokens=not has_start)["input_ids"]
        return ids

    def candidate_ids(self, questions: Sequence[PairQuestion], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids of the answers whose likelihood is asked for, as they follow the prompts; empty ones for a yes or no.

        Raises:
            UserError: an answer's first token would be a part of the prompt's last one.
        """
        if self.form == "yes_no":
            return [[] for _ in questions]
        space = "" if self.template[-1:].isspace() else " "
        texts = [self.template.replace(self.question, each.text) + space + each.candidate for each in questions]
        found = []
        for ids, prompt in zip(self.encoded(texts), prompts, strict=True):
            if ids[: len(prompt)] != list(prompt) or len(ids) == len(prompt):
                raise UserError(
                    f"prompt: its end {self.template[-12:]!r} and an answer are one token; end it in another way"
                )
            found.append(ids[len(prompt) :])
        return found

    def one_by_one(self, image: ImageInputs, questions: Sequence[PairQuestion]) -> np.ndarray:
        """float32 ``[Q, 2]``: every question as a whole prompt with its image, one forward each."""
        import torch

        pixels, told = self.pixels(image), []
        prompts = self.token_ids(questions)
        for ids, answer in zip(prompts, self.candidate_ids(questions, prompts), strict=True):
            seen, blind = self.widened(ids, image), self.without_image(ids)
            if not answer:
                logits = self.model(**self.given(seen), **pixels, logits_to_keep=1).logits[:, -1]
                told.append(log_probabilities(logits, *self.ids))
                continue
            both = [
                self.model(**self.given([*before, *answer[:-1]]), **given, logits_to_keep=len(answer)).logits[0]
                for before, given in ((seen, pixels), (blind, {}))
            ]
            told.append(torch.stack([likelihood(logits, answer) for logits in both], 1))
        found: np.ndarray = torch.cat(told).cpu().numpy()
        return found

    def as_tree(self, image: ImageInputs, questions: Sequence[PairQuestion], levels: int = 2) -> np.ndarray:
        """float32 ``[Q, 2]``: the image once and, with two levels, what is said of a pair once.

        Args:
            image: what :meth:`prepare` made of it.
            questions: Q questions, by pair.
            levels: 1: what is said of a pair is repeated with each question.
        """
        if self.form == "yes_no":
            return self.grown(image, questions, levels)
        return np.stack([self.grown(seen, questions, levels) for seen in (image, None)], 1)

    def grown(self, image: ImageInputs | None, questions: Sequence[PairQuestion], levels: int) -> np.ndarray:
        """The answers of one tree: float32 ``[Q, 2]`` of yes and no, or ``[Q]`` likelihoods. None: no image is seen."""
        import torch

        ids = self.token_ids(questions)
        answers = self.candidate_ids(questions, ids)
        trunk, offset, start = self.trunk(image, ids[0])
        rest = [each[start:] if image is not None else self.without_image(each) for each in ids]
        together = by_pair(questions) if levels == 2 else [[place] for place in range(len(questions))]
        branches = [branch_of([rest[at] for at in places], [answers[at] for at in places]) for places in together]
        told: list[torch.Tensor] = []
        waiting = list(in_chunks(branches, self.budget))
        while waiting:
            try:
                done = sum(map(len, told))
                told.append(self.leaves(trunk, offset, waiting[0], answers[done:]))
                del waiting[0]
                continue
            except torch.OutOfMemoryError:
                if sum(len(branch.leaves) for branch in waiting[0]) == 1:
                    raise
            self.budget = sum(branch.tokens for branch in waiting[0]) // 2
            waiting = list(in_chunks([branch for chunk in waiting for branch in chunk], self.budget))
            trunk, offset, _ = self.trunk(image, ids[0])  # some layers of the old one may be longer than others
        found: np.ndarray = torch.cat(told).cpu().numpy()
        return found

    def trunk(self, image: ImageInputs | None, ids: Sequence[int]) -> tuple[Any, int, int]:
        """What all questions about an image share, gone through the model.

        Args:
            image: what :meth:`prepare` made of it. None: nothing is shared.
            ids: token ids of one prompt.

        Returns:
            The cache of keys and values; the position of the next token; how many tokens of ``ids`` are in it.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config())
        if image is None:
            return cache, 0, 0
        start = ids.index(self.speaker.image_id) + 1
        before = self.widened(ids[:start], image)
        self.model(**self.given(before), **self.pixels(image), past_key_values=cache, use_cache=True, logits_to_keep=1)
        delta = getattr(self.model.model, "rope_deltas", None)
        return cache, len(before) + (0 if delta is None else int(delta)), start

    def leaves(
        self, trunk: Any, offset: int, branches: Sequence[Branch], answers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """float32 ``[Q, 2]``, the answers to the Q questions of some branches, or ``[Q]``, the likelihoods of the first Q
        ``answers``."""
        import torch

        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        packed = Packed.of(branches)
        states = packed_states(decoder, trunk, offset, packed, self.speaker.device)
        if self.form == "yes_no":
            return log_probabilities(head(states[torch.from_numpy(packed.ends).to(states.device)]), *self.ids)
        ends = packed.ends.tolist()
        own = [states[end + 1 - len(answer) : end + 1] for end, answer in zip(ends, answers, strict=False)]
        return torch.cat([likelihood(head(each), answer) for each, answer in zip(own, answers, strict=False)])

    @property
    def model(self) -> Any:
        """The opened model."""
        return self.speaker.model

    def pixels(self, image: ImageInputs) -> dict[str, torch.Tensor]:
        """The tensors of an image on the device."""
        import torch

        return joined([image.tensors], self.speaker.device, getattr(torch, self.speaker.dtype))

    def without_image(self, ids: Sequence[int]) -> list[int]:
        """Token ids without the mark of the image."""
        return [each for each in ids if each != self.speaker.image_id]

    def widened(self, ids: Sequence[int], image: ImageInputs) -> list[int]:
        """Token ids with as many marks as tokens stand for the image."""
        at = ids.index(self.speaker.image_id)
        return [*ids[:at], *[self.speaker.image_id] * image.tokens, *ids[at + 1 :]]

    def given(self, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the model takes beside the image: ids and mask ``int64 [1, L]``."""
        import torch

        tokens = torch.tensor([ids], device=self.speaker.device)
        found = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if self.speaker.is_qwen:
            found["mm_token_type_ids"] = (tokens == self.speaker.image_id).int()
        return found


def by_pair(questions: Sequence[PairQuestion]) -> list[list[int]]:
    """The places of the questions about each pair; these stand together."""
    places: dict[int, list[int]] = {}
    for place, each in enumerate(questions):
        places.setdefault(each.number, []).append(place)
    return list(places.values())


def branch_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Branch:
    """Questions about one pair: of yes or no as they are, else the last token of the prompt and the answer but for its last
    token, so that each token of a leaf foretells one of the answer."""
    if not answers[0]:
        return Branch.of(prompts)
    first = prompts[0]
    return Branch(first[:-1], [[first[-1], *answer[:-1]] for answer in answers])


def likelihood(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    """float32 ``[1]``: the logarithm of an answer's probability, of the logits ``[L, V]`` before each of its L tokens."""
    import torch

    token = torch.tensor(list(answer), device=logits.device)
    return logits.float().log_softmax(-1).gather(1, token[:, None]).sum()[None]
