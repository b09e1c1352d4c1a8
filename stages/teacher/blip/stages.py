"""BLIP as a teacher: feature maps, image-text matching and captions, all from one pass of the vision tower.

Stages whose towers are byte-identical (and preprocess alike, at one dtype) carry equal ``vision_key``: a worker that runs
them on one batch preprocesses and encodes each image once. The tower's answer is its last hidden state after the
final layer norm, ``[B, 1 + h*w, D]`` with CLS first, which is what BLIP's text models attend to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, PartSize, canonical, in_parts, one_tensor, taken
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Columns, Count, GpuShare, Views
from hoi_distill.stages.stage import ArrowOutput, Batch, Codec, Dtype, Resources, Stage, TensorOutput, Values
from hoi_distill.stages.teacher.blip.first_token import CELL, YES_NO, answer_ids, cells
from hoi_distill.stages.teacher.preprocessing import BACKENDS, ImageTensors, OnDevice, Preprocess, joined, preprocess
from hoi_distill.stages.teacher.seen_objects import AskedWhere, AsksAboutSeen
from hoi_distill.stages.teacher.weights import CheckpointKey, image_processor, load, tokenizer
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from hoi_distill.stages.teacher.blip.itm_scorer import PromptScorer

TOWER = "last_hidden_state after post_layernorm"


class BlipStage(Stage):
    """What BLIP's stages have in common: a checkpoint, a dtype, and the shared vision pass.

    Attributes:
        computed_cells: cells computed by this object since it was opened, padding left out.
    """

    families: ClassVar[tuple[str, ...]] = ("Blip", "PicoBlip")
    """How the names of usable architectures begin."""
    architectures: ClassVar[tuple[str, ...]] = ("ForImageTextRetrieval", "ForConditionalGeneration")
    """How they end."""

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A folder, a hub id, or ``{id, revision}``."""
        columns: Columns
        """The questions; see each stage."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic; part of the fingerprint."""
        batch_size: BatchSize = 32
        """Images that are looked at together, or ``auto``: the vision tower takes as many at once as the GPU's memory
        holds. Where memory runs out in the tower, its forward is halved and the run goes on."""
        memory_mib: Count = 256
        """Bound on the working memory of one chunk of scoring and, unless ``batch_size`` is ``auto``, of one forward of
        the vision tower. It changes no value beyond rounding."""
        preprocess: Preprocess = "processor"
        """Who resizes and normalises: the checkpoint's own processor, on the CPU, or torch on the model's ``device``. A level of
        a pixel may differ by one or two, so it is part of the fingerprint."""
        compile: bool = False
        """Compile the vision tower with torch.compile. It changes no value beyond rounding."""
        fused_attention: bool = False
        """Compute the attention of BLIP's vision tower in one fused kernel: faster, and with less memory. It moves the last
        bits, so it is part of the fingerprint. BLIP-2's tower does so without being asked."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        checkpoint = config.checkpoint
        usable = [beginning + ending for beginning in self.families for ending in self.architectures]
        if checkpoint.architecture not in usable:
            raise UserError(
                f"{checkpoint.folder}: {checkpoint.architecture} cannot fill the {self.name} table; "
                f"it takes {' or '.join(usable)}"
            )
        if config.fused_attention and self.families == ("Blip2",):
            raise UserError(f"{checkpoint.folder}: BLIP-2's attention is fused already; leave fused_attention out")
        checkpoint.require_preprocessing()
        self.checkpoint, self.columns, self.dtype = checkpoint, config.columns, config.dtype
        self.batch_size, self.chosen_batch = canonical(config.batch_size), config.batch_size
        self.memory_mib, self.compiled, self.fused = config.memory_mib, config.compile, config.fused_attention
        self.resources, self.preprocess = Resources(gpus=config.gpus), config.preprocess
        self.vision_key = fingerprint({"tower": checkpoint.tower, **self._vision_parameters()})
        self.computed_cells = 0

    def _vision_parameters(self) -> dict[str, Any]:
        numerics = {"dtype": self.dtype, **({"attention": "fused"} if self.fused else {})}
        backend = BACKENDS[self.preprocess]
        return {"preprocessing": self.checkpoint.preprocessing, "image_backend": backend, **numerics}

    @override
    def parameters(self) -> dict[str, Any]:
        return {"teacher": self.checkpoint.digest, **self._vision_parameters()}

    @override
    def provenance(self) -> dict[str, Any]:
        return {**self.checkpoint.provenance(), "compiled": self.compiled}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        import torch

        self.computed_cells = 0
        key = ("blip", self.checkpoint.digest, self.dtype, self.fused, device)
        if key not in shared:
            folder = self.checkpoint.here()
            model = load(self.checkpoint, folder, self.dtype, device)
            # A twin's tower is dropped for the one that is there already: the same bytes, once in memory.
            model.vision_model = shared.setdefault(("tower", self.vision_key, device), model.vision_model)
            if self.fused:
                from hoi_distill.stages.teacher.blip.fused_attention import fuse

                fuse(model.vision_model)
            shared[key] = model, image_processor(folder), tokenizer(folder)
        self.model, self.processor, self.tokenizer = shared[key]
        self.on_device = self._on_device() if self.preprocess == "device" else None
        self.tower = self.model.vision_model
        if self.compiled:
            compiled = ("compiled", self.vision_key, device)
            if compiled not in shared:
                shared[compiled] = torch.compile(self.tower)
            self.tower = shared[compiled]
        self.rows: PartSize = shared.setdefault(("rows", self.vision_key, device, self.batch_size), PartSize())
        self.device = device

    @override
    def __getstate__(self) -> dict[str, Any]:
        """The plain parameters: what :meth:`open` loaded stays on its worker."""
        opened = {"model", "processor", "on_device", "tokenizer", "device", "scorer", "vectors", "tower", "rows"}
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    def encode(self, batch: Batch, view: str = "original") -> torch.Tensor:
        """The tower's last hidden state ``[B, 1 + h*w, D]`` of one view, computed once per batch and tower."""
        return batch.once(("tower", self.vision_key, view), lambda: self._encode(self._pixels(batch, view)))

    def _on_device(self) -> OnDevice:
        size = self.processor.size
        if size.get("height") is None or size.get("width") is None:
            raise UserError(
                f"{self.checkpoint.folder}: preprocess: device needs a size of height and width; leave it out"
            )
        return OnDevice.of(self.processor, int(size["height"]), int(size["width"]))

    @override
    def prepare(self, image: Image.Image) -> ImageTensors:
        if self.on_device:
            return self.on_device.levels(image, self.device)
        return preprocess(self.processor, image, self.device)

    def _pixels(self, batch: Batch, view: str) -> torch.Tensor:
        """``[B, 3, H, W]`` on the device in the tower's dtype, sent once for all views and stages."""

        def together() -> torch.Tensor:
            images = self.prepared(batch)
            if self.on_device:
                images = [self.on_device.pixels(image, self.device) for image in images]
            return joined(images, self.device, self.model.vision_model.dtype)["pixel_values"]

        pixels: torch.Tensor = batch.once(("pixels", self.vision_key), together)
        return pixels.flip(-1) if view == "flip" else pixels

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        if self.rows.row_count is None and self.chosen_batch != "auto":
            self.rows.row_count = min(self._images_at_once(), len(pixels))  # batches come padded, to one size

        def forward(positions: np.ndarray) -> torch.Tensor:
            states: torch.Tensor = self.tower(pixel_values=taken(pixels, positions)).last_hidden_state
            return states

        with torch.inference_mode():
            return one_tensor(in_parts(forward, len(pixels), self.rows, self.device))

    def _images_at_once(self) -> int:
        """BLIP's attention holds two ``H x N x N`` maps an image where it is not fused, its feed-forward two ``N x I``."""
        vision = self.model.config.vision_config
        tokens = 1 + (vision.image_size // vision.patch_size) ** 2
        maps = 0 if self.fused else 2 * vision.num_attention_heads * tokens
        floats = tokens * (maps + 2 * vision.intermediate_size)
        return max(1, (self.memory_mib << 20) // (floats * self.model.vision_model.dtype.itemsize))


class BlipFeatures(BlipStage):
    """BLIP's feature map ``[D, h, w]`` (no CLS), rows from top to bottom. Columns are views: ``original``, ``flip``.

    The fingerprint holds the tower's digest instead of the whole checkpoint's: another head keeps the maps.
    """

    name = "features"

    class Config(BlipStage.Config):
        columns: Views = ("original",)
        """Views of the image."""
        codec: Codec = "fp16"
        """How maps are stored."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.output = TensorOutput(self.grid(), config.codec)

    def grid(self) -> tuple[int, int, int]:
        """``(D, h, w)`` of the tower's map."""
        return self.checkpoint.grid()

    @override
    def parameters(self) -> dict[str, Any]:
        return {"tower": self.checkpoint.tower, "tensor": TOWER, **self._vision_parameters()}

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        assert isinstance(self.output, TensorOutput)
        self.computed_cells += batch.count * len(columns)
        maps = {}
        for view in columns:
            maps[view] = self.encode(batch, view)[:, 1:].transpose(1, 2).unflatten(2, self.output.shape[1:])
        return maps


class ItmStage(BlipStage):
    """Raw image-text matching logits (no match, match). Each column is a prompt, in the very words that are scored."""

    name = "itm"
    architectures = ("ForImageTextRetrieval",)
    output = ArrowOutput(pa.list_(pa.float16(), 2))

    class Config(BlipStage.Config):
        itc: str | None = None
        """A table of contrastive similarities (:mod:`hoi_distill.stages.teacher.blip.itc`), which decides which prompts a
        image wants. It enters neither the fingerprint nor the input digest of a cell: no logit depends on it."""
        itc_top_k: Count | None = None
        """How many prompts an image wants: the most similar ones among this table's columns, ties included. Images are
        then looked at one at a time, since each wants prompts of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if (config.itc is None) != (config.itc_top_k is None):
            raise UserError(
                "itm: itc and itc_top_k belong together: a table of similarities and how many prompts it keeps"
            )
        if config.itc is not None:
            self.inputs, self.batch_size = (config.itc,), 1
        self.itc_top_k = config.itc_top_k

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        return {} if self.inputs else None

    @override
    def selection_inputs(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return dict.fromkeys(self.inputs, (column,))

    @override
    def select_cells(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray | None:
        """The ``itc_top_k`` most similar prompts; all of them where the similarity is a recorded failure."""
        if self.itc_top_k is None:
            return None
        (table,) = inputs.values()
        if absent := [prompt for prompt in self.columns if prompt not in table]:
            raise UserError(f"table {self.inputs[0]}: has no column {absent[0]!r}, by which itm would choose; add it")
        similarity_BC = np.stack(
            [np.asarray(table[prompt].to_numpy(zero_copy_only=False)) for prompt in self.columns], 1
        )
        kth = max(0, len(self.columns) - self.itc_top_k)
        return np.logical_not(similarity_BC < np.partition(similarity_BC, kth, axis=1)[:, kth : kth + 1])

    @abstractmethod
    def make_scorer(self) -> PromptScorer:
        """Of the opened model."""

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        super().open(device, shared)
        self.scorer = self.make_scorer()
        self.scorer.token_ids(self.columns)  # a prompt that cannot be scored is told before the first image

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        self.computed_cells += batch.count * len(columns)
        logits = self.scorer.score(self.encode(batch), columns).cpu().numpy().astype(np.float16)
        if not np.isfinite(logits).all():
            raise FloatingPointError(f"table {self.name}: matching logits are not finite at dtype {self.dtype}")
        by_column = np.ascontiguousarray(logits.transpose(1, 0, 2)).reshape(len(columns), -1)
        return {
            prompt: pa.FixedSizeListArray.from_arrays(pa.array(values), 2)
            for prompt, values in zip(columns, by_column, strict=True)
        }


class BlipItm(ItmStage):
    """BLIP's two image-text matching logits (no match, match). Each column is a prompt.

    Raises:
        UserError: no ``token_mode``, for a checkpoint whose files do not say how it was trained.
    """

    class Config(ItmStage.Config):
        token_mode: Literal["cls", "enc"] | None = None
        """``cls`` leaves token 0 as transformers' forward does; ``enc`` makes it [ENC], with which BLIP's own checkpoints
        were trained. Part of the fingerprint. Has to be given, but for the pico teachers (``cls``)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.token_mode is None and not self.checkpoint.own:
            raise UserError(
                f"token_mode: not given, and {self.checkpoint.source} does not say which token its matching head was trained to "
                "read: enc for Salesforce's BLIP checkpoints and what was tuned with their code, cls for what was tuned "
                "through transformers"
            )
        self.token_mode: Literal["cls", "enc"] = config.token_mode or "cls"

    @override
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "token_mode": self.token_mode}

    @override
    def make_scorer(self) -> PromptScorer:
        from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer

        return ItmScorer(self.model, self.tokenizer, self.token_mode, self.memory_mib)


class BlipCaptions(AsksAboutSeen, BlipStage):
    """BLIP's sentences, greedily decoded. Each column is the text that the decoder continues ('' for a caption).

    A cell is ``{text, score}``. ``text`` is what the teacher added to the question. For yes/no questions
    (:data:`YES_NO`) it is the first token, and ``score`` in [0, 1] the softmax over the first-token logits of yes, Yes,
    no and No, summed over the yes variants (after mllms-zs-hoi); else ``score`` is null.
    """

    name = "captions"
    architectures = ("ForConditionalGeneration",)
    output = ArrowOutput(CELL)

    class Config(BlipStage.Config):
        columns: Columns = ("",)
        """The texts that the decoder continues."""
        asked_where: AskedWhere | None = None
        """For columns that are ``verification_questions``: put each only where its object was detected, see
        :mod:`hoi_distill.stages.teacher.seen_objects`."""
        max_new_tokens: Count = 64
        """Where a sentence is cut (at the latest where positions end). Part of the fingerprint."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.max_new_tokens = config.max_new_tokens
        self.ask_where(config.asked_where, vocabulary)

    @override
    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "max_new_tokens": self.max_new_tokens, "decoding": "greedy"}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        super().open(device, shared)
        most = self.model.config.text_config.max_position_embeddings
        for question in self.columns:
            if (length := self._question_ids(question).shape[1]) >= most:
                raise UserError(f"question '{question}': {length} tokens, the teacher takes {most - 1}; shorten it")
        if any(YES_NO.search(question) for question in self.columns):
            from hoi_distill.stages.teacher.blip.first_token_scorer import FirstTokenScorer

            yes, no = answer_ids(self.tokenizer, self.checkpoint.folder)
            self.scorer = FirstTokenScorer(self.model, self.tokenizer, yes, no, self.memory_mib)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        self.computed_cells += batch.count * len(columns)
        image = self.encode(batch)
        asked = [question for question in columns if YES_NO.search(question)]
        with torch.inference_mode():
            answers = {question: self._continue(image, question) for question in columns if question not in asked}
            return {**answers, **self._answers(image, asked)}

    def _question_ids(self, question: str) -> torch.Tensor:
        """``int64 [1, L]``: [DEC] and the question's tokens, without the final separator."""
        import torch

        words = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        ids = [self.model.config.text_config.bos_token_id, *words]
        return torch.tensor([ids], device=self.device)

    def _continue(self, image: torch.Tensor, question: str) -> pa.Array:
        import torch

        ids = self._question_ids(question).expand(len(image), -1)
        text_config = self.model.config.text_config
        written = self.model.text_decoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=text_config.sep_token_id,
            pad_token_id=text_config.pad_token_id,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            max_new_tokens=min(self.max_new_tokens, text_config.max_position_embeddings - ids.shape[1]),
            do_sample=False,
            num_beams=1,
        )
        texts = self.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        return cells(texts, np.full(len(texts), np.nan))

    def _answers(self, image: torch.Tensor, questions: Sequence[str]) -> dict[str, pa.Array]:
        if not questions:
            return {}
        said = self.scorer.score(image, questions)
        scores = (said[..., 1] - said[..., 0]).sigmoid().cpu().numpy()
        texts = self.tokenizer.batch_decode(said[..., 2].long().reshape(-1, 1), skip_special_tokens=True)
        words = np.array(texts, dtype=object).reshape(scores.shape)
        return {question: cells(words[:, at].tolist(), scores[:, at]) for at, question in enumerate(questions)}
