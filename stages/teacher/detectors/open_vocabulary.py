"""Boxes of objects by their names: OWLv2 and OmDet-Turbo, each name asked by itself.

Every name is a column. An image is encoded once for all the names that it lacks, and a name's boxes do not depend on which
other names are asked (beyond rounding): a thousand and first name costs one column, and changes no other. A model that is
asked for several names at once lets them compete for its queries or in its softmax; nothing of that is here.
:mod:`hoi_distill.stages.derived.open_vocabulary_detections` makes the detections of a vocabulary of these columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, canonical, part_size
from hoi_distill.stages.data.prompts import object_prompt
from hoi_distill.stages.keys import Columns, Fraction, GpuShare
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import ArrowOutput, Batch, Dtype, Resources, Stage, Values
from hoi_distill.stages.teacher.detectors.finders import FINDERS
from hoi_distill.stages.teacher.detectors.given import TOP
from hoi_distill.stages.teacher.detectors.transformers import group_in_parts, of_one_size
from hoi_distill.stages.teacher.preprocessing import ImageTensors, joined, preprocess
from hoi_distill.stages.teacher.weights import Checkpoint, CheckpointKey, image_processor, load, tokenizer
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

OBJECT_BOXES = pa.struct(
    [
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""A cell: the boxes of one name, xyxy in pixels of the image (zero-based, half-open), best score first, and the image's size."""
TEXT_EARLY = ("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")


