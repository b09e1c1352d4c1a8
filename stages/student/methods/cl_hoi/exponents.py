"""The exponents of the inference score, chosen on the image-level labels of held-out training images.

``score = sigmoid(z) * r ** gamma * (s_h * s_o) ** lambda``. No annotation is read unless the labels are annotations (a
control). Image-level labels cannot distinguish the pairs of an image: that is the price of having no boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hoi_distill.stages.data.label_kinds import IGNORED, POSITIVE
from hoi_distill.stages.evaluate.metrics.average_precision import interpolated_precision
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import PictureTable, gather
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.image_labels import ImageLabelTable


@dataclass(frozen=True)
class Exponents:
    """What was chosen, and on what grounds.

    Attributes:
        gamma: exponent of r.
        power: exponent of the detection scores (lambda).
        tried: (gamma, lambda, image-level mean average precision in 0 to 1) of every candidate; NaN-free, empty where
            nothing was chosen.
        pictures: how many images were scored.
        classes: how many classes have a positive and a negative.
    """

    gamma: float
    power: float
    tried: tuple[tuple[float, float, float], ...] = field(default=())
    pictures: int = 0
    classes: int = 0

    def metrics(self) -> dict[str, float]:
        """What is logged of the choice, by name."""
        best = max((score for _, _, score in self.tried), default=0.0)
        chosen = {"exponents/gamma": self.gamma, "exponents/lambda": self.power}
        return {**chosen, "held_out/image_mAP": best} if self.tried else chosen

    def words(self) -> str:
        """A line for people."""
        if not self.tried:
            return f"exponents: gamma {self.gamma:g}, lambda {self.power:g}, as given"
        best = max(score for _, _, score in self.tried)
        return (
            f"exponents: gamma {self.gamma:g}, lambda {self.power:g}, the best of {len(self.tried)} by image-level mAP "
            f"{100 * best:.2f} on {self.pictures} held-out pictures"
        )


def choose_exponents(
    model: nn.Module,
    config: ClHoiConfig,
    pictures: PictureTable,
    rows: np.ndarray,
    *,
    maps: MapReader,
    valid: Tensor,
    labels: ImageLabelTable,
) -> Exponents:
    """The candidates' best by image-level mean average precision, of equally good ones the first.

    Args:
        model: gives :class:`~.cognition.Cognition`.
        config: the exponents to choose from.
        pictures: the instances and pairs of all pictures.
        rows: int64 ``[M]``, held-out pictures with pairs.
        maps: reads feature maps.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        labels: the image-level labels.
    """
    gammas = config.gammas if config.network.interactiveness else config.gammas[:1]
    candidates = [(gamma, power) for gamma in gammas for power in config.lambdas]
    if len(candidates) == 1:
        return Exponents(*candidates[0])
    scores: dict[tuple[float, float], list[np.ndarray]] = {candidate: [] for candidate in candidates}
    seen = []
    batches = candidate_scores(model, pictures, rows, maps, valid=valid, batch=config.predict_batch)
    for some, picture, hoi, log_z, log_r, log_s in batches:
        seen.append(some)
        for gamma, power in candidates:
            best = torch.full((len(some), valid.shape[1]), -torch.inf)
            value = log_z + gamma * log_r + power * log_s
            best.view(-1).scatter_reduce_(0, picture * valid.shape[1] + hoi, value, "amax")
            scores[gamma, power].append(best.numpy())
    where = np.concatenate(seen)
    kind = np.asarray(labels.kind[where])
    evaluated = (kind == POSITIVE).any(0) & (kind != POSITIVE).any(0)
    tried = tuple((*c, image_map(np.concatenate(found), kind, evaluated)) for c, found in scores.items())
    gamma, power, _ = max(tried, key=lambda each: each[2])
    return Exponents(gamma, power, tried, len(where), int(evaluated.sum()))


def candidate_scores(
    model: nn.Module, pictures: PictureTable, rows: np.ndarray, maps: MapReader, *, valid: Tensor, batch: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The candidates of some images, on the CPU: rows ``[B]``, and of each candidate its image's place, interaction,
    log sigmoid z, log r and log s_h s_o."""
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        places, values = maps(some, np.zeros(len(some), np.int64))
        some = some[places]
        regions = gather([pictures[row] for row in some.tolist()], values).to(device)
        with torch.inference_mode():
            candidates, answer = candidates_of(regions, valid), model(regions)
            log_z = nn.functional.logsigmoid(answer.logits[candidates.pair, candidates.hoi].float())
            found = candidates.image, candidates.hoi, log_z, answer.log_r[candidates.pair], candidates.prior.log()
        place, hoi, *logs = (each.cpu() for each in found)
        yield some, place, hoi, logs[0], logs[1], logs[2]


def image_map(score: np.ndarray, kind: np.ndarray, evaluated: np.ndarray) -> float:
    """Mean over classes of the area under precision and recall of whole pictures, in 0 to 1; 0 without classes.

    Args:
        score: float ``[M, H]``, -inf where a picture has no such pair.
        kind: int8 ``[M, H]``; ignored ones are left out.
        evaluated: bool ``[H]``, the classes that count.
    """
    if not evaluated.any():
        return 0.0
    picture, klass = np.nonzero((kind != IGNORED) & evaluated)
    values, is_tp = score[picture, klass], kind[picture, klass] == POSITIVE
    order = np.lexsort((picture, -values, klass))
    # an interaction without a candidate has no rank
    order = order[np.isfinite(values[order])]
    positives = np.bincount(klass[is_tp], minlength=len(evaluated))
    precision = interpolated_precision(klass[order], is_tp[order], positives, None)
    return float(np.nanmean(precision[evaluated]))
