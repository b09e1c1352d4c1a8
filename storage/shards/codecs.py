"""How a tensor cell becomes bytes: float16, bfloat16, or int8 with one scale per channel.

All three are pure functions of the cell, so equal cells have equal bytes. Little-endian throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

CODECS = ("fp16", "bf16", "int8")


@dataclass(frozen=True)
class Codec:
    """Encoding of cells of one shape.

    Attributes:
        name: ``fp16``; ``bf16`` (round to nearest even); or ``int8``: along the first axis ("channel") one float32
            scale, max|x| / 127, and the error of an element is at most half its channel's scale.
        shape: one cell's shape.
    """

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in CODECS:
            raise ValueError(f"codec {self.name!r}: allowed are {', '.join(CODECS)}")

    @property
    def nbytes(self) -> int:
        """Bytes of one encoded cell."""
        elements = prod(self.shape)
        return elements + 4 * self._channels if self.name == "int8" else 2 * elements

    @property
    def dtype(self) -> np.dtype:
        """What :meth:`decode` returns: float16 for ``fp16``, float32 otherwise (numpy has no bfloat16)."""
        return np.dtype("<f2" if self.name == "fp16" else "<f4")

    @property
    def _channels(self) -> int:
        return self.shape[0] if self.shape else 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        """``[B, *shape]`` of any float dtype to ``uint8 [B, nbytes]``.

        Raises:
            ValueError: another shape; a value that is not finite, or is no longer after rounding (choose ``bf16``).
        """
        values = np.asarray(values)
        if values.shape[1:] != self.shape:
            raise ValueError(f"cells of shape {values.shape[1:]} given, the table holds {self.shape}")
        if not _all_finite(values):
            raise ValueError("a value is not finite")
        count = len(values)
        if self.name == "fp16":
            with np.errstate(over="ignore"):
                halves = np.ascontiguousarray(values, "<f2")
            if values.dtype != halves.dtype and not np.isfinite(halves).all():
                raise ValueError("a value lies outside float16 (65504); codec bf16 would hold it")
            return halves.reshape(count, prod(self.shape)).view(np.uint8)
        floats = np.ascontiguousarray(values, "<f4").reshape(count, prod(self.shape))
        if self.name == "bf16":
            bits = floats.view("<u4")
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            if (rounded & 0x7F80 == 0x7F80).any():
                raise ValueError("a value lies outside bfloat16")
            return rounded.astype("<u2").view(np.uint8)
        channels = floats.reshape(count, self._channels, prod(self.shape[1:]))
        scale = np.abs(channels).max(axis=2, initial=0.0) / np.float32(127)
        quantised = np.rint(channels / np.where(scale > 0, scale, 1)[..., None]).clip(-127, 127).astype(np.int8)
        quantised = quantised.reshape(count, prod(self.shape)).view(np.uint8)
        return np.concatenate([scale.astype("<f4").view(np.uint8), quantised], axis=1)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """``uint8 [B, nbytes]`` to ``[B, *shape]`` of :attr:`dtype`; zero-copy for ``fp16``."""
        count = len(encoded)
        if self.name == "fp16":
            return encoded.view("<f2").reshape(count, *self.shape)
        if self.name == "bf16":
            return (encoded.view("<u2").astype("<u4") << np.uint32(16)).view("<f4").reshape(count, *self.shape)
        split = 4 * self._channels
        scale = np.ascontiguousarray(encoded[:, :split]).view("<f4")
        quantised = encoded[:, split:].view(np.int8).reshape(count, self._channels, prod(self.shape[1:]))
        return (quantised * scale[..., None]).reshape(count, *self.shape)


def _all_finite(values: np.ndarray) -> bool:
    """``np.isfinite(values).all()``, five times as fast for float16: no bits above those of infinity, of either sign."""
    if values.dtype != np.float16 or not values.size:
        return bool(np.isfinite(values).all())
    bits = np.ascontiguousarray(values).view("<u2")
    return bool(bits.max() < 0xFC00 and bits.view("<i2").max() < 0x7C00)