class OpenVocabularyBoxes(Stage):
    """Boxes of objects by name, by OWLv2 or OmDet-Turbo. Each column is the name of an object.

    A cell holds the best 100 boxes of the name without suppression, those of a score of ``least`` or more. A new name is one
    more column: images are encoded again for it, the other names' cells stay.
    """

    name = "object_boxes"
    architectures: ClassVar[tuple[str, ...]] = tuple(FINDERS)
    example: ClassVar[str] = "google/owlv2-base-patch16-ensemble"
    asks: ClassVar[str] = "object_names"
    output = ArrowOutput(OBJECT_BOXES)

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """An OWLv2 or an OmDet-Turbo: a folder, a hub id, or ``{id, revision}``."""
        columns: Columns
        """The names of objects, or ``object_names``, all of the vocabulary."""
        prompt: str | None = None
        """How a name is put: with ``{name}``, or with ``{phrase}``, the name with its article. Default: ``a photo of
        {phrase}`` for OWLv2, ``{name}`` for OmDet-Turbo."""
        least: Fraction = 0.01
        """Score from which a box is stored."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic."""
        batch_size: BatchSize = 8
        """Images per forward, or ``auto``: as many as the GPU's memory holds."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        checkpoint = config.checkpoint
        refuse_other(checkpoint)
        checkpoint.require_preprocessing()
        self.checkpoint, self.columns, self.dtype, self.least = checkpoint, config.columns, config.dtype, config.least
        self.prompt = FINDERS[checkpoint.architecture].prompt if config.prompt is None else config.prompt
        refuse_nameless(self.prompt)
        self.chosen_batch = config.batch_size
        self.batch_size, self.resources = canonical(config.batch_size), Resources(gpus=config.gpus)

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            "detector": self.checkpoint.digest,
            "image_backend": "pil",
            "dtype": self.dtype,
            "prompt": self.prompt,
            "asked": "each name by itself",
            "least": self.least,
            "top": TOP,
        }

    @override
    def provenance(self) -> dict[str, Any]:
        return self.checkpoint.provenance()

    @override
    def __getstate__(self) -> dict[str, Any]:
        opened = {"finder", "processor", "names", "rows", "device"}
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        import torch

        key = ("open vocabulary", self.checkpoint.digest, self.dtype, device)
        if key not in shared:
            folder = self.checkpoint.here()
            model = load(self.checkpoint, folder, self.dtype, device)
            finder = FINDERS[self.checkpoint.architecture](model, tokenizer(folder))
            shared[key] = finder, image_processor(folder)
        self.finder, self.processor = shared[key]
        self.rows, self.device = part_size(shared, key, self.chosen_batch), device
        with torch.inference_mode():
            read = self.finder.read([self.put(name) for name in self.columns])
        self.names = dict(zip(self.columns, read, strict=True))

    def put(self, name: str) -> str:
        """A name as the detector reads it."""
        return put_in(self.prompt, name)

    @override
    def prepare(self, image: Image.Image) -> ImageTensors:
        return preprocess(self.processor, image, self.device)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        pixels = self.prepared(batch)
        names = [self.names[column] for column in columns]
        found: list[np.ndarray] = [np.empty(0)] * len(pixels)
        with torch.inference_mode():
            for members in of_one_size(pixels):

                def forward(positions: np.ndarray, members: Sequence[int] = members) -> list[np.ndarray]:
                    return list(self._best([pixels[members[at]] for at in positions], names))

                answers = group_in_parts(forward, len(members), self.rows, self.device)
                for index, answer in zip(members, answers, strict=True):
                    found[index] = answer
        best = np.stack(found)
        if not np.isfinite(best).all():
            raise FloatingPointError(f"table {self.name}: the detector's answers are not finite at dtype {self.dtype}")
        sizes = [image.size for image in batch.images]
        frames = np.array([self.finder.frame(size) for size in sizes], np.float32)
        return {column: object_boxes(best[:, at], frames, sizes, self.least) for at, column in enumerate(columns)}

    def _best(self, pixels: Sequence[ImageTensors], names: Sequence[Any]) -> np.ndarray:
        """The :data:`TOP` best boxes of every name in B images of one size: float32 ``[B, C, K, 5]``, cxcywh and score."""
        import torch

        seen = self.finder.look(joined(pixels, self.device, self.finder.model.dtype))
        best: list[torch.Tensor] = []
        for logits, boxes in self.finder.find(seen, names):
            top, order = logits.float().topk(min(TOP, logits.shape[1]), dim=1)
            chosen = boxes.float().gather(1, order[..., None].expand(-1, -1, 4))
            best.append(torch.cat([chosen, top.sigmoid()[..., None]], dim=-1))
        return torch.stack(best, dim=1).cpu().numpy()


def object_boxes(
    found: np.ndarray, frames: np.ndarray, sizes: Sequence[tuple[int, int]], least: float
) -> pa.StructArray:
    """The cells of one name, :data:`OBJECT_BOXES`. Boxes outside their image are left out.

    Args:
        found: float32 ``[B, K, 5]``, cxcywh (fractions) and score, best first.
        frames: float32 ``[B, 2]``, width and height of what boxes are fractions of.
        sizes: (width, height) of the B images.
        least: score from which a box is stored.
    """
    boxes = box_ops.cxcywh_to_xyxy(found[..., :4]) * np.tile(frames, 2)[:, None]
    limit = np.tile(np.array(sizes, np.float32), 2)[:, None]
    boxes = np.minimum(np.maximum(boxes, 0), limit)
    kept = (found[..., 4] >= np.float32(least)) & (box_ops.area(boxes) > 0)
    offsets = pa.array(np.cumsum([0, *kept.sum(axis=1)]), pa.int32())
    flat = pa.FixedSizeListArray.from_arrays(pa.array(boxes[kept].astype(np.float32).reshape(-1)), 4)
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (flat, pa.array(found[..., 4][kept]))]
    sides = [pa.array([size[axis] for size in sizes], pa.int32()) for axis in (0, 1)]
    return pa.StructArray.from_arrays([*lists, *sides], fields=list(OBJECT_BOXES))


def put_in(prompt: str, name: str) -> str:
    """A prompt with an object's name in the place of ``{name}``, and the name with its article in that of ``{phrase}``."""
    phrase = object_prompt(name).removeprefix("a photo of ")
    return prompt.replace("{phrase}", phrase).replace("{name}", name)


def refuse_nameless(prompt: str) -> None:
    """Raises UserError for a prompt that says the same of every name."""
    if "{name}" not in prompt and "{phrase}" not in prompt:
        raise UserError(f"prompt: {prompt!r} must hold {{name}} or {{phrase}}, in whose place a name is put")


def refuse_other(checkpoint: Checkpoint) -> None:
    """Raises UserError for a model that cannot be asked for one name after another, or whose backbone lacks its library."""
    name, where = checkpoint.architecture, checkpoint.folder
    if name in TEXT_EARLY:
        raise UserError(
            f"{where}: {name} reads image and names together from its first layer on, so one more name would change the boxes "
            f"of all others; take {' or '.join(FINDERS)}"
        )
    if name not in FINDERS:
        raise UserError(f"{where}: {name} finds no objects by name; it takes {', '.join(FINDERS)}")
    backbone = checkpoint.config.get("backbone_config") or {}
    own = checkpoint.config.get("use_timm_backbone") or backbone.get("model_type") == "timm_backbone"
    if own and find_spec("timm") is None:
        raise UserError(f"{where}/config.json: its backbone is timm's; install it with: pip install timm")
