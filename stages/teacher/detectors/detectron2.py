"""Detectors of detectron2: Faster R-CNN, RetinaNet, ViTDet, whatever a yaml or a lazy configuration describes.

detectron2 is no dependency of this project; who wants it installs it (:data:`INSTALL`). Only its public interface is
used: the configuration as detectron2 itself resolves it, its test-time augmentation, its checkpointer, and the model's
own inference, whose score threshold is set to zero so that the best boxes of every image are kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, canonical, part_size
from hoi_distill.stages.keys import GpuShare
from hoi_distill.stages.stage import ArrowOutput, Batch, Resources, Stage, Values
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.detectors.transformers import cells, group_in_parts, label_map
from hoi_distill.storage.digests import digest_of_file, fingerprint
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

COMMIT = "02b5c4e295"
INSTALL = (
    "pip install 'setuptools<82' torchvision==0.28.0 && pip install --no-build-isolation "
    f"git+https://github.com/facebookresearch/detectron2@{COMMIT}"
)
"""detectron2 is in no package index; this commit was built against torch 2.13. It needs torchvision's compiled kernels,
which need a CUDA build of torch, and ``pkg_resources``, which newer setuptools lack."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration as detectron2 resolves it.

    Attributes:
        text: all of it that decides boxes, as text: what the table's fingerprint covers.
        classes: names by class number, () where the configuration's test data set is not known.
        lazy: which of the two kinds it is.
    """

    record: Any
    text: str
    classes: tuple[str, ...]
    lazy: bool

    def model(self, device: str) -> Any:
        """The network on ``device``, freshly initialised."""
        if self.lazy:
            from detectron2.config import instantiate

            return instantiate(self.record.model).to(device)
        from detectron2.modeling import build_model

        record = self.record.clone()
        record.MODEL.DEVICE = device
        return build_model(record)

    def augmentations(self) -> tuple[Any, Literal["RGB", "BGR"]]:
        """What a test image goes through, and the order of its channels."""
        from detectron2.data import transforms

        if self.lazy:
            from detectron2.config import instantiate

            mapper = self.record.dataloader.test.mapper
            return transforms.AugmentationList(instantiate(mapper.augmentations)), mapper.image_format
        from detectron2.data.detection_utils import build_augmentation

        return transforms.AugmentationList(build_augmentation(self.record, is_train=False)), self.record.INPUT.FORMAT


def resolve(config: str) -> ResolvedConfig:
    """Read a configuration file, or one of detectron2's own by its name in the model zoo.

    Raises:
        UserError: detectron2 is absent, or there is no such configuration.
    """
    try:
        from detectron2 import model_zoo
        from detectron2.config import LazyConfig, get_cfg
        from detectron2.data import MetadataCatalog
        from omegaconf import OmegaConf
    except (ImportError, RuntimeError, OSError) as error:  # torchvision without its kernels raises RuntimeError
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"detectron2 cannot be imported ({why}); install it with: {INSTALL}") from None
    try:
        path = config if Path(config).is_file() else model_zoo.get_config_file(config)
        lazy = path.endswith(".py")
        if lazy:
            record = LazyConfig.load(path)
            test = record.dataloader.test
            decides = [OmegaConf.to_container(part, resolve=True) for part in (record.model, test.mapper)]
            text, name = json.dumps(described(decides), sort_keys=True), test.dataset.names
        else:
            record = get_cfg()
            record.merge_from_file(path)
            record.MODEL.WEIGHTS = ""  # a path, and none of the model's properties
            text = "\n".join(part.dump() for part in (record.MODEL, record.INPUT))
            name = record.DATASETS.TEST
    except Exception as error:  # yacs, omegaconf and the configuration's own code raise what they like
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{config}: not a detectron2 configuration that can be read: {why}") from error
    first = name if isinstance(name, str) else next(iter(name), "")
    classes = MetadataCatalog.get(first).get("thing_classes", ()) if first else ()
    return ResolvedConfig(record, text, tuple(classes), lazy)


def described(value: Any) -> Any:
    """A resolved lazy configuration as JSON: classes and functions by their names, other objects by what they print,
    without their places in memory."""
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@lru_cache(maxsize=16)
def _weights_digest(path: str, _size: int, _mtime_ns: int) -> str:
    """32 hex digits. Size and time only key the memory."""
    return digest_of_file(path).hex()


class Detectron2Detector(Stage):
    """Boxes by a detectron2 model, in the cells that every detector fills.

    Raises:
        UserError: detectron2 is absent, or configuration or weights cannot be read; when opened, files that are no longer
            those that were planned with, weights that leave parameters of the model unfilled, or a model whose unknown
            classes cannot be left out.
    """

    name = "detections"
    columns = ("value",)
    output = ArrowOutput(DETECTIONS)

    class Config(Stage.Config):
        config: str
        """A ``.yaml`` or ``.py`` (lazy) file, or a name of detectron2's model zoo."""
        weights: str
        """The model's ``.pth`` or ``.pkl``. A ``.pkl`` is unpickled by detectron2: take it only from whom you trust."""
        labels: tuple[str, ...] | None = None
        """Names of the model's classes by number; default: those of the configuration's test data set."""
        unknown_labels: Literal["refuse", "drop"] = "refuse"
        """What becomes of classes outside COCO's 80: refuse the model, or drop their boxes before the best of an image
        are chosen."""
        hico_tuned: bool = False
        """The weights were fine-tuned on HICO-DET's boxes; recorded in the table's provenance."""
        batch_size: BatchSize = 8
        """Images that are looked at together, those of one preprocessed size in one forward; or ``auto``: as many as
        the GPU's memory holds. Where memory runs out, the forward is halved and the run goes on."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        resolved = resolve(config.config)
        file = Path(os.path.expanduser(config.weights))
        if not file.is_file():
            raise UserError(f"{config.weights}: no such weights file; give a .pth or .pkl on this machine")
        names = config.labels if config.labels is not None else resolved.classes
        self.labels, self.dropped = label_map({"id2label": dict(enumerate(names))}, config.config)
        if self.dropped and config.unknown_labels == "refuse":
            raise UserError(
                f"{config.config}: classes that are no COCO objects: {', '.join(self.dropped[:8])}; "
                "give labels or set unknown_labels: drop"
            )
        self.config, self.weights, self.hico_tuned = config.config, str(file.resolve()), config.hico_tuned
        self.classes = names
        self.digest = self._identity(resolved)
        self.chosen_batch = config.batch_size
        self.batch_size, self.resources = canonical(config.batch_size), Resources(gpus=config.gpus)

    def _identity(self, resolved: ResolvedConfig) -> str:
        stat = Path(self.weights).stat()
        weights = _weights_digest(self.weights, stat.st_size, stat.st_mtime_ns)
        return fingerprint({"config": resolved.text, "weights": weights, "classes": list(self.classes)})

    @override
    def parameters(self) -> dict[str, Any]:
        described = {"detector": self.digest, "dtype": "float32", "top": TOP, "dropped_labels": list(self.dropped)}
        return {**described, "top_of": "known classes"} if self.dropped else described

    @override
    def provenance(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "weights": self.weights,
            "detectron2": COMMIT,
            "hico_tuned": self.hico_tuned,
        }

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        key = ("detectron2", self.digest, device)
        if key not in shared:
            resolved = resolve(self.config)
            if self._identity(resolved) != self.digest:
                raise UserError(
                    f"{self.weights}: not the weights, or {self.config} not the configuration, that this run was planned with; "
                    "plan and start again"
                )
            model = load(resolved.model(device), self.weights)
            if self.dropped:
                leave_out_others(model, tuple(self.labels), self.weights)
            shared[key] = model, *resolved.augmentations()
        self.model, self.augment, self.channels = shared[key]
        self.rows = part_size(shared, key, self.chosen_batch)
        self.device = device

    @override
    def __getstate__(self) -> dict[str, Any]:
        """The plain parameters: what :meth:`open` loaded stays on its worker."""
        opened = ("model", "augment", "channels", "rows", "device")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        images, asked = batch.images, self.prepared(batch)
        groups: dict[tuple[int, ...], list[int]] = {}  # of one size, so that nothing is padded to a neighbour's
        for index, each in enumerate(asked):
            groups.setdefault(tuple(each["image"].shape), []).append(index)
        found: list[tuple[np.ndarray, ...]] = [()] * len(images)
        with torch.inference_mode():
            for members in groups.values():
                answers = self._in_parts([asked[index] for index in members])
                for index, answer in zip(members, answers, strict=True):
                    found[index] = answer
        return {"value": cells(found, [image.size for image in images], DETECTIONS)}

    def _in_parts(self, asked: Sequence[Mapping[str, Any]]) -> list[tuple[np.ndarray, ...]]:
        """The boxes of images of one size, in forwards that memory holds."""

        def forward(positions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
            answers = self.model([asked[position] for position in positions])
            return [self._kept(answer["instances"].to("cpu")) for answer in answers]

        return group_in_parts(forward, len(asked), self.rows, self.device)

    @override
    def prepare(self, image: Image.Image) -> dict[str, Any]:
        """What detectron2's models take for one image: float32 ``[3, h, w]`` in 0 to 255 and the original size."""
        import torch
        from detectron2.data import transforms

        pixels = np.asarray(image.convert("RGB"))
        changed = transforms.AugInput(np.ascontiguousarray(pixels[:, :, ::-1] if self.channels == "BGR" else pixels))
        self.augment(changed)
        pixels_of_view = torch.from_numpy(np.ascontiguousarray(changed.image.transpose(2, 0, 1)).astype(np.float32))
        return {"image": pixels_of_view, "height": image.height, "width": image.width}

    def _kept(self, instances: Any) -> tuple[np.ndarray, ...]:
        """Boxes ``[K, 4]``, scores ``[K]`` and COCO-80 labels ``[K]``, best first; the model has clipped the boxes."""
        names = np.full(int(instances.pred_classes.max()) + 1 if len(instances) else 1, -1)
        for number, label in self.labels.items():
            names[number : number + 1] = label
        labels = names[instances.pred_classes.numpy()]
        scores = instances.scores.numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[labels[order] >= 0][:TOP]
        return instances.pred_boxes.tensor.numpy()[order], scores[order], labels[order]


