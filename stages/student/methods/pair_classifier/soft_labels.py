"""The soft labels that a pair classifier distils: those of the configured teacher or control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import intact, kept_array, mapped, shared_place
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import ImageTable
from hoi_distill.stages.student.pairs.predict import scored
from hoi_distill.stages.student.pairs.supervision.soft_labels import SoftLabels, itm_soft_labels, kept_rows


def soft_labels(
    folder: Path, data: TrainingSet, images: ImageTable, config: PairClassifierConfig, *, shared: Path | None = None
) -> SoftLabels | None:
    """The soft labels of the configured teacher, or None where nothing is distilled.

    Args:
        folder: keeps what is read once. For the self-training control it holds ``self.npy``, which
            :func:`image_probabilities` has written.
        data: the training set.
        images: the instances and pairs of all images.
        config: the method's parameters.
        shared: keeps what trainings of the same cells read in common; None: ``folder`` does.

    Raises:
        UserError: no labelled image has a pair, so that ITM scores cannot be calibrated.
    """
    if not config.distils:
        return None
    distilled = {"labelled": data.labelled, "unlabelled": ~data.labelled, "both": np.ones_like(data.labelled)}[
        config.itm_on
    ]
    distilled = distilled & images.usable()
    if config.teacher == "self":
        return SoftLabels(np.load(folder / "self.npy", mmap_mode="r"), np.arange(len(images)), distilled)
    if config.teacher == "oracle":
        rows = ((row, data.present(row).astype(np.float32)) for row in np.flatnonzero(distilled).tolist())
        return SoftLabels(kept_rows(folder / "oracle.npy", data, rows), np.arange(len(images)), distilled)
    shuffle_seed = config.seed if config.teacher == "shuffled" else None
    place = shared_place(folder / "itm.npy", shared, data.name_of("itm", data.prompts))
    return itm_soft_labels(place, data, images, distilled, shuffle_seed=shuffle_seed)


def has_image_probabilities(path: Path, data: TrainingSet) -> bool:
    """Whether ``path`` holds what :func:`image_probabilities` writes, whole."""
    shape = len(data.source), len(data.prompts)
    return intact(path, lambda place: mapped(place, np.float32, shape)) is not None


def image_probabilities(
    path: Path, model: nn.Module, images: ImageTable, maps: MapReader, *, valid: Tensor, batch: int = 64
) -> None:
    """Write the soft labels of a self-trained student: its own probability that each image shows each interaction, the
    noisy-or over the image's pairs.

    Args:
        path: gets float32 ``[N, H]`` (npy), NaN for images without pairs.
        model: from regions to interaction logits, float ``[P, H]``.
        images: the instances and pairs of N images.
        maps: reads feature maps.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        batch: images at a time.
    """

    def fill(table: np.ndarray) -> None:
        table[:] = np.nan
        for each in scored(model, images, maps, valid, batch):
            log_absent = torch.zeros(len(each.rows), valid.shape[1])
            final = (each.candidates.prior * each.logit.sigmoid()).clamp(max=1 - 1e-7)
            places = each.candidates.image.cpu(), each.candidates.hoi.cpu()
            log_absent.index_put_(places, torch.log1p(-final).cpu(), accumulate=True)
            table[each.rows] = -torch.expm1(log_absent).numpy()

    kept_array(path, np.float32, (len(images), valid.shape[1]), fill)
