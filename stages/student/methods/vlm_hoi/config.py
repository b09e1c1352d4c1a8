"""Everything that a VLM-HOI student depends on, as frozen records of plain values. The defaults are the paper's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from hoi_distill.stages.checkpoints import weight_files
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count, CountOrNone, Fraction, NotNegative, Positive, Rate, settings
from hoi_distill.stages.student.method import LATER
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import Costs, ItmConfig, LossWeights
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.training.options import Precision, TrainingOptions
from hoi_distill.storage.errors import UserError, nearest, placed

FOREIGN_WEIGHTS = ("*.pth", "*.pt")
"""Weight files of the original DETR's, MUREN's and CDN's codes."""
BOOKKEEPING = ("log_every", "save_every", "predict_batch", "loader_workers", "start")
"""Parameters that change no weight; of ``start`` the files count, not the path."""

Side = Annotated[int, Field(ge=8)]
"""Pixels."""
Sides = Annotated[tuple[Side, ...], Field(min_length=1)]


@settings
class TransformConfig:
    """How images are prepared. In training an image is resized whole or cropped first (DETR's two ways), then flipped and
    changed in colour. At test time it is resized whole to ``test_short_side``."""

    short_sides: Sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Pixels of the shorter side, one at random."""
    max_side: Side = 1333
    test_short_side: Side = 800
    flip: Fraction = 0.5
    jitter: Fraction = 0.4
    """Largest change of brightness, contrast and saturation, as a share."""
    crop: Fraction = 0.5
    """How often an image is cropped: resized to one of ``crop_short_sides``, of that a window with sides drawn from
    ``crop_sides``, resized again."""
    crop_short_sides: Sides = (400, 500, 600)
    crop_sides: tuple[Side, Side] = (384, 600)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    merge_iou: Fraction = 1.0
    """Annotated pairs of one object class whose boxes overlap so much are one pair of several verbs. HICO-DET's own file
    draws the boxes anew for every verb, a few pixels off: 0.5 there."""

    def __post_init__(self) -> None:
        if self.crop_sides[0] > self.crop_sides[1]:
            raise UserError(f"crop_sides: {list(self.crop_sides)}; smallest first")


@settings
class Scoring:
    """From queries to triplets: score = best object probability x verb probability x whether the dataset has the two."""

    top: Count = 100
    """Triplets kept of an image."""
    nms: NotNegative = 0.6
    """Of two pairs with IoU(humans)^a IoU(objects)^b above it the lower goes; 1: none does."""
    nms_human_power: NotNegative = 0.7
    nms_object_power: NotNegative = 0.7
    nms_within: Literal["hoi", "object"] = "hoi"
    """``hoi``: triplets of one verb and object compete, after ``top``. ``object``: pairs of one object class compete by
    their best verb, before it (the V-COCO script)."""
    as_published: bool = field(default=False, metadata=LATER)
    """As MUREN's own code: boxes are not clipped to the image, and pairs overlap as if both corners were pixels of theirs
    (each side a pixel longer)."""


def _of_f7(given: Any) -> Any:
    """The section ``f7``, whose defaults are not those of ``itm``."""
    return {"family": "F7", "weight": 0.0, **given} if isinstance(given, dict) else given


@settings
class VlmHoiConfig(TrainingOptions):
    """MUREN's hyper-parameters and the terms distilled from image-text matching."""

    # what is distilled
    itm: ItmConfig = field(default_factory=ItmConfig)
    """On labelled images. Weight 0: MUREN alone, bit for bit."""
    f7: Annotated[ItmConfig, BeforeValidator(_of_f7)] = field(
        default_factory=lambda: ItmConfig(family="F7", weight=0.0)
    )
    """On images without labels (ours, not the paper's): family F7 only."""
    teacher: Literal["itm", "shuffled", "constant"] = "itm"
    """Cached scores; another image's (control); or one score for all sentences and images, so that the terms are label
    smoothing alone (control)."""

    # network
    model: dict[str, Any] = field(default_factory=dict)
    """Keys of ``MurenConfig`` except those that the vocabulary decides. ``backbone``: resnet50, resnet101, a record of
    transformers, or ``{folder: PATH}``: that of the checkpoint in a folder, with what stands beside ``folder`` changed."""
    start: str | None = None
    """Folder or hub repository of a detector, or a ``.pth`` of DETR, MUREN or CDN, with the weights to start from."""
    allow_random_decoder: bool = False
    """Decoder layers that ``start`` lacks may start random; without it that is refused."""
    decoders_from_detr: bool = False
    """Start the three decoders from the one of DETR (CDN: the two)."""

    # loss
    loss: LossWeights = field(default_factory=LossWeights)
    costs: Costs = field(default_factory=Costs)

    pictures: TransformConfig = field(default_factory=TransformConfig)
    scoring: Scoring = field(default_factory=Scoring)

    # optimisation
    epochs: Positive = 100.0
    """Times through the labelled images that have a pair."""
    drop_epoch: NotNegative = 60.0
    """When the learning rates are divided by 10."""
    learning_rate: Positive = 1e-4
    backbone_learning_rate: Positive = 1e-5
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive = 0.1
    labelled_per_step: Count = 16
    """Of all processes together; so is ``unlabelled_per_step``."""
    unlabelled_per_step: CountOrNone = 16
    ema: Rate = 0.0
    """Decay of the moving average of the weights that is saved and evaluated; 0: the weights themselves."""
    precision: Precision = "no"
    seed: CountOrNone = 0

    # bookkeeping
    log_every: Count = 10
    save_every: Count = 500
    predict_batch: Count = 8
    loader_workers: CountOrNone = 0
    """Processes that decode images, beside each training process."""

    def __post_init__(self) -> None:
        if self.f7.family != "F7":
            raise UserError(f"f7.family: {self.f7.family!r}; images without labels are for F7")

    @property
    def on_labelled(self) -> bool:
        """Whether ITM scores of labelled images are distilled."""
        return self.itm.weight > 0

    @property
    def on_unlabelled(self) -> bool:
        """Whether ITM scores of images without labels are distilled."""
        return self.f7.weight > 0 and self.unlabelled_per_step > 0


