"""What MUREN starts from: a DETR, a pico RT-DETR, or a checkpoint of MUREN's or CDN's released code; nothing in silence."""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.checkpoints import detr_state_dict as detr_names
from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.checkpoints.weight_files import weight_files
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.student.methods.vlm_hoi import muren_names
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.storage.errors import UserError

DETECTORS = ("DetrForObjectDetection", "RTDetrForObjectDetection", "RTDetrV2ForObjectDetection")
COUNTERS = "num_batches_tracked"
DEPTH = {"encoder": 3, "decoders": 3, "fusions": 3, "norms": 2, "queries": 2}
"""How many words of a name say which layer or head it belongs to; 1 elsewhere."""


@dataclass(frozen=True)
class LoadReport:
    """Which weights came from where; names of this network, but for ``unexpected``, which are the source's.

    Attributes:
        found: loaded.
        missing: not in the source: they keep what they had, random in a new network.
        unexpected: in the source, but without a place here.
        mismatched: in both with different shapes, "name: source's against own"; they and their layer are missing.
    """

    found: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...] = ()

    @override
    def __str__(self) -> str:
        """One line: how many of which part."""
        kinds = {"found": self.found, "missing": self.missing, "unexpected": self.unexpected}
        parts = [f"{kind}: {_counted(names)}" for kind, names in kinds.items()]
        if self.mismatched:
            parts.append(f"of other shape: {'; '.join(self.mismatched)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class SourceWeights:
    """A checkpoint under this network's names.

    Attributes:
        unexpected: its keys that have no place here.
        heads: its encoder's attention heads, which shapes do not show.
        classes: COCO-80 index of each of its object classes, and its classifier; None without one that can be used.
    """

    weights: dict[str, Tensor]
    unexpected: tuple[str, ...]
    heads: int = 8
    classes: tuple[dict[int, int], Tensor, Tensor] | None = None


def initialise(
    model: Muren, source: Path | None, *, allow_random_decoder: bool = False, decoders_from_detr: bool = False
) -> LoadReport:
    """Load what fits of ``source`` into ``model``. What does not fit stays as it is and is reported; a layer or head of
    which a single tensor has another shape stays whole.

    Args:
        model: the network.
        source: a folder of transformers' DETR or RT-DETR (Hub layouts around timm's ResNet too), or a ``.pth`` of the
            original DETR, of MUREN's or of CDN's code; None: start from nothing. Images must then be normalised as that
            checkpoint wants.
        allow_random_decoder: decoder layers that the source lacks may start random.
        decoders_from_detr: start the three decoders from the one of DETR (CDN: the two), with its queries (the first N)
            and box and object heads, wherever shapes agree.

    Raises:
        UserError: the source cannot be read; frozen weights or, unless allowed, decoder layers would stay random; the
            source's attention has another number of heads.
    """
    source_name = str(source) if source is not None else "no start given"
    read = SourceWeights({}, ()) if source is None else _read(source, model, decoders_from_detr)
    own = model.state_dict()
    weights = dict(read.weights)
    for name in [key for key in weights if key.startswith("queries.")]:
        weights[name] = weights[name][: model.config.queries]
    if decoders_from_detr and read.classes is not None and model.config.objects == len(COCO_OBJECTS):
        weights |= _object_classifier(own, *read.classes)
    odd = [key for key, each in weights.items() if key in own and each.shape != own[key].shape]
    spoilt = {_part(key) for key in odd}
    fitting = {key: each for key, each in weights.items() if key in own and _part(key) not in spoilt}
    if read.heads != model.config.heads and any("_proj." in key for key in fitting):
        raise UserError(
            f"heads: {model.config.heads}, but {source_name} has {read.heads} a layer; set heads: {read.heads}"
        )
    found = {key for key in fitting if not key.endswith(COUNTERS)}
    missing = {key for key in own if not key.endswith(COUNTERS)} - found
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad and name in missing]
    if frozen:
        raise UserError(
            f"{source_name}: {len(frozen)} frozen weights of the backbone would stay random; give a start that has them, or set "
            "frozen_stages: 0 and frozen_batch_norm: false"
        )
    random = [name for name in missing if name.startswith("decoders.")]
    if random and not allow_random_decoder:
        raise UserError(
            f"{source_name}: {len(random)} weights of the decoders are not in it and would start random; set "
            "allow_random_decoder: true if that is meant, or decoders_from_detr: true to start them from a DETR's decoder"
        )
    model.load_state_dict(fitting, strict=False)
    return LoadReport(
        tuple(sorted(found)),
        tuple(sorted(missing)),
        (*read.unexpected, *sorted(key for key in weights if key not in own and not key.endswith(COUNTERS))),
        tuple(f"{key}: {list(weights[key].shape)} against {list(own[key].shape)}" for key in odd),
    )


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[: DEPTH.get(words[0], 1)])


