"""Arithmetic of models: floating-point operations and shapes of maps, by formula, and what a card does at its peak.

A multiply-add counts as two operations. Norms, activations and softmax are left out; they are under one percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PEAK = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}
"""FLOP/s of NVIDIA's H200 SXM by its data sheet, without sparsity. float32 is that of the ordinary cores: torch uses no TF32
for matrix products unless it is asked to."""
BANDWIDTH = 4.8e12
"""Bytes/s of its memory, by the same sheet."""


@dataclass(frozen=True)
class Work:
    """What the device does for one image.

    Attributes:
        flop: floating-point operations.
        memory_bytes: what a generation reads from the device's memory: the weights once a step and batch, keys and values. 0
            for a single forward of many images, whose FLOPs bound it.
    """

    flop: float
    memory_bytes: float = 0.0

    def milliseconds(self, dtype: str) -> float:
        """At the vendor's peak."""
        return 1e3 * max(self.flop / PEAK[dtype], self.memory_bytes / BANDWIDTH)


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer at one image size.

    Attributes:
        side: pixels of the square image.
        patch: pixels of a patch's side.
        width: channels.
        wide: channels inside the feed-forward blocks.
        layers: number of blocks.
        projected: channels in the space shared with texts; None where there is none.
        extra: tokens beside the patches.
    """

    side: int
    patch: int
    width: int
    wide: int
    layers: int
    projected: int | None = None
    extra: int = 1

    @property
    def grid(self) -> int:
        """Cells of the map along a side."""
        return self.side // self.patch

    @property
    def tokens(self) -> int:
        """Patches and extra tokens."""
        return self.grid**2 + self.extra

    def flop(self) -> float:
        """``2 g^2 3 p^2 w + layers 2 (4 n w^2 + 2 n^2 w + 2 n w wide)`` of one image (grid g, patch p, n tokens, width w)."""
        n, w = self.tokens, self.width
        patches = 2.0 * self.grid**2 * 3 * self.patch**2 * w
        return patches + self.layers * 2.0 * (4 * n * w * w + 2 * n * n * w + 2 * n * w * self.wide)

    @property
    def formula(self) -> str:
        """Of :meth:`flop`, with its numbers."""
        return (
            f"(2 g^2 3 p^2 w + layers x 2 (4 n w^2 + 2 n^2 w + 2 n w m); p {self.patch}, n {self.tokens}, w {self.width}, "
            f"m {self.wide}, layers {self.layers})"
        )


@dataclass(frozen=True)
class PyramidTower:
    """A DaViT at one image size whose grids are whole windows. Each stage halves the grid, the first divides it by four.

    Attributes:
        side: pixels of the square image.
        widths: channels of the stages.
        depths: blocks of the stages, each a window attention and a channel attention.
        groups: of channels that attend to each other.
        kernels: sides of the convolutions that begin the stages.
        window: cells of a window's side.
        projected: channels in the space shared with texts; there is none.
    """

    side: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    groups: tuple[int, ...] = (4, 8, 16, 32)
    kernels: tuple[int, ...] = (7, 3, 3, 3)
    window: int = 12
    projected: int | None = None

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.widths[-1]

    @property
    def grid(self) -> int:
        """Cells of the last map along a side."""
        return self.side // (4 << (len(self.widths) - 1))

    def flop(self) -> float:
        """Of one image. A block of n cells and width w: twice 24 n w^2 of linear maps, 72 n w of convolutions, two attentions."""
        total, before = 0.0, 3
        stages = zip(self.widths, self.depths, self.groups, self.kernels, strict=True)
        for stage, (w, depth, groups, kernel) in enumerate(stages):
            n = (self.side // (4 << stage)) ** 2
            total += 2.0 * n * kernel**2 * before * w
            total += depth * n * w * (48.0 * w + 72 + 4 * self.window**2 + 4 * w / groups)
            before = w
        return total

    @property
    def formula(self) -> str:
        """Of :meth:`flop`, with its numbers."""
        return (
            "(stages of 2 n k^2 v w + blocks x n w (48 w + 72 + 4 window^2 + 4 w / groups); n from "
            f"{(self.side // 4) ** 2} to {self.grid**2}, w {self.widths}, blocks {self.depths}, window {self.window}, "
            f"groups {self.groups}, k {self.kernels}, v the w before)"
        )


BASE = {"width": 768, "wide": 3072, "layers": 12}
TOWERS: Mapping[str, VisionTower | PyramidTower] = {
    "openai/clip-vit-base-patch16": VisionTower(224, 16, **BASE, projected=512),
    "openai/clip-vit-large-patch14-336": VisionTower(336, 14, 1024, 4096, 24, projected=768),
    "google/siglip2-base-patch16-224": VisionTower(224, 16, **BASE, extra=0),
    "facebook/dinov2-base": VisionTower(224, 14, **BASE),
    "Salesforce/blip-itm-base-coco": VisionTower(384, 16, **BASE),
    "Salesforce/blip2-itm-vit-g-coco": VisionTower(364, 14, 1408, 6144, 39),
    "florence-community/Florence-2-base": PyramidTower(768, (128, 256, 512, 1024), (1, 1, 9, 1)),
}
"""Vision towers of published checkpoints, as their configurations have them."""


@dataclass(frozen=True)
class Matching:
    """A text model that matches prompts with an image of N tokens of width ``image_width``, at one image size."""

    family: str
    image_tokens: int
    image_width: int
    layers: int = 12
    width: int = 768
    wide: int = 3072
    queries: int = 0

    def macs_stock(self, lengths: Sequence[int]) -> float:
        """Multiply-adds of the stock text model with expanded states; padding left out."""
        n, d, wide, q = self.image_tokens, self.width, self.wide, self.queries
        total = 0.0
        for length in lengths:
            t, asking = q + length, q or length
            crossing = self.layers // 2 if q else self.layers
            total += self.layers * (4 * t * d * d + 2 * t * t * d + 2 * t * d * wide)
            total += crossing * (2 * asking * d * d + 2 * n * self.image_width * d + 2 * asking * n * d)
        return total

    def macs_ours(self, lengths: Sequence[int]) -> float:
        """The same for one image with kept prefixes."""
        n, d, wide, q = self.image_tokens, self.width, self.wide, self.queries
        crossing = self.layers // 2 if q else self.layers
        total = crossing * 2.0 * n * self.image_width * d
        for length in lengths:
            t, asking = q + length, q or length
            read = q or 1
            first = asking * d * d + 2 * asking * n * d + 2 * asking * d * wide
            inner = 4 * t * d * d + 2 * t * t * d + 2 * t * d * wide
            cross = 2 * asking * d * d + 2 * asking * n * d
            last = 2 * read * d * d + 2 * t * d * d + 2 * read * t * d + 2 * read * d * wide
            if (
                q
            ):  # the second layer's text projections are kept; every second layer looks at the image, the last does not
                total += (
                    first + (inner - 3 * length * d * d) + (self.layers - 3) * inner + (crossing - 1) * cross + last
                )
            else:
                total += first + (self.layers - 2) * (inner + cross) + last + 2 * read * d * d + 2 * read * n * d
        return total


MATCHERS = {"Salesforce/blip-itm-base-coco": Matching("blip", 577, 768)}
"""Matching models of published checkpoints."""