def load(model: Any, weights: str) -> Any:
    """``model`` with all of ``weights``, in evaluation mode, without a score floor, keeping :data:`TOP` boxes.

    Raises:
        UserError: a parameter that the file does not fill, or a model whose score threshold cannot be set.
    """
    import torch
    from detectron2.checkpoint import DetectionCheckpointer

    expected = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not key.endswith(("pixel_mean", "pixel_std"))
    }
    for tensor in expected.values():  # the checkpointer only logs what it does not find: mark it beforehand
        tensor.fill_(torch.nan)
    DetectionCheckpointer(model).load(weights)
    if missing := sorted(key for key, tensor in expected.items() if tensor.isnan().any()):
        more = ", ..." if len(missing) > 4 else ""
        raise UserError(f"{weights}: {len(missing)} weights of the model are missing ({', '.join(missing[:4])}{more})")
    settings = {"test_score_thresh": 0.0, "test_topk_per_image": TOP, "max_detections_per_image": TOP}
    found = set()
    for module in model.modules():
        for name, value in settings.items():
            if hasattr(module, name):
                setattr(module, name, value)
                found.add(name)
        for name, value in {"mask_on": False, "keypoint_on": False}.items():  # boxes alone are wanted
            if hasattr(module, name):
                setattr(module, name, value)
    if "test_score_thresh" not in found:
        raise UserError(f"{weights}: {type(model).__name__} has no test_score_thresh; its score floor cannot be lifted")
    return model.eval().requires_grad_(requires_grad=False)


