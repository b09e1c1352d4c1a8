"""Detectors exported as ONNX graphs, computed by onnxruntime: YOLO, DETR, RT-DETR, NanoDet and SSD by a declared layout.

A cell is that of :mod:`hoi_distill.stages.teacher.detectors.given`. Every image goes through the graph alone, as most exports
take one image, so its boxes do not depend on its batch. onnxruntime and onnx are the extra ``onnx``.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count, Fraction, GpuShare, Positive
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import ArrowOutput, Batch, Resources, Stage, Values
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.detectors.letterbox import Filter, Fit, Placement, fitted
from hoi_distill.stages.teacher.detectors.onnx_layouts import LAYOUTS, Sides, class_count, nanodet_anchors
from hoi_distill.stages.teacher.detectors.transformers import cells, label_map
from hoi_distill.storage.digests import digest_of_file, fingerprint
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pip install 'hoi-distill[onnx]'"
LayoutName = Literal[
    "yolo", "yolo_objectness", "yolo_end_to_end", "detr", "rt_detr", "rt_detr_joined", "nanodet", "ssd"
]


class OnnxDetector(Stage):
    """Boxes by a detector that was exported as an ONNX graph: YOLO, DETR, RT-DETR, NanoDet or SSD.

    The key ``layout`` says what the graph's outputs are; a graph with others is refused when it is planned. Needs the extra
    ``onnx``.
    """

    name = "detections"
    columns = ("value",)
    output = ArrowOutput(DETECTIONS)

    class Config(Stage.Config):
        path: str
        """The ``.onnx`` file; weights in files beside it count as its own."""
        layout: LayoutName
        """The graph's outputs: ``yolo`` (v8, v9, 11, 12), ``yolo_objectness`` (v5, v7), ``yolo_end_to_end`` (v10, or exports
        with suppression inside), ``detr``, ``rt_detr``, ``rt_detr_joined`` (both in one output), ``nanodet``, ``ssd``."""
        labels: tuple[str, ...] | None = None
        """Names of the classes by number, from 0. Default: the names in the graph's own metadata, else COCO's as the layout
        counts them."""
        unknown_labels: Literal["refuse", "drop"] = "refuse"
        """What becomes of classes that are no objects of the vocabulary: refuse the graph, or drop their boxes."""
        size: tuple[Count, Count] | None = None
        """Width and height of the input; needed where the graph leaves them open."""
        fit: Fit | None = None
        """How an image is placed in the input: ``letterbox``, ``corner`` or ``stretch``. Default: as the layout's authors do."""
        filter: Filter | None = None
        """How it is resized: ``linear``, as OpenCV does, or ``antialias``, as Pillow does."""
        channels: Literal["rgb", "bgr"] | None = None
        """Order of the input's channels."""
        mean: tuple[float, float, float] | None = None
        """What is taken from a pixel / 255, by channel in the input's order."""
        std: tuple[Positive, Positive, Positive] | None = None
        """What it is then divided by. An input of bytes is given the pixels as they are."""
        overlap: Fraction | None = None
        """IoU from which the better of two boxes of a class suppresses the other. Default: the layout's; graphs with
        suppression inside, DETR and RT-DETR have none."""
        hico_tuned: bool = False
        """The weights were fine-tuned on HICO-DET's boxes; recorded in the table's provenance."""
        batch_size: Count = 8
        """Images that are prepared together."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies; needs ``onnxruntime-gpu``."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        self.path = str(Path(os.path.expanduser(config.path)).resolve())
        graph, layout = read_graph(config.path), LAYOUTS[config.layout]
        try:
            classes = class_count(layout, graph.outputs)
        except ValueError:
            raise UserError(f"{config.path}: layout {config.layout} is {layout.says}; {graph.told()}") from None
        self.size = input_size(graph, config)
        if config.layout == "nanodet" and (anchors := graph.outputs[0][1]):
            try:
                nanodet_anchors(self.size, anchors)
            except ValueError as error:
                raise UserError(f"{config.path}: {error}; give the size that it was exported for") from None
        self.labels, self.dropped = self._labels(config, graph, classes, vocabulary.objects)
        self.layout, self.bytes, self.last = config.layout, graph.kind == "uint8", graph.last
        self.fit, self.filter = config.fit or layout.fit, config.filter or layout.filter
        self.channels = config.channels or layout.channels
        self.mean, self.std = config.mean or layout.mean, config.std or layout.std
        self.overlap = layout.overlap if config.overlap is None else config.overlap
        self.digest, self.hico_tuned = graph.digest, config.hico_tuned
        self.batch_size, self.resources = config.batch_size, Resources(gpus=config.gpus)

    @staticmethod
    def _labels(
        config: OnnxDetector.Config, graph: Graph, classes: int | None, objects: Sequence[str]
    ) -> tuple[dict[int, int], tuple[str, ...]]:
        """``{class: label}`` and the classes that are no objects."""
        names: Mapping[int, str] = LAYOUTS[config.layout].classes or dict(enumerate(COCO_OBJECTS))
        if config.labels is not None:
            names = dict(enumerate(config.labels))
        elif graph.names:
            names = graph.names
        if classes is not None and classes != max(names) + 1:
            raise UserError(f"{config.path}: labels: the graph has {classes} classes; give as many names")
        found, dropped = label_map({"id2label": names}, config.path, objects)
        if dropped and config.unknown_labels == "refuse":
            raise UserError(
                f"{config.path}: classes that are no objects of the vocabulary: {', '.join(dropped[:8])}"
                f"{', ...' if len(dropped) > 8 else ''}; give labels or set unknown_labels: drop"
            )
        return found, dropped

    @override
    def parameters(self) -> dict[str, Any]:
        scaled = [] if self.bytes else [list(self.mean), list(self.std)]  # bytes go in as they are
        return {
            "detector": self.digest,
            "layout": self.layout,
            "size": list(self.size),
            "pixels": [self.fit, self.filter, self.channels, *scaled],
            "image_backend": "pil",
            "labels": fingerprint({"labels": sorted(self.labels.items())}),
            "dropped_labels": list(self.dropped),
            "overlap": self.overlap,
            "top": TOP,
        }

    @override
    def provenance(self) -> dict[str, Any]:
        return {"checkpoint": self.path, "hico_tuned": self.hico_tuned}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("session", "input")}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        key = ("onnx", self.digest, device)
        if key not in shared:
            if read_graph(self.path).digest != self.digest:
                raise UserError(f"{self.path}: not the graph that this run was planned with; plan and start again")
            shared[key] = session(self.path, device)
        self.session = shared[key]
        self.input = self.session.get_inputs()[0].name

    @override
    def prepare(self, image: Image.Image) -> np.ndarray:
        """The graph's input of one image: float32 ``[1, 3, H, W]``, or bytes, or with the channels last."""
        pixels = fitted(image, self.size, self.fit, self.filter)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        if not self.bytes:
            values = pixels.astype(np.float32) / np.float32(255)
            pixels = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray((pixels if self.last else pixels.transpose(2, 0, 1))[None])

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        found = [
            self._found(pixels, image.size)
            for pixels, image in zip(self.prepared(batch)[: batch.count], batch.images, strict=False)
        ]
        found += found[-1:] * (len(batch.images) - len(found))
        return {"value": cells(found, [image.size for image in batch.images], DETECTIONS)}

    def _found(self, pixels: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes in pixels of an image of (width, height), scores and labels: the best :data:`TOP`."""
        outputs = self.session.run(None, {self.input: pixels})
        if not all(np.isfinite(each).all() for each in outputs if each.dtype.kind == "f"):
            raise FloatingPointError(f"table {self.name}: the answers of {self.path} are not finite")
        boxes, scores, classes = LAYOUTS[self.layout].read(outputs, self.size)
        boxes = Placement.of(size, self.size, self.fit).back(boxes)
        labels = np.array([self.labels.get(each, -1) for each in classes.tolist()], np.int64)
        there = np.flatnonzero((labels >= 0) & (box_ops.area(boxes) > 0))
        boxes, scores, labels = boxes[there], scores[there], labels[there]
        apart = np.inf if self.overlap is None else self.overlap
        best = box_ops.best_apart(boxes, scores, labels, apart, TOP)
        return boxes[best], scores[best], labels[best]


class Graph(NamedTuple):
    """What a file says of itself.

    Attributes:
        digest: 32 hex digits over its bytes and those of the files of its weights.
        kind: of the input's numbers, ``float32`` or ``uint8``.
        shape: of its first input.
        last: whether the channels come last.
        outputs: the shapes of its outputs.
        names: class names in its metadata, by number; {} where there are none.
    """

    digest: str
    kind: str
    shape: Sides
    last: bool
    outputs: tuple[Sides, ...]
    names: Mapping[int, str]

    def told(self) -> str:
        """The outputs and the layouts that have such."""
        fits = [name for name, layout in LAYOUTS.items() if _fits(layout, self.outputs)]
        shown = ", ".join(f"[{', '.join('?' if n is None else str(n) for n in each)}]" for each in self.outputs)
        return f"the graph has {shown}" + (f"; that may be {' or '.join(fits)}" if fits else ", as no layout has")


def _fits(layout: Any, shapes: Sequence[Sides]) -> bool:
    try:
        class_count(layout, shapes)
    except ValueError:
        return False
    return True


def input_size(graph: Graph, config: OnnxDetector.Config) -> tuple[int, int]:
    """Width and height of the input.

    Raises:
        UserError: the graph and the configuration leave them open, or they contradict each other.
    """
    height, width = graph.shape[1:3] if graph.last else graph.shape[2:4]
    declared = None if width is None or height is None else (width, height)
    if config.size is None and declared is None:
        raise UserError(f"{config.path}: size: the graph leaves the size of its input open; give [width, height]")
    if config.size is not None and declared is not None and config.size != declared:
        raise UserError(f"{config.path}: size: {list(config.size)}, but the graph's input is {list(declared)}")
    size = config.size or declared
    assert size is not None
    return size


def read_graph(path: str) -> Graph:
    """What an ONNX file takes and gives.

    Raises:
        UserError: it is missing or cannot be read, onnx is not installed, or its input is no image.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError(f"{path}: no such file; give an .onnx file on this machine")
    stat = file.stat()
    return _read_graph(str(file.resolve()), path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_graph(file: str, told: str, _size: int, _mtime_ns: int) -> Graph:
    """Size and time only key the memory."""
    try:
        import onnx
    except ImportError:
        raise UserError(f"{told}: onnx is not installed; install the extra: {INSTALL}") from None
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise UserError(f"{told}: cannot be read as an ONNX graph ({type(error).__name__}); export it again") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    shapes = [_sides(each) for each in inputs]
    if (
        len(inputs) != 1
        or len(shapes[0]) != 4
        or 3 not in (shapes[0][1], shapes[0][3])
        or shapes[0][0] not in (1, None)
    ):
        raise UserError(
            f"{told}: its inputs are {', '.join(f'{each.name} {list(s)}' for each, s in zip(inputs, shapes, strict=True))}; "
            "one image [1, 3, height, width] or [1, height, width, 3] is needed"
        )
    kind = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type).name
    if kind not in ("float32", "uint8"):
        raise UserError(f"{told}: its input is {kind}; export it with an input of float32 or uint8")
    beside = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    files = [Path(file), *(Path(file).parent / name for name in sorted(beside))]
    names = {entry.key: entry.value for entry in model.metadata_props}.get("names", "")
    return Graph(
        digest=_digest(files, told),
        kind=kind,
        shape=shapes[0],
        last=shapes[0][1] != 3,
        outputs=tuple(_sides(each) for each in model.graph.output),
        names=_names(names),
    )


def _sides(value: Any) -> Sides:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None for side in sides)


def _names(text: str) -> dict[int, str]:
    """Class names as YOLO's exports write them, ``{0: 'person', ...}``."""
    try:
        found = ast.literal_eval(text)
        return {int(key): str(name) for key, name in found.items()} if isinstance(found, dict) else {}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return {}


def _digest(files: Sequence[Path], told: str) -> str:
    values = {}
    for number, each in enumerate(files):
        if not each.is_file():
            raise UserError(f"{told}: its weights lie in {each.name}, which is not beside it; fetch both files")
        values[str(number)] = digest_of_file(each).hex()
    return fingerprint(values)


def session(path: str, device: str) -> Any:
    """An open graph on a device.

    Raises:
        UserError: onnxruntime is absent, cannot open the graph, or has no such device.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: onnxruntime is not installed; install the extra: {INSTALL}") from None
    import torch

    kind, _, number = device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(f"{path}: this onnxruntime has no CUDA; pip install onnxruntime-gpu, or compute on the CPU")
        providers = [("CUDAExecutionProvider", {"device_id": int(number or 0)}), *providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(f"{path}: onnxruntime cannot open it: {str(error).splitlines()[0]}; export it again") from error
