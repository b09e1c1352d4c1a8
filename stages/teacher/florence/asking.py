"""Florence-2 (Xiao et al., CVPR 2024), asked in its own way: one sentence for each task, and an answer that is written.

Its tower, a DaViT, sees the whole image as a square. What it sees is projected and stands before the sentence; a BART reads both
and writes. Stages of one checkpoint share the pass of the tower, also with the maps of
:class:`hoi_distill.stages.teacher.vision_features.VisionFeatures` at their usual size.

Shapes: B images, N image tokens, L tokens of a sentence, T tokens of an answer, D channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, part_size
from hoi_distill.stages.keys import Columns, Count, GpuShare
from hoi_distill.stages.stage import Batch, Dtype, Stage, TensorOutput
from hoi_distill.stages.teacher.answers import greedy
from hoi_distill.stages.teacher.preprocessing import ImageTensors, Preprocess
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import CheckpointKey, load, tokenizer
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image


class FlorenceStage(Stage):
    """What Florence-2's stages have in common: a checkpoint, the shared pass of its tower, and greedy answers."""

    architectures: ClassVar[tuple[str, ...]] = ("Florence2ForConditionalGeneration",)
    example: ClassVar[str] = "florence-community/Florence-2-base"

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A Florence-2 in transformers' own form (``florence-community/...``): a folder, a hub id, or ``{id, revision}``."""
        columns: Columns
        """The questions; see each stage."""
        max_new_tokens: Count = 128
        """Where an answer is cut."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic."""
        batch_size: BatchSize = 8
        """Images per forward, or ``auto``: as many as the GPU's memory holds."""
        preprocess: Preprocess = "processor"
        """Who resizes and normalises: the checkpoint's own processor, on the CPU, or torch on the model's ``device``. A level of
        a pixel may differ by one or two, so it is part of the fingerprint."""
        compile: bool = False
        """Compile the tower with torch.compile. It changes no value beyond rounding."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        checkpoint = config.checkpoint
        if checkpoint.architecture not in self.architectures:
            raise UserError(
                f"{checkpoint.folder}: {checkpoint.architecture} cannot fill the {self.name} table; "
                f"it takes {self.architectures[0]}"
            )
        shared = ("checkpoint", "dtype", "batch_size", "preprocess", "compile", "gpus")
        self.vision = VisionFeatures(VisionFeatures.Config(**{key: getattr(config, key) for key in shared}))
        self.vision_key, self.batch_size = self.vision.vision_key, self.vision.batch_size
        self.resources, self.checkpoint, self.dtype = self.vision.resources, checkpoint, config.dtype
        self.columns, self.max_new_tokens, self.chosen_batch = config.columns, config.max_new_tokens, config.batch_size

    @abstractmethod
    def sentence(self, column: str) -> str:
        """What the model is asked for a column."""

    @override
    def parameters(self) -> dict[str, Any]:
        tower = self.vision.parameters()
        seen = {key: tower[key] for key in ("preprocessing", "geometry", "image_backend", "dtype")}
        answer = {"max_new_tokens": self.max_new_tokens, "decoding": "greedy"}
        return {"teacher": self.checkpoint.digest, **seen, **answer}

    @override
    def provenance(self) -> dict[str, Any]:
        return self.vision.provenance()

    @override
    def __getstate__(self) -> dict[str, Any]:
        opened = {"model", "tokenizer", "device", "rows", "prompts", "bins", "marks"}
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        from torch import nn

        key = ("florence", self.checkpoint.digest, self.dtype, device)
        if key in shared:
            self.vision.open(device, shared)
        else:
            folder = self.checkpoint.here()
            model, own = load(self.checkpoint, folder, self.dtype, "cpu"), tokenizer(folder)
            self.vision.open(device, shared, whole=model)
            model.model.vision_tower = nn.Identity()  # the tower that is looked through is the shared one
            begin = model.generation_config.forced_bos_token_id
            model.generation_config = greedy(model.generation_config, own.eos_token_id)
            model.generation_config.forced_bos_token_id = begin
            model.generation_config.pad_token_id = own.pad_token_id
            shared[key] = model.to(device), own
        self.model, self.tokenizer = shared[key]
        self.device = device
        self.rows = part_size(shared, (*key, self.max_new_tokens), self.chosen_batch)
        self.prompts = {column: self._prompt_ids(column) for column in self.columns}

    def _prompt_ids(self, column: str) -> list[int]:
        """Token ids of a sentence as the model's processor puts it, behind the image."""
        words: list[int] = self.tokenizer(self.sentence(column), add_special_tokens=False)["input_ids"]
        ids = [self.tokenizer.bos_token_id, *words, self.tokenizer.eos_token_id]
        assert isinstance(self.vision.output, TensorOutput)
        _, height, width = self.vision.output.shape
        most = self.model.config.text_config.max_position_embeddings - (height * width + 1)
        if len(ids) > most:
            raise UserError(
                f"columns: {column!r} has {len(ids)} tokens, the model takes {most} beside an image; shorten it"
            )
        return ids

    @override
    def prepare(self, image: Image.Image) -> ImageTensors:
        return self.vision.prepare(image)

    def seen(self, batch: Batch) -> torch.Tensor:
        """The image tokens ``[count, N, D]`` of the batch's real rows as the language model reads them, once a batch."""

        def projected() -> torch.Tensor:
            assert isinstance(self.vision.output, TensorOutput)
            grid = self.vision.encode(batch, "original").transpose(1, 2).unflatten(2, self.vision.output.shape[1:])
            tokens: torch.Tensor = self.model.model.multi_modal_projector(grid)
            return tokens

        return batch.once(("florence", self.checkpoint.digest, self.vision_key), projected)

    def answers(self, seen: torch.Tensor, column: str, *watch: Any) -> torch.Tensor:
        """The answers about B images to one question, token ids int64 ``[B, 1 + T]``; the first is where writing starts.

        Args:
            seen: ``[B, N, D]``, of :meth:`seen`.
            column: the question.
            watch: called with the ids so far and the float32 logits ``[B, V]`` of each next token, which it returns.
        """
        import torch
        from transformers import LogitsProcessorList

        ids = torch.tensor(self.prompts[column], device=self.device)
        words = self.model.get_input_embeddings()(ids).expand(len(seen), -1, -1)
        given = torch.cat([seen.to(words.dtype), words], dim=1)
        mask = torch.ones(given.shape[:2], dtype=torch.long, device=self.device)
        read = self.model.get_encoder()(inputs_embeds=given, attention_mask=mask)
        written: torch.Tensor = self.model.generate(
            encoder_outputs=read,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            logits_processor=LogitsProcessorList(watch),
        )
        return written