def leave_out_others(model: Any, known: Sequence[int], weights: str) -> None:
    """Give every class but the ``known`` ones a score of 0, which the floor of 0 leaves out, before the model chooses its
    best boxes; no other score changes.

    A box head's classes go by its ``predict_probs`` (``[R, K + 1]``, the last is the background, as softmax needs it), a
    dense detector's by the logits of its ``head`` (``[N, A x K, H, W]`` a level), of which each is a sigmoid of its own.

    Raises:
        UserError: the model has neither.
    """
    import torch

    def others(classes: int, device: Any) -> torch.Tensor:
        mask = torch.ones(classes, dtype=torch.bool, device=device)
        mask[[number for number in known if number < classes]] = False
        return mask

    def of_boxes(predict_probs: Callable[..., Any]) -> Callable[..., Any]:
        def masked(*arguments: Any) -> tuple[torch.Tensor, ...]:
            found = predict_probs(*arguments)
            return tuple(part.masked_fill(pad(others(part.shape[1] - 1, part.device), (0, 1)), 0) for part in found)

        return masked

    def of_a_grid(_head: Any, _inputs: Any, predictions: Any) -> tuple[Any, ...]:
        logits, *rest = predictions
        gone = others(model.num_classes, logits[0].device)
        anchors = [level.shape[1] // len(gone) for level in logits]
        masks = [gone.repeat(each)[:, None, None] for each in anchors]
        return [level.masked_fill(mask, -torch.inf) for level, mask in zip(logits, masks, strict=True)], *rest

    pad = torch.nn.functional.pad
    heads = [module for module in model.modules() if hasattr(module, "predict_probs")]
    for head in heads:
        head.predict_probs = of_boxes(head.predict_probs)
    if not heads and hasattr(model, "num_classes") and hasattr(model, "head"):
        model.head.register_forward_hook(of_a_grid)
    elif not heads:
        raise UserError(
            f"{weights}: {type(model).__name__} has no box head or grid of logits whose classes can be told apart; "
            "unknown_labels: drop cannot be done with it"
        )
