"""Captions, lists and yes/no answers by models that read images and write: InstructBLIP, LLaVA, Qwen2-VL, Qwen2.5-VL.

The prompt's tokens are put together here and not by the checkpoint's processor class, which for Qwen cannot be built without
torchvision: the chat template (or a plain prompt) is rendered and tokenized once per question, and the image's mark in it
widened to as many tokens as the tower makes of each image. Decoding is greedy and nothing else: a checkpoint's own
repetition penalty, beams or temperature stay out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, canonical, in_parts, part_size
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Columns, Count, GpuShare
from hoi_distill.stages.stage import ArrowOutput, Batch, Dtype, Resources, Values
from hoi_distill.stages.teacher.blip.first_token import CELL, YES_NO, answer_ids, cells, yes_score
from hoi_distill.stages.teacher.preprocessing import ImageTensors, joined, preprocess
from hoi_distill.stages.teacher.seen_objects import AskedWhere, AsksAboutSeen
from hoi_distill.stages.teacher.vllm_engine import Question, VllmEngine, require_vllm
from hoi_distill.stages.teacher.weights import CheckpointKey, image_processor, load, tokenizer
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import InputFailure, UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

PLAIN_PROMPTS = {
    "InstructBlipForConditionalGeneration": "{question}",
    "LlavaForConditionalGeneration": "USER: {image}\n{question} ASSISTANT:",
    "Qwen2VLForConditionalGeneration": None,
    "Qwen2_5_VLForConditionalGeneration": None,
}
"""How a question is put where the checkpoint brings no chat template; None: such a checkpoint is refused."""

QUESTIONS_AT_ONCE = 16
"""Yes/no questions about one image in one forward; each holds a copy of the image's keys and values meanwhile."""

Answer = tuple[str, float]
"""Text, and the score of yes (NaN where no yes/no question was asked)."""


@dataclass(frozen=True)
class ImageInputs:
    """What the model is given of one image: its tensors, and how many tokens stand for it."""

    tensors: ImageTensors
    tokens: int


class Prompt(NamedTuple):
    """Token ids of a question as it is put.

    Attributes:
        ids: the image's mark is a single token among them.
        bridge: what InstructBLIP's bridge reads; else empty.
    """

    ids: list[int]
    bridge: list[int]


