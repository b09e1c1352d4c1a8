"""The student's own image encoder: a small CNN that is trained on the classes of the detections' boxes, then frozen.

It is the arm that takes nothing from the teacher but soft labels. Its weights and feature maps depend on the images,
the detections and :class:`RegionCNNConfig` alone, so all variants of a study share them: they are kept in folders named
by what they depend on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.ops.roi_align import roi_align
from hoi_distill.stages.student.data import ReadImage, Report, TrainingSet
from hoi_distill.stages.student.files import kept, kept_array, load_tensors, save_tensors
from hoi_distill.stages.student.pairs.batches import MapReader, TableMaps, take
from hoi_distill.stages.student.pairs.instances import ImageTable
from hoi_distill.stages.student.source import SampleSource
from hoi_distill.storage.digests import content_name, content_name_of
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class RegionCNNConfig:
    """``size``: images are squeezed to size x size pixels; maps are ``channels[-1]`` x size / 16 x size / 16."""

    size: int = 128
    channels: tuple[int, ...] = (32, 64, 96, 128)
    classes: int = 80
    steps: int = 600
    pictures_per_step: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


class RegionCNN(nn.Module):
    """Convolutions of stride 16 and a linear classifier of pooled boxes."""

    def __init__(self, config: RegionCNNConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        incoming = 3
        for width in config.channels:
            for stride, source in ((2, incoming), (1, width)):
                convolution = nn.Conv2d(source, width, 3, stride, 1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            incoming = width
        self.body = nn.Sequential(*layers)
        self.classify = nn.Linear(incoming, config.classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, size, size]`` to float32 ``[B, C, size / 16, size / 16]``."""
        return self.body((images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def maps(self, images: Sequence[np.ndarray], mirrored: bool = False) -> Tensor:
        """uint8 ``[height, width, 3]`` images of any size to float16 ``[B, C, h, w]`` feature maps."""
        self.eval()
        batch = torch.stack([as_input(image, self.config.size) for image in images])
        return self(batch.flip(-1) if mirrored else batch).half()

    def save(self, path: Path) -> None:
        """Write weights and configuration as safetensors."""
        save_tensors(path, self.state_dict(), {"config": json.dumps(asdict(self.config))})

    def digest(self) -> str:
        """Names the configuration and the weights."""
        weights = (value.detach().contiguous().numpy().tobytes() for value in self.state_dict().values())
        return content_name_of((json.dumps(asdict(self.config)).encode(), *weights), 6)

    @classmethod
    def load(cls, path: Path) -> RegionCNN:
        """What :meth:`save` wrote, in evaluation mode."""
        weights, metadata = load_tensors(path)
        record = json.loads(metadata["config"])
        model = cls(RegionCNNConfig(**{**record, "channels": tuple(record["channels"])}))
        model.load_state_dict(weights)
        return model.eval()


def as_input(image: np.ndarray, size: int) -> Tensor:
    """uint8 ``[height, width, 3]`` to uint8 ``[3, size, size]``, squeezed where it is not that size already."""
    if image.shape[:2] != (size, size):
        from PIL import Image

        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pretrain(config: RegionCNNConfig, images: ImageTable, read: ReadImage, report: Callable[[str], None]) -> RegionCNN:
    """Teach a fresh CNN the classes of the images' boxes, half of them mirrored. Deterministic on one thread."""
    torch.manual_seed(config.seed)
    model = RegionCNN(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.15)
    pool = np.flatnonzero(images.index[:, 3] > 0)
    last = time.monotonic()
    for step in range(config.steps):
        rows = take(pool, step, config.pictures_per_step, config.seed).tolist()
        flip = torch.rand(len(rows)) < 0.5
        batch = torch.stack([as_input(read(row), config.size) for row in rows])
        batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
        regions, labels = [], []
        for place, row in enumerate(rows):
            image = images[row]
            boxes = box_ops.flip(image.boxes, image.width) if flip[place] else image.boxes
            cells = torch.from_numpy(boxes) / torch.tensor([image.width, image.height] * 2)
            regions.append(cells * (config.size / 16))
            labels.append(torch.from_numpy(image.labels.astype(np.int64)))
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            maps = model(batch)
        pooled = roi_align(maps.float(), regions, 3, sampling_ratio=2).mean((2, 3))
        loss = F.cross_entropy(model.classify(pooled), torch.cat(labels))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"region CNN: loss is {loss.item()} at step {step}, rows {rows}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - last > 30 or step + 1 == config.steps:
            last = time.monotonic()
            report(f"region CNN: step {step + 1}/{config.steps}, loss {loss.item():.3f}")
    return model.eval()


def shared_encoder(
    folder: Path, config: RegionCNNConfig, images: ImageTable, read: ReadImage, report: Callable[[str], None]
) -> RegionCNN:
    """The CNN kept as ``folder/model.safetensors``, trained first if it is not there."""
    path = folder / "model.safetensors"
    return kept(path, RegionCNN.load, lambda draft: pretrain(config, images, read, report).save(draft))


class LiveMaps:
    """Feature maps computed on demand: a ``MapReader``."""

    def __init__(self, model: RegionCNN, views: Sequence[str], read: ReadImage) -> None:
        self.model, self.views, self.read = model, views, read

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """See :data:`~hoi_distill.stages.student.pairs.batches.MapReader`."""
        maps = [
            self.model.maps([self.read(row)], mirrored=self.views[view] == "flip")
            for row, view in zip(rows.tolist(), views.tolist(), strict=True)
        ]
        return np.arange(len(rows)), torch.cat(maps)


class StoredMaps:
    """Feature maps computed once, by whoever comes first, and memory-mapped from then on: a ``MapReader``.

    They lie in ``folder/<view>.npy`` as float16 ``[N, C, h, w]``; zeros for rows outside ``wanted``.

    Args:
        wanted: bool ``[N]``, the rows that have pairs.
    """

    def __init__(
        self, folder: Path, model: RegionCNN, views: Sequence[str], wanted: np.ndarray, read: ReadImage
    ) -> None:
        self.views = [self._view(folder / f"{view}.npy", model, view == "flip", wanted, read) for view in views]

    @staticmethod
    def _view(path: Path, model: RegionCNN, mirrored: bool, wanted: np.ndarray, read: ReadImage) -> np.ndarray:
        def fill(maps: np.ndarray) -> None:
            rows = np.flatnonzero(wanted)
            for start in range(0, len(rows), 64):
                some = rows[start : start + 64]
                maps[some] = model.maps([read(row) for row in some.tolist()], mirrored).numpy()

        side = model.config.size // 16
        return kept_array(path, np.float16, (len(wanted), model.config.channels[-1], side, side), fill)

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """See :data:`~hoi_distill.stages.student.pairs.batches.MapReader`."""
        maps = [self.views[view][row] for row, view in zip(rows.tolist(), views.tolist(), strict=True)]
        return np.arange(len(rows)), torch.from_numpy(np.stack(maps))


def map_reader(
    source: SampleSource,
    images: ImageTable,
    views: Sequence[str],
    *,
    cnn: RegionCNN | None,
    shared: Path,
    read: ReadImage | None,
) -> MapReader:
    """The teacher's cached maps, or with ``cnn`` that network's, kept under ``shared`` where rows have a name."""
    if cnn is None:
        return TableMaps.of(source, views)
    if read is None:
        raise UserError("encoder: region_cnn needs the images themselves")
    if source.rows_digest is None:
        return LiveMaps(cnn, views, read)
    usable = content_name(images.usable().tobytes(), 4)
    folder = shared / f"region-maps-{cnn.digest()}-{source.rows_digest}-{usable}"
    return StoredMaps(folder, cnn, views, images.usable(), read)


def own_encoder(shared: Path, data: TrainingSet, images: ImageTable, cnn: RegionCNNConfig, report: Report) -> RegionCNN:
    """The student's own encoder, kept under ``shared`` in a folder named by everything that it depends on."""
    if data.read is None:
        raise UserError("encoder: region_cnn needs the images themselves")
    record = {**asdict(cnn), "rows": data.source.rows_digest, "pictures": images.digest()}
    name = content_name(json.dumps(record).encode(), 6)
    return shared_encoder(shared / f"region-cnn-{name}", cnn, images, data.read, report)
