"""Open-vocabulary detectors from transformers, each taken apart where the text comes in.

What a model makes of an image without the text is made once; what remains to be done for a name is all that a name costs.
OWLv2's boxes know no text, so a name costs a product of its embedding with the patches'. OmDet-Turbo's decoder chooses its
queries by the text, so a name costs a pass of the decoder. Grounding DINO's encoder reads image and text together, and all
names stand in one sentence: another name would change every other name's boxes. It cannot be asked in columns.

Shapes: B images, Q queries, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import torch

NAMES_AT_ONCE = 64
"""Names in one forward of a text encoder, and in one product with OWLv2's patches."""
Tokens = Mapping[str, "torch.Tensor"]
"""``input_ids`` and ``attention_mask``, int64 ``[N, L]``."""


class Finder(ABC):
    """A loaded model, and what it does for an image and for a name.

    Args:
        model: in evaluation mode.
        tokenizer: the checkpoint's.
    """

    prompt: ClassVar[str]
    """How a name is put by default."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @abstractmethod
    def read(self, texts: Sequence[str]) -> list[Any]:
        """What the text encoder makes of each text.

        Raises:
            UserError: a text is too long.
        """

    @abstractmethod
    def look(self, pixels: Mapping[str, torch.Tensor]) -> Any:
        """What the model makes of B images of one size before it has read anything."""

    @abstractmethod
    def find(self, seen: Any, names: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Where the names are, one name after another.

        Args:
            seen: of :meth:`look`.
            names: of :meth:`read`.

        Yields:
            Logits ``[B, Q]``, and boxes ``[B, Q, 4]`` (cxcywh, fractions of :meth:`frame`).
        """

    @abstractmethod
    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height, in pixels of the image, of what boxes are fractions of.

        Args:
            size: width and height of the image.
        """

    def _tokens(self, texts: Sequence[str], most: int) -> Tokens:
        """The tokens of N texts, padded to the length ``most`` that the encoder was trained with."""
        import torch

        tokens = self.tokenizer(list(texts), padding="max_length", max_length=most, return_attention_mask=True)
        for text, ids in zip(texts, tokens["input_ids"], strict=True):
            if len(ids) > most:
                raise UserError(f"columns: {text!r} has {len(ids)} tokens, the detector takes {most}; shorten the name")
        names = ("input_ids", "attention_mask")
        return {name: torch.tensor(tokens[name], device=self.model.device) for name in names}


def _in_groups(texts: Sequence[str], encode: Callable[[Sequence[str]], Iterable[Any]]) -> list[Any]:
    groups = (texts[start : start + NAMES_AT_ONCE] for start in range(0, len(texts), NAMES_AT_ONCE))
    return [each for group in groups for each in encode(group)]


class Owlv2Finder(Finder):
    """OWLv2 (Minderer et al., NeurIPS 2023): every patch has a box, and an embedding that is compared with a name's."""

    prompt = "a photo of {phrase}"

    @override
    def read(self, texts: Sequence[str]) -> list[Any]:
        import torch

        most = self.model.config.text_config.max_position_embeddings

        def encode(group: Sequence[str]) -> torch.Tensor:
            found = self.model.owlv2.get_text_features(**self._tokens(group, most)).pooler_output
            return found / torch.linalg.norm(found, dim=-1, keepdim=True)

        return _in_groups(texts, encode)

    @override
    def look(self, pixels: Mapping[str, torch.Tensor]) -> Any:
        grid, _ = self.model.image_embedder(pixels["pixel_values"])
        patches = grid.flatten(1, 2)
        return patches, self.model.box_predictor(patches, grid)

    @override
    def find(self, seen: Any, names: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        patches, boxes = seen
        for start in range(0, len(names), NAMES_AT_ONCE):
            group = torch.stack(list(names[start : start + NAMES_AT_ONCE]))
            logits, _ = self.model.class_predictor(patches, group[None])
            yield from ((each, boxes) for each in logits.unbind(-1))

    @override
    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Images are padded to a square, to the right and below."""
        return max(size), max(size)


class OmDetTurboFinder(Finder):
    """OmDet-Turbo (Zhao et al., 2024): encoder maps know no text; the decoder reads a name and the task "Detect <name>."."""

    prompt = "{name}"

    @override
    def read(self, texts: Sequence[str]) -> list[Any]:
        most = self.model.config.text_config.max_position_embeddings
        encoder = self.model.language_backbone

        def encode(group: Sequence[str]) -> list[Any]:
            classes = encoder(self._tokens(group, most)["input_ids"], encode_type="class")
            return list(zip(classes, map(task, group), strict=True))

        def task(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self._tokens([f"Detect {text}."], most)
            found: tuple[torch.Tensor, torch.Tensor] = encoder(
                tokens["input_ids"], mask=tokens["attention_mask"], encode_type="task"
            )
            return found

        return _in_groups(texts, encode)

    @override
    def look(self, pixels: Mapping[str, torch.Tensor]) -> Any:
        return self.model.encoder(self.model.vision_backbone(pixels["pixel_values"])).extracted_states

    @override
    def find(self, seen: Any, names: Sequence[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images = len(seen[0])
        for embedding, (task, mask) in names:
            classes = embedding.expand(1, images, -1)
            out = self.model.decoder(seen, classes, task.expand(-1, images, -1), mask.expand(images, -1))
            yield out.decoder_classes[-1][..., 0], out.decoder_coords[-1]

    @override
    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


FINDERS: dict[str, type[Finder]] = {
    "Owlv2ForObjectDetection": Owlv2Finder,
    "OmDetTurboForObjectDetection": OmDetTurboFinder,
}
