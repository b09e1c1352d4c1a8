"""``hoi-distill export``: student, encoder and detector as ONNX graphs, compared with the networks that they came from."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.detector import load_image, other_boxes, own_stage, said_stage, without_pairs
from hoi_distill.pipeline.extras import refuse_missing_packages
from hoi_distill.pipeline.prediction_inputs import named_files
from hoi_distill.stages.exported_graph import ExportedGraph
from hoi_distill.stages.stage import Stage, TensorOutput
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.student import Student
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_path, write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

NOISE = ((320, 240), (240, 320), (256, 256))
"""Sizes of the images of noise that graphs are compared on where nobody gives images."""
BEST = 10
"""So many triplets of an image must be the same, in the same order."""
BOXES = 50
"""So many boxes of an image are compared, the best."""
LARGEST = 1e-3
"""Largest difference of scores. Those of a larger one are not written."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass
class Comparison:
    """What graphs answer beside what the networks do.

    Attributes:
        images: how many were compared.
        triplets: how many scores were compared.
        features: largest difference of a feature map's numbers, which are of the size of 1.
        boxes: largest difference of a detected box, in pixels.
        detection_scores: largest difference of a detection's score.
        scores: largest difference of a triplet's score.
        same_best: images whose best triplets are the same in the same order.
    """

    images: int = 0
    triplets: int = 0
    features: float = 0.0
    boxes: float = 0.0
    detection_scores: float = 0.0
    scores: float = 0.0
    same_best: int = 0

    def widen(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Take the largest difference of two arrays of one shape into account."""
        if ours.size:
            setattr(self, name, max(getattr(self, name), float(np.abs(ours - theirs).max())))


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        graphs: file names by part.
        left_out: why a part was not exported, by its name.
        compared: how far the graphs are from the networks.
        on: what they were compared on, a noun phrase.
    """

    graphs: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    compared: Comparison = field(default_factory=Comparison)
    on: str = ""


def export_checkpoint(
    checkpoint: Path, out: Path, *, images: Sequence[Path] = (), detector: str | None = None
) -> Exported:
    """Write ``student.onnx``, ``encoder.onnx``, ``detector.onnx`` and ``export.json`` into a folder.

    A part that is no graph of one fixed size is left out and named. Graphs are compared with the networks before anything is
    written.

    Args:
        checkpoint: the folder of the student's checkpoint.
        out: the folder that is written to.
        images: images, and folders of them, on which graphs and networks are compared; default: noise.
        detector: a detector's folder or hub id, instead of the one that the student was trained with.

    Raises:
        UserError: a package is missing, students of this method are not exported, an image cannot be read, ``out`` cannot be
            written, or graphs and networks differ.
    """
    refuse_missing_packages(PACKAGES, "onnx")
    refuse_unwritable("--out", out, folder=True)
    with working("loading the student"):
        student = load_student(checkpoint)
    parts = Parts.of(checkpoint, student, detector)
    shown = [load_image(path) for path in named_files(images).values()] if images else noise()
    exported = Exported(on=f"{len(shown)} image{'' if len(shown) == 1 else 's'}{'' if images else ' of noise'}")
    graphs = {"student": parts.student_graph()}
    for name in ("encoder", "detector"):
        try:
            graphs[name] = parts.graph(name, shown[0])
        except UserError as error:
            exported.left_out[name] = str(error)
    with tempfile.TemporaryDirectory() as scratch, working("exporting") as watch:
        for name, graph in graphs.items():
            watch.phase(f"exporting the {name}")
            write_graph(graph, Path(scratch) / f"{name}.onnx")
            exported.graphs[name] = f"{name}.onnx"
        watch.phase("comparing")
        exported.compared = compare(parts, graphs, Path(scratch), shown)
        refuse_different(exported)
        with writing(f"--out {out}"):
            out.mkdir(parents=True, exist_ok=True)
            for name in graphs:
                with atomic_path(out / f"{name}.onnx") as draft:
                    draft.write_bytes((Path(scratch) / f"{name}.onnx").read_bytes())
            write_atomically(out / "export.json", json.dumps(record_of(parts, graphs, exported), indent=1) + "\n")
    return exported


def noise() -> list[Image.Image]:
    """Images of noise, always the same."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (h // 8, w // 8, 3), np.uint8)).resize((w, h)) for w, h in NOISE]


@dataclass
class Parts:
    """A student with its open encoder and detector, on the CPU.

    Attributes:
        checkpoint: its folder.
        student: the student.
        stages: ``features`` and ``detections``, each with its name in configurations.
    """

    checkpoint: Path
    student: Student
    stages: dict[str, tuple[str, Stage]]

    @classmethod
    def of(cls, checkpoint: Path, student: Student, detector: str | None) -> Parts:
        """Build and open what the student reads."""
        boxes = other_boxes(checkpoint, student, None, detector)
        annotations, stages = without_pairs(["image"], [(64, 64)], student.vocabulary), {}
        for role in student.tables():
            other = boxes if role == "detections" else None
            kind = said_stage(checkpoint, role, student.identities.get(role))[0] if other is None else other[0]
            stage = own_stage(checkpoint, student, role, annotations, other)
            stage.open("cpu", {})
            stages[role] = kind, stage
        return cls(checkpoint, student, stages)

    def student_graph(self) -> ExportedGraph:
        """The student's graph."""
        maps = None
        if "features" in self.stages:
            output = self.stages["features"][1].output
            assert isinstance(output, TensorOutput)
            maps = (output.shape[0], output.shape[1], output.shape[2])
        try:
            return self.student.graph(maps)
        except UserError as error:
            raise UserError(f"{self.checkpoint}: {error}") from None

    def graph(self, name: str, image: Image.Image) -> ExportedGraph:
        """The graph of ``encoder`` or ``detector``; UserError where there is none."""
        from hoi_distill.stages.teacher.exported import detector_graph, encoder_graph

        if name == "encoder":
            return encoder_graph(*self.stages["features"], image)
        return detector_graph(*self.stages["detections"], image)


def write_graph(graph: ExportedGraph, path: Path) -> None:
    """Trace a network and write it as ONNX."""
    import torch

    shapes = tuple(
        {axis: torch.export.Dim(length, min=1) for axis, length in graph.free[name].items()}
        if name in graph.free
        else None
        for name in graph.inputs
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of torchvision's operators, of which there are none here
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                path,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)


def _stable_sort(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001 - its name
    """``torch.sort(stable=True)`` by ONNX's TopK, which puts the first of equal values first."""
    import onnxscript

    op: Any = onnxscript.opset18
    length = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


class Session:
    """A graph that onnxruntime runs on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_inputs()]

    def __call__(self, **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs, in their order."""
        found: list[np.ndarray] = self.session.run(None, {name: inputs[name] for name in self.names})
        return found


def compare(
    parts: Parts, graphs: Mapping[str, ExportedGraph], folder: Path, images: Sequence[Image.Image]
) -> Comparison:
    """Run networks and graphs on the same images, each of them from the pixels on.

    Args:
        parts: the networks.
        graphs: those that were written.
        folder: where they are.
        images: RGB.
    """
    import torch

    sessions, found = {name: Session(folder / f"{name}.onnx") for name in graphs}, Comparison(len(images))
    for image in images:
        ours, theirs = Answers(), Answers()
        for name in ("encoder", "detector"):
            if name in graphs:
                inputs = parts.graph(name, image).inputs
                with torch.no_grad():
                    mine = graphs[name].module(*inputs.values())
                ours.take(name, [each.numpy() for each in (mine if isinstance(mine, tuple) else (mine,))])
                theirs.take(name, sessions[name](**{key: value.numpy() for key, value in inputs.items()}))
        if "encoder" not in graphs:
            ours.features = theirs.features = np.zeros(tuple(graphs["student"].inputs["features"].shape), np.float32)
        found.widen("features", ours.features, theirs.features)
        if "detector" in graphs:
            found.widen("boxes", *ours.matched(theirs, "boxes"))
            found.widen("detection_scores", *ours.matched(theirs, "scores"))
        given, other = (parts.student.graph_inputs(each.cell(image.size)) for each in (ours, theirs))
        if given is None or other is None:
            found.same_best += given is other
            continue
        if given["pairs"].shape != other["pairs"].shape:  # a threshold lay between two scores
            continue
        inputs = {name: torch.from_numpy(np.array(given[name])) for name in given}
        with torch.no_grad():
            named = {"features": torch.from_numpy(ours.features), **inputs}
            mine = graphs["student"].module(*(named[name] for name in graphs["student"].inputs)).numpy()
        answer = sessions["student"](features=theirs.features, **other)[0]
        found.widen("scores", mine, answer)
        found.triplets += int((mine > 0).sum())
        found.same_best += bool((best(mine) == best(answer)).all())
    return found


@dataclass
class Answers:
    """What encoder and detector say of one image; a few boxes of their own where there is no detector."""

    features: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    boxes: np.ndarray = field(
        default_factory=lambda: np.array([[8, 8, 40, 60], [20, 10, 56, 44], [4, 30, 30, 62]], np.float32)
    )
    scores: np.ndarray = field(default_factory=lambda: np.array([0.9, 0.8, 0.7], np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.array([0, 1, 2]))

    def take(self, name: str, outputs: Sequence[np.ndarray]) -> None:
        """The outputs of a graph."""
        if name == "encoder":
            (self.features,) = outputs
        else:
            self.boxes, self.scores, self.labels = outputs

    def matched(self, other: Answers, name: str) -> tuple[np.ndarray, np.ndarray]:
        """``boxes`` or ``scores`` of the best boxes, and of the nearest box of the same class in the other answers.

        Of scores that are equal but for rounding either may come first, and the last box of one may be none of the other's.
        """
        apart = np.abs(self.boxes[:BOXES, None] - other.boxes).max(2) + 1e6 * (
            self.labels[:BOXES, None] != other.labels
        )
        return getattr(self, name)[:BOXES], getattr(other, name)[apart.argmin(1)]

    def cell(self, size: tuple[int, int]) -> dict[str, Any]:
        """A cell of a table of detections: boxes that have an area."""
        inside = (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        found = {name: getattr(self, name)[inside] for name in ("boxes", "scores", "labels")}
        return {**found, "width": size[0], "height": size[1]}


def best(scores: np.ndarray) -> np.ndarray:
    """Positions of the best scores among all pairs and interactions, int64 ``[K]``."""
    return np.argsort(-scores.ravel(), kind="stable")[:BEST]


def refuse_different(exported: Exported) -> None:
    """Raises UserError where graphs are not the networks that they came from."""
    found = exported.compared
    if found.scores > LARGEST or found.detection_scores > LARGEST:
        raise UserError(
            f"the exported graphs differ from the networks: scores by up to {max(found.scores, found.detection_scores):.2g} "
            f"on {exported.on}, more than {LARGEST:g}; nothing was written"
        )


def record_of(parts: Parts, graphs: Mapping[str, ExportedGraph], exported: Exported) -> dict[str, Any]:
    """What ``export.json`` says: names, each graph's inputs, outputs and settings, and how it was compared."""
    words = parts.student.vocabulary
    return {
        "student": parts.student.method,
        "objects": list(words.objects),
        "interactions": [[words.verbs[verb], words.objects[obj]] for verb, obj in words.hois.tolist()],
        "graphs": {name: described(graph) for name, graph in graphs.items()},
        "left_out": exported.left_out,
        "compared": {"on": exported.on, **vars(exported.compared)},
    }


def described(graph: ExportedGraph) -> dict[str, Any]:
    """A graph's file, inputs, outputs and settings as plain values; a free axis has its name."""
    inputs = {
        name: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [graph.free.get(name, {}).get(axis, length) for axis, length in enumerate(value.shape)],
        }
        for name, value in graph.inputs.items()
    }
    return {
        "file": f"{graph.name}.onnx",
        "inputs": inputs,
        "outputs": list(graph.outputs),
        "settings": dict(graph.settings),
    }