def has_missing_objects(vocabulary: Vocabulary) -> bool:
    """Whether some verb takes no object (V-COCO's "stand"), so that "object missing" is a class."""
    return len(np.unique(vocabulary.hois[:, 0])) < len(vocabulary.verbs)


def network_config(config: VlmHoiConfig, vocabulary: Vocabulary) -> MurenConfig:
    """The network for a vocabulary.

    Raises:
        UserError: an unknown key, a value that is none of its kind, or a folder without a backbone.
    """
    decided: dict[str, Any] = {
        "objects": len(vocabulary.objects),
        "verbs": len(vocabulary.verbs),
        "missing_object": has_missing_objects(vocabulary),
    }
    known = {each.name for each in fields(MurenConfig)} - set(decided)
    for key in config.model:
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near}?" if near else f"valid keys: {', '.join(sorted(known))}"
            raise UserError(
                f"student.model.{key}: {'decided by the vocabulary' if key in decided else 'unknown key; ' + hint}"
            )
    base = MurenConfig.v_coco if decided["missing_object"] else MurenConfig.hico
    chosen = {key: _of_kind(key, value) for key, value in config.model.items()}
    backbone = chosen.pop("backbone", "resnet50")
    with placed("student.model."):
        if isinstance(backbone, str):
            return replace(base(backbone), **chosen, **decided)
        return replace(base(), backbone=_of_folder(backbone) if "folder" in backbone else backbone, **chosen, **decided)


def _of_kind(key: str, value: Any) -> Any:
    """A value of ``model``. Raises UserError for one of another type than the network's parameter has."""
    kind: Any = Mapping[str, Any] | str if key == "backbone" else get_type_hints(MurenConfig)[key]
    try:
        TypeAdapter(kind).validate_python(value, strict=kind is not float)
    except ValidationError as error:
        problem = "Input should be a name or a record" if key == "backbone" else error.errors()[0]["msg"]
        raise UserError(f"student.model.{key}: {problem}; got {value!r}") from None
    return value


def _of_folder(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a checkpoint's ``config.json``, less what a transformers version adds to every configuration."""
    path = Path(backbone["folder"]) / "config.json"
    try:
        record = json.loads(path.read_text())["backbone_config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"backbone.folder: {path} is not there or has no backbone_config") from None
    changed = {key: value for key, value in backbone.items() if key != "folder"}
    if "out_features" in changed:
        record.pop("out_indices", None)
    return {**record, **changed}


def starting_files(config: VlmHoiConfig) -> tuple[Path, ...]:
    """The weight files of ``start``.

    Raises:
        UserError: there is none.
    """
    if config.start is None:
        return ()
    path = starting_place(config.start)
    if not path.exists():
        raise UserError(f"student.start: {path}: no weights there; give a detector's folder, a .pth file or a hub id")
    try:
        if path.is_file():
            weight_files.refuse_cut(path)
            return (path,)
        found = weight_files.weight_files(path)
    except UserError as error:
        raise UserError(f"student.start: {error}") from None
    found.tell_unread()
    return found.files


def starting_place(start: str) -> Path:
    """The file or folder that ``start`` names; a model hub's repository of that name is fetched. A folder without weights
    that transformers reads, but with one ``.pth``, stands for that file.

    Raises:
        UserError: there is none.
    """
    path = Path(os.path.expanduser(start))
    if not path.exists() and start.count("/") == 1:
        try:
            path = weight_files.fetch(start, None, ("*.json",), FOREIGN_WEIGHTS)
        except UserError as error:
            raise UserError(f"student.start: {error}") from None
    if path.is_dir() and not any((path / name).exists() for kind in weight_files.KINDS for name in kind):
        foreign = [file for pattern in FOREIGN_WEIGHTS for file in path.glob(pattern)]
        return foreign[0] if len(foreign) == 1 else path
    return path
