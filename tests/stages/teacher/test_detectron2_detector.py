"""detectron2's adapter: what it says where detectron2 is absent, and what it does where it is there."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from hoi_distill.stages.teacher.detectors.detectron2 import COMMIT, Detectron2Detector, described, leave_out_others
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made


def test_where_detectron2_is_absent_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(UserError) as told:
        made(Detectron2Detector, config="COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", weights="model.pkl")
    assert str(told.value).startswith("detectron2 cannot be imported (")
    assert f"git+https://github.com/facebookresearch/detectron2@{COMMIT}" in str(told.value)
    assert "\n" not in str(told.value)


def test_the_module_is_imported_without_detectron2_and_torch():
    code = "import sys, hoi_distill.stages.teacher.detectors.detectron2; assert not {'torch', 'detectron2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_lazy_configuration_is_described_by_names_not_by_places_in_memory():
    class Odd:
        pass

    lazy = {"_target_": np.array, "norm": partial(np.sum, axis=1), "sizes": (1, 2), "odd": Odd(), "free": lambda x: x}
    said = described(lazy)
    assert said == described(lazy | {"odd": Odd(), "free": lazy["free"]})
    assert said["_target_"].endswith("array")
    assert "axis=1" in said["norm"]
    assert said["sizes"] == [1, 2]
    assert described({**lazy, "norm": partial(np.sum, axis=2)}) != said


class BoxHead(torch.nn.Module):
    """What of detectron2's box head chooses boxes: R regions, K classes and the background."""

    test_score_thresh, top = 0.0, 100

    def predict_probs(self, predictions, proposals):
        return tuple(part.softmax(-1) for part in predictions)

    def forward(self, predictions):
        (scores,) = self.predict_probs(predictions, None)
        scores = scores[:, :-1]
        kept = (scores > self.test_score_thresh).nonzero()
        found = scores[kept[:, 0], kept[:, 1]]
        order = found.argsort(descending=True, stable=True)[: self.top]
        return found[order], kept[order, 1]


class Dense(torch.nn.Module):
    """What of detectron2's RetinaNet chooses boxes: a level of A anchors a place and K classes."""

    test_score_thresh, top, num_classes = 0.0, 100, 300

    def __init__(self, logits):
        super().__init__()
        self.logits, self.head = logits, torch.nn.Identity()

    def forward(self):
        logits, deltas = self.head(([self.logits], "deltas"))
        assert deltas == "deltas"
        n, _, h, w = logits[0].shape
        scores = (
            logits[0].view(n, -1, self.num_classes, h, w).permute(0, 3, 4, 1, 2).reshape(-1, self.num_classes).sigmoid()
        )
        kept = (scores > self.test_score_thresh).nonzero()
        found = scores[kept[:, 0], kept[:, 1]]
        order = found.argsort(descending=True, stable=True)[: self.top]
        return found[order], kept[order, 1]


KNOWN = (2, 5, 8)


@pytest.mark.parametrize("kind", ["box head", "boxes of a cascade", "dense"])
def test_of_a_model_of_many_classes_the_known_ones_best_hundred_are_kept(kind):
    """Unknown classes are far surer, so that the model's own best hundred hold no known one."""
    torch.manual_seed(0)
    logits = torch.randn(624, 301)
    logits[:, [column for column in range(300) if column not in KNOWN]] += 4
    if kind == "dense":
        grid = logits[:, :300].reshape(1, 26, 24, 1, 300).permute(0, 3, 4, 1, 2).reshape(1, 300, 26, 24)
        model, asked, probabilities = Dense(grid), (), logits[:, :300].sigmoid()
    else:
        model = BoxHead() if kind == "box head" else torch.nn.Sequential(BoxHead())
        asked, probabilities = ([logits],), logits.softmax(-1)
    assert not set(model(*asked)[1].tolist()) & set(KNOWN)
    leave_out_others(model, KNOWN, "model.pth")
    scores, classes = model(*asked)
    assert len(scores) == 100
    assert set(classes.tolist()) <= set(KNOWN)
    best = probabilities[:, list(KNOWN)].flatten().sort(descending=True).values[:100]
    torch.testing.assert_close(scores, best, rtol=0, atol=0)


def test_a_model_whose_classes_cannot_be_told_apart_drops_none():
    with pytest.raises(UserError, match=r"model\.pth: Identity has no box head or grid of logits"):
        leave_out_others(torch.nn.Identity(), KNOWN, "model.pth")


@pytest.fixture(scope="module")
def frcnn(tmp_path_factory):
    """A random Faster R-CNN of detectron2, saved by its own checkpointer: (configuration, weights). Its signals neither die nor
    explode, so that it is sure of nothing: pixels are scaled and residuals small."""
    import torch

    try:
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.modeling import build_model
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"detectron2 is not here: {error}")
    folder = tmp_path_factory.mktemp("frcnn")
    config = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    config.MODEL.PIXEL_STD = [57.0, 57.0, 57.0]
    config.MODEL.DEVICE, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST = "cpu", 96, 160
    (folder / "frcnn.yaml").write_text(config.dump())
    torch.manual_seed(0)
    model = build_model(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)
    DetectionCheckpointer(model, str(folder)).save("model")
    return folder / "frcnn.yaml", folder / "model.pth"


def test_a_real_faster_rcnn_gives_its_best_boxes(frcnn):
    from PIL import Image

    from hoi_distill.stages.stage import Batch

    stage = made(Detectron2Detector, config=str(frcnn[0]), weights=str(frcnn[1]))
    stage.open("cpu", {})
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (h, w, 3), np.uint8)) for h, w in ((60, 90), (90, 60))]
    rows = np.zeros(2, "V16")
    together = stage.compute(Batch(rows, ["", ""], 2, images), ("value",), {})["value"].to_pylist()
    for cell, image in zip(together, images, strict=True):
        assert len(cell["scores"]) == 100  # no floor: random weights are sure of nothing
        assert cell["scores"] == sorted(cell["scores"], reverse=True)
        assert 0 <= min(cell["labels"]) <= max(cell["labels"]) < 80
        boxes = np.array(cell["boxes"])
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= image.size).all()
        alone = stage.compute(Batch(rows[:1], [""], 1, [image]), ("value",), {})["value"][0].as_py()
        np.testing.assert_allclose(alone["boxes"], cell["boxes"], atol=1e-2)


def test_a_real_faster_rcnn_keeps_the_known_classes_best_hundred(frcnn):
    from PIL import Image

    from hoi_distill.stages.stage import Batch

    names = ["person", "bicycle", *(f"foreign {number}" for number in range(78))]
    stage = made(Detectron2Detector, config=str(frcnn[0]), weights=str(frcnn[1]), labels=names, unknown_labels="drop")
    assert stage.parameters()["top_of"] == "known classes"
    stage.open("cpu", {})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))
    cell = stage.compute(Batch(np.zeros(1, "V16"), [""], 1, [image]), ("value",), {})["value"][0].as_py()
    assert len(cell["scores"]) == 100
    assert set(cell["labels"]) <= {0, 1}


def test_weights_that_fill_only_a_part_are_an_error(frcnn, tmp_path):
    import torch

    config, weights = frcnn
    saved = torch.load(weights, weights_only=True)
    del saved["model"]["roi_heads.box_predictor.cls_score.weight"]
    torch.save(saved, tmp_path / "part.pth")
    stage = made(Detectron2Detector, config=str(config), weights=str(tmp_path / "part.pth"))
    with pytest.raises(UserError, match=r"1 weights of the model are missing \(roi_heads.box_predictor.cls_score"):
        stage.open("cpu", {})


def test_weights_that_changed_since_planning_are_refused(frcnn, tmp_path):
    import torch

    config, weights = frcnn
    saved = torch.load(weights, weights_only=True)
    torch.save(saved, tmp_path / "model.pth")
    stage = made(Detectron2Detector, config=str(config), weights=str(tmp_path / "model.pth"))
    saved["model"]["roi_heads.box_predictor.cls_score.bias"] += 1
    torch.save({**saved, "iteration": 7}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="planned with"):
        stage.open("cpu", {})