class Answers(AsksAboutSeen):
    """Answers of an image-text-to-text model, greedily decoded. Each column is a question.

    A cell is ``{text, score}``, as in :class:`hoi_distill.stages.teacher.blip.stages.BlipCaptions`: a yes/no question
    (:data:`hoi_distill.stages.teacher.blip.first_token.YES_NO`) is answered by its first token, with the probability of yes
    as ``score``.
    """

    name = "captions"
    architectures: ClassVar[tuple[str, ...]] = tuple(PLAIN_PROMPTS)
    output = ArrowOutput(CELL)
    example: ClassVar[str] = "Qwen/Qwen2.5-VL-7B-Instruct"

    class Config(AsksAboutSeen.Config):
        checkpoint: CheckpointKey
        """InstructBLIP, LLaVA, Qwen2-VL or Qwen2.5-VL (``...ForConditionalGeneration``)."""
        columns: Columns
        """The questions, in the very words that are put."""
        max_new_tokens: Count = 128
        """Where an answer is cut."""
        prompt: str | None = None
        """How a question is put, with ``{question}`` and (but for InstructBLIP) ``{image}``. Default: the checkpoint's
        chat template, else the family's plain prompt."""
        instruction: str = ""
        """What follows a yes/no question in the prompt, "Answer with yes or no." say."""
        asked_where: AskedWhere | None = None
        """For columns that are ``verification_questions``: put each only where its object was detected, see
        :mod:`hoi_distill.stages.teacher.seen_objects`."""
        max_pixels: Count | None = None
        """Bound on an image's pixels after resizing (Qwen only, whose images keep their shape)."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic."""
        batch_size: BatchSize = 8
        """Images per forward, or ``auto``: as many as the GPU's memory holds."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""
        engine: Literal["transformers", "vllm"] = "transformers"
        """What runs the model: transformers, or vLLM inside the worker (the extra ``vllm``; another table, since its arithmetic
        is another). It has never been run with vLLM itself."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        checkpoint, prompt, max_pixels = config.checkpoint, config.prompt, config.max_pixels
        if checkpoint.architecture not in PLAIN_PROMPTS:
            raise UserError(
                f"{checkpoint.folder}: {checkpoint.architecture} cannot answer questions; it takes "
                f"{', '.join(PLAIN_PROMPTS)}"
            )
        self.is_qwen = checkpoint.architecture.startswith("Qwen")
        self.is_instructblip = checkpoint.architecture.startswith("InstructBlip")
        wanted = ("{question}",) if self.is_instructblip else ("{question}", "{image}")
        if prompt is not None and (absent := [mark for mark in wanted if prompt.count(mark) != 1]):
            raise UserError(f"answers: prompt {prompt!r} must hold {absent[0]} once")
        if max_pixels is not None and not self.is_qwen:
            raise UserError(f"answers: max_pixels is for Qwen; {checkpoint.architecture} sees images of one size")
        if config.engine == "vllm" and self.is_instructblip:
            raise UserError(f"answers: engine: vllm has no {checkpoint.architecture}; write engine: transformers")
        checkpoint.require_preprocessing()
        self.engine_name = config.engine
        self.checkpoint, self.columns, self.dtype = checkpoint, config.columns, config.dtype
        self.max_new_tokens, self.prompt, self.max_pixels = config.max_new_tokens, prompt, max_pixels
        self.chosen_batch, self.batch_size = config.batch_size, canonical(config.batch_size)
        self.resources = Resources(gpus=config.gpus)
        vision = {"teacher": checkpoint.digest, **self._pixels_parameters()}
        # Stages of one key prepare images alike; vLLM takes them as they are.
        self.vision_key = fingerprint(
            vision if config.engine == "transformers" else {**vision, "engine": config.engine}
        )
        self.instruction = config.instruction.strip()
        self.ask_where(config.asked_where, vocabulary)

    def _pixels_parameters(self) -> dict[str, Any]:
        return {
            "preprocessing": self.checkpoint.preprocessing,
            "max_pixels": self.max_pixels,
            "image_backend": "pil",
            "dtype": self.dtype,
        }

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            "teacher": self.checkpoint.digest,
            **self._pixels_parameters(),
            "prompt": self.prompt or "the checkpoint's",
            **({"instruction": self.instruction} if self.instruction else {}),
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
            **({"engine": self.engine_name} if self.engine_name != "transformers" else {}),
        }

    @override
    def provenance(self) -> dict[str, Any]:
        return self.checkpoint.provenance()

    @override
    def __getstate__(self) -> dict[str, Any]:
        opened = {"model", "processor", "tokenizer", "second_tokenizer", "device", "rows"}
        opened |= {"image_id", "prompts", "shared_prefix", "engine"}
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @override
    def rehearse(self) -> None:
        if self.engine_name == "vllm":
            require_vllm()

    def _open_vllm(self, shared: dict[Any, Any]) -> None:
        key = ("vllm", self.vision_key)
        folder, config = self.checkpoint.here(), self.checkpoint.config
        if key not in shared:
            engine = VllmEngine(
                folder,
                self.dtype,
                max_pixels=self.max_pixels,
                gpus=self.resources.gpus,
            )
            shared[key] = engine, tokenizer(folder)
        self.engine, self.tokenizer = shared[key]
        self.second_tokenizer: Any = None
        self.image_id = int(config["image_token_id"] if "image_token_id" in config else config["image_token_index"])
        self.prompts = {question: self._prompt(question) for question in self.columns}

    def _compute_vllm(self, batch: Batch, columns: Sequence[str]) -> dict[str, Values]:
        """Every wanted cell, all together."""
        yes: list[int] = []
        no: list[int] = []
        if any(YES_NO.search(column) for column in columns):
            yes, no = answer_ids(self.tokenizer, self.checkpoint.folder)
        wanted = np.ones((batch.count, len(columns)), bool) if batch.turn.wanted is None else batch.turn.wanted
        places = [(row, columns[column]) for row, column in np.argwhere(wanted).tolist()]
        asked = [
            Question(self.prompts[column].ids, batch.images[row], bool(YES_NO.search(column))) for row, column in places
        ]
        texts = {column: [""] * len(batch.row_ids) for column in columns}
        scores = {column: np.full(len(batch.row_ids), np.nan) for column in columns}
        for (row, column), (text, score) in zip(
            places, self.engine.answer(asked, yes, no, max_new_tokens=self.max_new_tokens), strict=True
        ):
            texts[column][row] = text
            if score is None:
                batch.turn.failures[row, column] = "neither yes nor no among the likeliest first tokens"
            else:
                scores[column][row] = score
        return {column: cells(texts[column], scores[column]) for column in columns}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        if self.engine_name == "vllm":
            self._open_vllm(shared)
            return
        key = ("answers", self.vision_key, device)
        if key not in shared:
            folder = self.checkpoint.here()
            second = folder / "qformer_tokenizer"
            sizes = {} if self.max_pixels is None else {"max_pixels": self.max_pixels}
            model = load(self.checkpoint, folder, self.dtype, device)
            writer = model.language_model if self.is_instructblip else model
            own = tokenizer(folder)
            writer.generation_config = greedy(writer.generation_config, own.eos_token_id)
            bridge = tokenizer(second) if self.is_instructblip else None
            shared[key] = model, image_processor(folder, **sizes), own, bridge
        self.model, self.processor, self.tokenizer, self.second_tokenizer = shared[key]
        self.device = device
        self.rows = part_size(shared, (self.vision_key, self.max_new_tokens), self.chosen_batch)
        config = self.model.config
        self.image_id = int(config.image_token_id if hasattr(config, "image_token_id") else config.image_token_index)
        self.prompts = {question: self._prompt(question) for question in self.columns}
        self.shared_prefix = self._shared_prefix()
        if any(YES_NO.search(question) for question in self.columns):
            answer_ids(self.tokenizer, self.checkpoint.folder)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        if self.engine_name == "vllm":
            return self._compute_vllm(batch, columns)
        import torch

        images = self.prepared(batch)[: batch.count]
        order = list(range(len(images)))
        if (
            self.chosen_batch == "auto"
        ):  # parts of like lengths need little padding; the longest tells what memory holds
            order.sort(key=lambda index: -images[index].tokens)

        def forward(positions: np.ndarray) -> list[tuple[Answer, ...]]:
            return self._answers([images[order[position]] for position in positions], columns)

        with torch.inference_mode():
            parts = in_parts(forward, len(images), self.rows, self.device)
        told = [row for part in parts for row in part]
        rows = [told[place] for place in np.argsort(order).tolist()]
        rows += rows[-1:] * (len(batch.row_ids) - len(rows))
        return {
            question: cells([text for text, _ in answers], np.array([score for _, score in answers]))
            for question, answers in zip(columns, zip(*rows, strict=True), strict=True)
        }

    def _answers(self, images: Sequence[ImageInputs], questions: Sequence[str]) -> list[tuple[Answer, ...]]:
        """The answers of each image. Its tensors are sent once. What the prompts share, which ends with the image, goes through
        the model once; of InstructBLIP, whose bridge reads the question, the vision tower."""
        import torch
        from transformers import DynamicCache

        said: dict[str, list[Answer]] = {}
        cache, start = None, 0
        pixels = joined([image.tensors for image in images], self.device, getattr(torch, self.dtype))
        seen = self.model.vision_model(pixels["pixel_values"]).last_hidden_state if self.is_instructblip else None
        for group in self._together(len(images), questions):
            given = self.prompt_inputs(images, group)
            if not self.shared_prefix:  # several questions at once are about one image
                given |= {name: each.expand(len(group) * len(each), *each.shape[1:]) for name, each in pixels.items()}
            elif cache is None:
                start = given["input_ids"].shape[1] - (len(self.prompts[group[0]].ids) - self.shared_prefix)
                cache = DynamicCache(config=self.model.config.get_text_config())
                before = {name: tensor[: len(images), :start] for name, tensor in given.items()}
                self.model(**before, **pixels, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if cache is not None and len(group) > 1:
                cache.batch_repeat_interleave(len(group))
            with nullcontext() if seen is None else already_seen(self.model, seen.repeat(len(group), 1, 1)):
                answers = self._generate(given, group[0], cache)
            said |= {q: answers[at * len(images) : (at + 1) * len(images)] for at, q in enumerate(group)}
            if cache is not None:
                if cache.get_seq_length() > start:
                    cache.crop(start - cache.get_seq_length())
                if len(group) > 1:
                    cache.batch_select_indices(torch.zeros(1, dtype=torch.long, device=self.device))
        return list(zip(*(said[question] for question in questions), strict=True))

    def _together(self, images: int, questions: Sequence[str]) -> list[Sequence[str]]:
        """Groups of questions that go through the model as one batch: of one image, of which something is there already, the
        yes/no questions of one length; else each by itself."""
        if not (self.shared_prefix or self.is_instructblip) or images > 1:
            return [[question] for question in questions]
        by_length: dict[tuple[int, int], list[str]] = {}
        for question in filter(YES_NO.search, questions):
            prompt = self.prompts[question]
            by_length.setdefault((len(prompt.ids), len(prompt.bridge)), []).append(question)
        told: list[Sequence[str]] = [[question] for question in questions if not YES_NO.search(question)]
        parts = (
            group[at : at + QUESTIONS_AT_ONCE]
            for group in by_length.values()
            for at in range(0, len(group), QUESTIONS_AT_ONCE)
        )
        return [*told, *parts]

    @override
    def prepare(self, image: Image.Image) -> Any:
        """Preprocess one image by the checkpoint's own image processor, :class:`ImageInputs`; vLLM takes the image as it is.

        Raises:
            InputFailure: a shape that the processor refuses.
        """
        if self.engine_name == "vllm":
            return image
        try:
            seen = preprocess(self.processor, image, self.device)
        except ValueError as error:
            raise InputFailure(f"the image processor refuses the image: {error}") from None
        pixels = {"pixel_values": seen["pixel_values"]}
        if self.is_qwen:
            grid = seen["image_grid_thw"]
            return ImageInputs({**pixels, "image_grid_thw": grid}, int(grid.prod()) // self.processor.merge_size**2)
        if self.is_instructblip:
            return ImageInputs(pixels, int(self.model.config.num_query_tokens))
        return ImageInputs(pixels, self._llava_tokens(pixels["pixel_values"].shape[-2:]))

    def _llava_tokens(self, size: Sequence[int]) -> int:
        """Patches of an image of (height, width), and CLS where the tower has one and it is kept."""
        config = self.model.config
        patch = config.vision_config.patch_size
        has_cls = config.vision_config.model_type == "clip_vision_model"
        kept = has_cls and config.vision_feature_select_strategy == "full"
        return (size[0] // patch) * (size[1] // patch) + int(kept)

    def asked(self, question: str) -> str:
        """A question as it is put, with the instruction behind it if it is one to be answered with yes or no."""
        return f"{question} {self.instruction}" if self.instruction and YES_NO.search(question) else question

    def _prompt(self, question: str) -> Prompt:
        bridge: list[int] = (
            [] if self.second_tokenizer is None else self.second_tokenizer(self.asked(question))["input_ids"]
        )
        return Prompt(self.prompt_ids(question), bridge)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the prompt, the image's mark still a single token (InstructBLIP: before everything).

        Raises:
            UserError: neither chat template nor plain prompt, or a template without the image's mark.
        """
        text, mark = self.prompt_text(question), self.tokenizer.convert_ids_to_tokens(self.image_id)
        starts = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not starts)["input_ids"]
        if self.is_instructblip:
            return [self.image_id, *ids]
        if ids.count(self.image_id) != 1:
            raise UserError(
                f"{self.checkpoint.folder}: the prompt of {question!r} holds {ids.count(self.image_id)} marks {mark} for a "
                "image, not one; give the key 'prompt'"
            )
        return ids

    def prompt_text(self, question: str) -> str:
        """The prompt in words, with the image's mark in it.

        Raises:
            UserError: neither chat template nor plain prompt.
        """
        mark = self.tokenizer.convert_ids_to_tokens(self.image_id)
        question = self.asked(question)
        plain = self.prompt or PLAIN_PROMPTS[self.checkpoint.architecture]
        if self.prompt is None and self.tokenizer.chat_template and not self.is_instructblip:
            said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            text = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        elif plain is None:
            raise UserError(f"{self.checkpoint.folder}: has no chat template; give the key 'prompt'")
        else:
            around = f"<|vision_start|>{mark}<|vision_end|>" if self.is_qwen else mark
            text = plain.replace("{image}", around).replace("{question}", question)
        return text

    def prompt_inputs(self, images: Sequence[ImageInputs], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the model's ``generate`` takes beside the images: ids and mask ``int64 [questions * images, L]``, padded on the
        left. All images of the first question come first."""
        import torch

        rows: list[list[int]] = []
        for question in questions:
            prompt = self.prompts[question].ids
            at = prompt.index(self.image_id)
            rows += [[*prompt[:at], *[self.image_id] * image.tokens, *prompt[at + 1 :]] for image in images]
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad_id()] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        given = {"input_ids": ids, "attention_mask": mask}
        if self.is_qwen:
            given["mm_token_type_ids"] = ((ids == self.image_id) & (mask > 0)).int()
        if self.is_instructblip:
            bridge = torch.tensor([self.prompts[question].bridge for question in questions for _ in images])
            given["qformer_input_ids"], given["qformer_attention_mask"] = bridge, torch.ones_like(bridge)
        return {name: tensor.to(self.device) for name, tensor in given.items()}

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _shared_prefix(self) -> int:
        """Tokens of every question's prompt up to and with the image's mark; 0 where they differ, where nothing follows,
        where the model drops what is far back, or where the question changes what is seen (InstructBLIP)."""
        prompts = [prompt.ids for prompt in self.prompts.values()]
        ends = [prompt.index(self.image_id) + 1 for prompt in prompts]
        alike = {tuple(prompt[:end]) for prompt, end in zip(prompts, ends, strict=True)}
        followed = all(len(prompt) > end for prompt, end in zip(prompts, ends, strict=True))
        text = self.model.config.get_text_config()
        slides = ["sliding_attention"] if getattr(text, "sliding_window", None) else ["full_attention"]
        whole = set(getattr(text, "layer_types", None) or slides) == {"full_attention"}
        return ends[0] if len(alike) == 1 and followed and whole and not self.is_instructblip else 0

    def _generate(self, given: Mapping[str, torch.Tensor], question: str, cache: Any) -> list[Answer]:
        """One answer a row; ``cache`` holds keys and values of the first tokens of ``given``, or is None."""
        ends = {"pad_token_id": self._pad_id(), **({} if cache is None else {"past_key_values": cache})}
        if YES_NO.search(question):
            wish = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
            logits = self.model.generate(**given, **ends, **wish).logits[0]
            yes, no = answer_ids(self.tokenizer, self.checkpoint.folder)
            texts = self.tokenizer.batch_decode(logits.argmax(-1, keepdim=True), skip_special_tokens=True)
            return list(zip(texts, yes_score(logits, yes, no).tolist(), strict=True))
        written = self.model.generate(**given, **ends, max_new_tokens=self.max_new_tokens)
        if not self.model.config.get_text_config().is_encoder_decoder:
            written = written[:, given["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [(text, float("nan")) for text in texts]


@contextmanager
def already_seen(model: Any, seen: torch.Tensor) -> Iterator[None]:
    """An InstructBLIP whose vision tower has looked already: what it answers is ``seen``, float ``[B, tokens, width]``."""
    from torch import nn
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    tower, answer = model.vision_model, nn.Identity()
    answer.forward = lambda *_, **__: BaseModelOutputWithPooling(last_hidden_state=seen)  # type: ignore[assignment]
    model.vision_model = answer
    try:
        yield
    finally:
        model.vision_model = tower


def greedy(own: Any, end: int) -> Any:
    """A generation config with nothing of the checkpoint's ``own`` but its special tokens (``end`` where it names no end).
    It has to replace the model's: what a config given to ``generate`` leaves at its default is filled in from there."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=end if own.eos_token_id is None else own.eos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )
