"""What there is to start from: the images of a folder, and the machine with the checkpoints that lie on it."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hoi_distill.pipeline.graph.catalogue import accepted
from hoi_distill.pipeline.graph.registry import stage_class
from hoi_distill.stages.data.image import header_size, read_image
from hoi_distill.stages.data.listing import SUFFIXES, images_below
from hoi_distill.storage.errors import InputFailure, UserError

DECODED = 1000
"""Of so many images every pixel is read, of the others the header."""
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Album:
    """The images below a folder.

    Attributes:
        root: the folder.
        names: the images by name, as the dataset will have them; the broken ones too.
        suffixes: how many images have each suffix.
        smallest: width and height of the image with the fewest pixels.
        largest: width and height of the image with the most pixels.
        broken: why an image cannot be read, by its name.
    """

    root: Path
    names: tuple[str, ...]
    suffixes: dict[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    broken: dict[str, str]

    def words(self) -> str:
        """The same in one line, without the broken ones."""
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self.suffixes.items())
        small, large = (f"{width} x {height}" for width, height in (self.smallest, self.largest))
        sizes = small if small == large else f"{small} to {large}"
        return f"{len(self.names):,} images in {self.root} ({kinds}; {sizes})"


def look_at(root: Path) -> Album:
    """Look at all images below a folder.

    Raises:
        UserError: there is no such folder, or no image that can be read.
    """
    present = images_below(root)
    if not present:
        raise UserError(f"--images {root}: no images in it ({', '.join(sorted(SUFFIXES))})")
    broken: dict[str, str] = {}
    sizes: list[tuple[int, int]] = []
    for number, (name, path) in enumerate(present.items()):
        size = header_size(root / path)
        try:
            if number < DECODED or not all(size):
                read_image(root / path, "upright")
            sizes.append(size)
        except (InputFailure, OSError) as error:
            broken[name] = str(error)
    if not sizes:
        name, reason = next(iter(broken.items()))
        raise UserError(f"--images {root}: none of {len(broken):,} images can be read; the first, {name}: {reason}")
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    suffixes = Counter(Path(name).suffix.lower() for name in present)
    return Album(root, tuple(present), dict(suffixes.most_common()), ordered[0], ordered[-1], broken)


@dataclass(frozen=True)
class Machine:
    """What can be computed here.

    Attributes:
        gpus: how many GPUs torch can use.
        teachers: hub ids of image-text matching models that lie in the hub's cache, whole.
        detectors: hub ids of detectors there.
    """

    gpus: int
    teachers: tuple[str, ...]
    detectors: tuple[str, ...]


def this_machine() -> Machine:
    """Look for GPUs, and for checkpoints in the model hub's cache. Nothing is fetched."""
    import torch

    return Machine(torch.cuda.device_count(), cached_models("blip_itm"), cached_models("detector"))


def cached_models(stage: str) -> tuple[str, ...]:
    """Hub ids of the checkpoints in the hub's cache that a stage takes, sorted."""
    from huggingface_hub.constants import HF_HUB_CACHE

    taken = accepted(stage_class(stage))
    found = []
    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        for config in sorted(folder.glob("snapshots/*/config.json")):
            try:
                architectures = json.loads(config.read_text()).get("architectures") or [""]
            except (OSError, ValueError, AttributeError):
                continue
            whole = any(os.path.exists(file) for kind in WEIGHTS for file in config.parent.glob(kind))
            if architectures[0] in taken and whole:
                found.append(folder.name.removeprefix("models--").replace("--", "/"))
                break
    return tuple(found)
