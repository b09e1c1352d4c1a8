"""Feature maps of CLIP, SigLIP (2), DINOv2 and Florence-2 towers: patch tokens of one layer, laid out as the image's grid.

A map always covers the *whole* image: it is resized to a square and loses its aspect, as ADA-CM does, where the
checkpoint's own processor would crop the centre. So a box of the image is the same box, scaled, on the map.

Shapes: B images, N tokens, D channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, canonical, in_parts, one_tensor, part_size, repeated, taken
from hoi_distill.stages.keys import GpuShare, Views
from hoi_distill.stages.stage import Batch, Codec, Dtype, Resources, Stage, TensorOutput, Values
from hoi_distill.stages.teacher.preprocessing import BACKENDS, ImageTensors, OnDevice, Preprocess, joined, preprocess
from hoi_distill.stages.teacher.vision_towers import REGISTERS, TOWERS, vision_config
from hoi_distill.stages.teacher.weights import CheckpointKey, image_processor, load
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

Width = Literal["full", "projected"]


class VisionFeatures(Stage):
    """Spatial feature maps ``[D, h, w]`` of CLIP, SigLIP, DINOv2 or Florence-2, rows from top to bottom. Columns are views.

    Cells are patch tokens of one layer after the tower's final layer norm; CLS and register tokens are left out. Of
    Florence-2's tower, a DaViT, which has neither, they are the map of one of its four stages.
    """

    name = "features"
    architectures: ClassVar[tuple[str, ...]] = tuple(TOWERS)
    example: ClassVar[str] = "openai/clip-vit-large-patch14-336"

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A folder, a hub id, or ``{id, revision}``. SigLIP 2 in its fixed-resolution form (``SiglipModel``)."""
        columns: Views = ("original",)
        """Views of the image; ``flip`` is the preprocessed image mirrored left to right."""
        width: Width = "full"
        """``full`` is the tower's own width; ``projected`` are the tokens in the space shared with texts (CLIP's
        ``visual_projection``), as LINK's and ADA-CM's students read them."""
        layer: int = -1
        """Which block's tokens: 1 to the number of blocks, or from the end (-1, the last). Those above are not run. Of
        Florence-2, which stage of its tower, 1 to 4: the last map is of 32 x 32 pixels a cell, the third of 16 x 16."""
        image_size: int | None = None
        """Side of the square that the image is resized to, a multiple of the patch size. Default: the size the
        checkpoint was trained at (DINOv2: the size its processor crops to). Position embeddings are interpolated; Florence-2's
        tower has none."""
        codec: Codec = "fp16"
        """How maps are stored."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic."""
        batch_size: BatchSize = 32
        """Images per forward, or ``auto``: as many as the GPU's memory holds."""
        preprocess: Preprocess = "processor"
        """Who resizes and normalises: the checkpoint's own processor, on the CPU, or torch on the model's ``device``. A level of
        a pixel may differ by one or two, so it is part of the fingerprint."""
        compile: bool = False
        """Compile the tower with torch.compile. It changes no value beyond rounding."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        checkpoint, layer, width = config.checkpoint, config.layer, config.width
        where = checkpoint.folder
        if checkpoint.architecture in ("Siglip2Model", "Siglip2VisionModel"):
            raise UserError(
                f"{where}: {checkpoint.architecture} (naflex) has no fixed grid; use a fixed-resolution SigLIP 2, "
                "for example google/siglip2-base-patch16-224"
            )
        if checkpoint.architecture not in TOWERS:
            raise UserError(
                f"{where}: {checkpoint.architecture} cannot fill the {self.name} table; it takes {', '.join(TOWERS)}"
            )
        checkpoint.require_preprocessing()
        self.checkpoint, self.columns, self.width, self.dtype = checkpoint, config.columns, width, config.dtype
        self.tower = TOWERS[checkpoint.architecture]
        self.compiled, self.chosen_batch = config.compile, config.batch_size
        self.preprocess = config.preprocess
        self.batch_size, self.resources = canonical(config.batch_size), Resources(gpus=config.gpus)
        depth = self.tower.depth(checkpoint)
        self.layer = layer + 1 + depth if layer < 0 else layer
        if not 1 <= self.layer <= depth:
            raise UserError(
                f"features: layer {layer} is not there; {where} has {depth} (1 to {depth}, or -1 to -{depth})"
            )
        patch, usual = self.tower.cell(checkpoint, self.layer), self.tower.usual_size(checkpoint)
        self.image_size = usual if config.image_size is None else config.image_size
        if self.image_size % patch or self.image_size < patch:
            raise UserError(f"features: image_size {self.image_size} is no multiple of the patch size {patch}")
        self.projection = self._projection_digest() if width == "projected" else None
        full = self.tower.channels(checkpoint, self.layer)
        channels = self._projected_width() if width == "projected" else full
        self.output = TensorOutput((channels, self.image_size // patch, self.image_size // patch), config.codec)
        self.vision_key = fingerprint(self._tokens())

    def _projection_digest(self) -> str:
        if not self.tower.projection:
            raise UserError(
                f"{self.checkpoint.folder}: {self.checkpoint.architecture} projects no patch tokens into a space of texts; "
                "take 'width: full', or a CLIPModel"
            )
        return self.checkpoint.part(f"{self.tower.projection}.")

    def _projected_width(self) -> int:
        whole = self.checkpoint.config
        section = whole if "projection_dim" in whole else vision_config(self.checkpoint)
        return self.checkpoint.number(section, "projection_dim", 512)

    def _tokens(self) -> dict[str, Any]:
        """What decides the tower's tokens."""
        return {
            "tower": self.checkpoint.tower,
            "tensor": self.tower.map_of(self.layer),
            "preprocessing": self.checkpoint.preprocessing,
            "geometry": f"whole image to {self.image_size} x {self.image_size}",
            "image_backend": BACKENDS[self.preprocess],
            "dtype": self.dtype,
        }

    @override
    def parameters(self) -> dict[str, Any]:
        return {**self._tokens(), "width": self.width, "projection": self.projection}

    @override
    def provenance(self) -> dict[str, Any]:
        return {**self.checkpoint.provenance(), "compiled": self.compiled}

    @override
    def __getstate__(self) -> dict[str, Any]:
        opened = {"model", "norm", "project", "processor", "on_device", "device", "rows"}
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @override
    def open(self, device: str, shared: dict[Any, Any], whole: Any = None) -> None:
        """See :meth:`Stage.open`. ``whole`` is the checkpoint's model where somebody has just loaded it; None: it is loaded."""
        import torch

        # Stages of one pass differ in the projection alone; so do the keys of what they keep.
        key = ("tower", self.vision_key, self.checkpoint.digest, device, self.compiled)
        if key not in shared:
            folder = self.checkpoint.here()
            if whole is None:
                whole = load(self.checkpoint, folder, self.dtype, "cpu")
            tower = attrgetter(self.tower.path)(whole) if self.tower.path else whole
            holder, _, blocks = self.tower.layers.rpartition(".")
            encoder = attrgetter(holder)(tower) if holder else tower
            setattr(encoder, blocks, getattr(encoder, blocks)[: self.layer])
            projection = getattr(whole, self.tower.projection) if self.tower.projection else None
            tower.to(device)
            shared[key] = (
                torch.compile(tower) if self.compiled else tower,
                getattr(tower, self.tower.norm) if self.tower.norm else None,
                None if projection is None else projection.to(device),
                image_processor(folder),
            )
        self.model, self.norm, self.project, self.processor = shared[key]
        side = self.image_size
        self.on_device = OnDevice.of(self.processor, side, side) if self.preprocess == "device" else None
        self.device = device
        self.rows = part_size(shared, self.vision_key, self.chosen_batch)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        assert isinstance(self.output, TensorOutput)
        maps = {}
        with torch.inference_mode():
            for view in columns:
                tokens = self.encode(batch, view)
                if self.width == "projected":
                    tokens = self.project(tokens)
                maps[view] = repeated(tokens.transpose(1, 2).unflatten(2, self.output.shape[1:]), len(batch.row_ids))
        return maps

    def encode(self, batch: Batch, view: str) -> torch.Tensor:
        """Normed patch tokens ``[count, h*w, D]`` of the batch's real rows, once per batch and view."""
        return batch.once(("tokens", self.vision_key, view), lambda: self._encode(self._pixels(batch, view)))

    @override
    def prepare(self, image: Image.Image) -> ImageTensors:
        """``pixel_values`` float32 ``[1, 3, S, S]``, by the checkpoint's own image processor told to keep the whole image; with
        ``preprocess: device`` the image as it is."""
        if self.on_device:
            return self.on_device.levels(image, self.device)
        side = {"height": self.image_size, "width": self.image_size}
        return preprocess(self.processor, image, self.device, do_resize=True, size=side, do_center_crop=False)

    def _pixels(self, batch: Batch, view: str) -> torch.Tensor:
        """``[count, 3, S, S]`` on the device in the tower's dtype, sent once for all views and stages."""
        import torch

        def together() -> torch.Tensor:
            images = self.prepared(batch)[: batch.count]
            if self.on_device:
                images = [self.on_device.pixels(image, self.device) for image in images]
            return joined(images, self.device, getattr(torch, self.dtype))["pixel_values"]

        pixels: torch.Tensor = batch.once(("pixels", self.vision_key), together)
        return pixels.flip(-1) if view == "flip" else pixels

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normed patch tokens ``[count, h*w, D]`` of ``pixels``."""
        import torch

        registers = REGISTERS.get(self.checkpoint.architecture, 0)
        leading = self.tower.leading + int(self.checkpoint.config.get("num_register_tokens", registers))
        other_size = not self.tower.interpolates and self.image_size != self.tower.usual_size(self.checkpoint)
        options = {"interpolate_pos_encoding": True} if other_size else {}

        def forward(positions: Any) -> torch.Tensor:
            seen = {self.tower.pixels: taken(pixels, positions)}
            states = self.model(**seen, **options).last_hidden_state
            tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states[:, leading:]
            return tokens if self.norm is None else self.norm(tokens)

        with torch.inference_mode():
            return one_tensor(in_parts(forward, len(pixels), self.rows, self.device))