def _read(source: Path, model: Muren, decoders: bool) -> SourceWeights:
    if not source.exists():
        raise UserError(f"{source}: no such checkpoint; give a folder with config.json or a .pth file")
    return _folder(source, model, decoders) if source.is_dir() else _file(source, model, decoders)


def _folder(folder: Path, model: Muren, decoders: bool) -> SourceWeights:
    detector = _detector(folder)
    state = {key: each for key, each in detector.state_dict().items() if not key.endswith(COUNTERS)}
    heads = detector.config.encoder_attention_heads
    if not type(detector).__name__.startswith("Detr"):
        eps = detector.config.batch_norm_eps
        return SourceWeights(*muren_names.from_rt_detr(state, model.backbone.channels, eps), heads=heads)
    names = {str(name).lower().replace(" ", "_"): int(key) for key, name in detector.config.id2label.items()}
    labels = {number: OBJECT_INDEX[name] for name, number in names.items() if name in OBJECT_INDEX}
    return _of_detr(state, labels, decoders, heads)


def _file(path: Path, model: Muren, decoders: bool) -> SourceWeights:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the training arguments beside the weights
            record = torch.load(path, map_location="cpu", weights_only=True)
        weights = record.get("model", record)
        if not all(isinstance(each, Tensor) for each in weights.values()):
            raise TypeError("it holds other things than tensors")
    except Exception as error:  # torch raises half a dozen classes for a file that it cannot or may not read
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no checkpoint that can be read safely ({why}); give a .pth of weights") from error
    if "query_embed_human.weight" in weights:
        return SourceWeights(*muren_names.from_muren(weights, model.config, str(path)))
    if "sub_bbox_embed.layers.0.weight" in weights:
        return SourceWeights(*muren_names.from_cdn(weights, decoders, str(path)))
    labels = dict(zip(COCO_CATEGORY_IDS, range(len(COCO_OBJECTS)), strict=True))
    return _of_detr(detr_names.translated(weights, str(path)), labels, decoders, 8)


def _of_detr(state: Mapping[str, Tensor], labels: dict[int, int], decoders: bool, heads: int) -> SourceWeights:
    found, left = muren_names.from_detr(state, decoders)
    weight, bias = state["class_labels_classifier.weight"], state["class_labels_classifier.bias"]
    usable = labels and max(labels) < len(weight) - 1  # the last row is "no object"
    return SourceWeights(found, left, heads, (labels, weight, bias) if usable else None)


def _object_classifier(
    own: Mapping[str, Tensor], labels: dict[int, int], weight: Tensor, bias: Tensor
) -> dict[str, Tensor]:
    """The detector's rows in COCO-80 order, its "no object" last; "object missing" between them and classes that the
    detector does not know keep their random rows."""
    found = {}
    for part, theirs in (("weight", weight), ("bias", bias)):
        rows = own[f"object_classifier.{part}"].clone()
        if rows.shape[1:] == theirs.shape[1:]:
            rows[list(labels.values())] = theirs[list(labels)]
            rows[-1] = theirs[-1]
            found[f"object_classifier.{part}"] = rows
    return found


def _detector(folder: Path) -> Any:
    """The detector in a folder, whole, as transformers' class: its names are then today's, whatever the file's."""
    import transformers
    from transformers.utils import logging

    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = record["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder}/config.json: names no architecture ({error}); give a detector's folder") from None
    if name not in DETECTORS:
        raise UserError(f"{folder}: cannot start from {name}; there are {', '.join(DETECTORS)}")
    weights = weight_files(folder)
    instead: dict[str, Any] = {}
    if config := timm_backbone.replaced(record, f"{folder}/config.json"):
        kind = transformers.CONFIG_MAPPING[config["model_type"]]
        instead = {"config": kind.from_dict(config), "state_dict": timm_backbone.read(weights.files)}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # about the speed of widths that are no power of 2
            warnings.filterwarnings("ignore", message="You'd better set embed_dim")
            detector, info = getattr(transformers, name).from_pretrained(
                None if instead else folder,
                local_files_only=True,
                use_safetensors=weights.safe,
                dtype=torch.float32,
                output_loading_info=True,
                **instead,
            )
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: the weights cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise UserError(f"{folder}: the weights do not fill {name} ({_counted(info['missing_keys'])} missing)")
    return detector


def _counted(names: Iterable[str]) -> str:
    """``600 (backbone 265, decoders 468)``: by the first word, "model." left out."""
    parts = Counter(name.removeprefix("model.").split(".")[0] for name in names)
    return f"{parts.total()} ({', '.join(f'{part} {count}' for part, count in parts.items())})" if parts else "0"
