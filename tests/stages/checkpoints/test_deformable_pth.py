"""Files of Deformable DETR's codes become transformers' checkpoints that answer as those codes do, whole or not at all."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.checkpoints import deformable_state_dict as deformable
from hoi_distill.stages.checkpoints import detr_pth
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.weights import Checkpoint, load
from hoi_distill.storage.errors import UserError
from tests.fixtures.original_deformable_detr import ANSWERS, ONE_TO_MANY, ONE_TO_ONE, SIZES, checkpoint, images
from tests.fixtures.stages import made

WORDS = ("person", "cup", "car", "dog", "cat")


def of_coco(weights, path, **arguments):
    """A file as H-Deformable-DETR's own training writes it."""
    torch.save({"model": weights, "args": argparse.Namespace(num_queries_one2one=ONE_TO_ONE, **arguments)}, path)
    return path


def of_pvic(weights, path):
    """A file as the fine-tuning for PViC writes it: no arguments, but the state of its optimizer and its schedule."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
    torch.save(
        {
            "iteration": 1, "epoch": 1, "performance": [0.5, 0.7], "model_state_dict": weights,
            "optim_state_dict": optimizer.state_dict(), "scheduler_state_dict": schedule.state_dict(),
        },
        path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def weights():
    return checkpoint("swin")


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """The converted Swin, by the command."""
    root = tmp_path_factory.mktemp("converted")
    file = of_coco(weights, root / "h_detr_swin.pth", dilation=False)
    (root / "labels.txt").write_text("\n".join(WORDS))
    detr_pth.main([str(file), "--out", str(root / "out"), "--labels", str(root / "labels.txt")])
    return root / "out"


def answers(model):
    """Logits and boxes of both images, in one batch that is padded on the right and below."""
    height, width = np.max(SIZES, axis=0)
    pixels, mask = torch.zeros(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.long)
    for index, image in enumerate(images()):
        pixels[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = 1
    with torch.inference_mode():
        out = model(pixels, pixel_mask=mask)
    return {"logits": out.logits, "pred_boxes": out.pred_boxes}


def loaded(folder):
    found = Checkpoint.find(folder)
    return load(found, folder, "float32", "cpu")


def test_a_swin_answers_as_the_original_code_does(folder):
    for name, values in answers(loaded(folder)).items():
        torch.testing.assert_close(values, torch.tensor(ANSWERS["swin"][name]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_resnet_answers_as_the_original_code_does(tmp_path):
    file = of_pvic(checkpoint("resnet50"), tmp_path / "h-defm-detr-r50-hicodet.pth")
    detr_pth.convert(file, tmp_path / "out", WORDS, queries=ONE_TO_ONE)
    for name, values in answers(loaded(tmp_path / "out")).items():
        torch.testing.assert_close(values, torch.tensor(ANSWERS["resnet50"][name]), atol=1e-5, rtol=0)


def test_it_is_a_detector_as_others_are(folder):
    stage = made(Detector, checkpoint=Checkpoint.find(folder), states=True)
    stage.open("cpu", {})
    stage.processor.size = {"height": 72, "width": 100}  # the real 800 pixels take seconds
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    cell = stage.compute(Batch(np.zeros(1, "V16"), ["a"], 1, [image]), ("value",), {})["value"][0].as_py()
    assert len(cell["scores"]) == ONE_TO_ONE * len(WORDS)  # each query with each class
    assert {COCO_OBJECTS[label] for label in cell["labels"]} == set(WORDS)
    with torch.inference_mode():
        out = stage.model(**stage.prepare(image))
    np.testing.assert_allclose(cell["scores"][0], out.logits.sigmoid().max(), atol=1e-5)
    best = int(out.logits.amax(-1).argmax())
    np.testing.assert_allclose(cell["states"][0], out.last_hidden_state[0, best], atol=5e-3)


@pytest.mark.parametrize("queries", ["two_stage", "one_stage"])
def test_the_older_variants_become_transformers_own_class_with_each_head_its_own(queries, tmp_path):
    weights = checkpoint("swin", one_to_many=0, queries=queries)
    torch.save({"model": weights, "args": argparse.Namespace(num_queries=ONE_TO_ONE)}, tmp_path / "x.pth")
    detr_pth.convert(tmp_path / "x.pth", tmp_path / "out", WORDS)
    found = Checkpoint.find(tmp_path / "out")
    assert found.architecture == "DeformableDetrForObjectDetection"
    assert found.config["two_stage_num_proposals"] == found.config["num_queries"] == ONE_TO_ONE
    state = load(found, tmp_path / "out", "float32", "cpu").state_dict()
    for key in ("class_embed.1.weight", "bbox_embed.1.layers.2.bias"):
        torch.testing.assert_close(state[key], weights[key], atol=0, rtol=0)
    contents = {"model.query_position_embeddings.weight", "model.decoder.contents.weight"} & set(state)
    assert len(contents) == (queries == "one_stage")


@pytest.mark.parametrize(("classes", "toothbrush"), [(91, 90), (80, 79)])
def test_cocos_classes_are_known_by_their_number(classes, toothbrush, tmp_path):
    """91 are the ids that H-Deformable-DETR is trained with, 80 those that PViC's fine-tuning keeps, in COCO's order."""
    file = of_coco(checkpoint("swin", classes=classes), tmp_path / "x.pth")
    detr_pth.convert(file, tmp_path / "out")
    labels = made(Detector, checkpoint=Checkpoint.find(tmp_path / "out")).labels
    assert sorted(labels.values()) == list(range(80))
    assert {COCO_OBJECTS[label]: number for number, label in labels.items()}["toothbrush"] == toothbrush


def test_how_many_queries_predict_is_told_or_asked_for(weights, tmp_path):
    def of(total, told=None):
        return deformable.queries_of({deformable.QUERIES: torch.empty(total, 1)}, told, "x.pth")

    assert [of(300), of(1800), of(900), of(2400), of(1400, 500)] == [300, 300, 900, 900, 500]
    file = of_pvic(weights, tmp_path / "x.pth")
    total = ONE_TO_ONE + ONE_TO_MANY
    with pytest.raises(
        UserError, match=rf"x\.pth: {total} queries, and how many of them predict is not told; give --queries"
    ):
        detr_pth.convert(file, tmp_path / "out", WORDS)
    with pytest.raises(UserError, match=f"{total} queries, and how many of them predict is 16"):
        detr_pth.convert(file, tmp_path / "out", WORDS, queries=16)
    detr_pth.convert(file, tmp_path / "out", WORDS, queries=ONE_TO_ONE)
    contents = loaded(tmp_path / "out").model.decoder.contents.weight
    torch.testing.assert_close(contents, weights[deformable.QUERIES][:ONE_TO_ONE], atol=0, rtol=0)


BODY = "backbone.0.body"
ENCODER = "transformer.encoder.layers.0"
TABLE = "layers.1.blocks.0.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("mask_head.lay1.weight", "'mask_head.lay1.weight' is no weight of Deformable DETR"),
        (f"{ENCODER}.norm3.weight", f"'{ENCODER}.norm3.weight' is no weight of Deformable DETR"),
        (f"{BODY}.absolute_pos_embed", "'absolute_pos_embed' is no weight of a Swin for detection"),
        (f"{BODY}.layers.0.blocks.0.attn.scale", "'layers.0.blocks.0.attn.scale' is no weight of a Swin for detection"),
        (
            "bbox_embed.0.layers.7.bias",
            r"do not fill MixedSelectionDeformableDetr exactly \(bbox_embed.0.layers.7.bias\); give",
        ),
    ],
)
def test_a_foreign_weight_is_refused_by_its_name(weights, key, said, tmp_path):
    file = of_coco({**weights, key: torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: .*{said}"):
        detr_pth.convert(file, tmp_path / "out", WORDS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("bbox_embed.1.layers.0.bias", r"exactly \(bbox_embed.1.layers.0.bias\); give an unmodified checkpoint"),
        (f"{BODY}.norm3.bias", r"exactly \(model.backbone.model.hidden_states_norms.stage4.bias\)"),
        (f"{ENCODER}.linear1.weight", f"lacks '{ENCODER}.linear1.weight'; give an unmodified checkpoint"),
        (f"{BODY}.{TABLE}", f"lacks '{TABLE}'"),
    ],
)
def test_a_weight_that_is_missing_is_named(weights, key, said, tmp_path):
    file = of_coco({name: each for name, each in weights.items() if name != key}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: .*{said}"):
        detr_pth.convert(file, tmp_path / "out", WORDS)


def test_a_weight_of_another_shape_is_named(weights, tmp_path):
    file = of_coco({**weights, "transformer.pos_trans.bias": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"exactly \(model.pos_trans.bias\)"):
        detr_pth.convert(file, tmp_path / "out", WORDS)


def test_a_dilated_backbone_is_refused(weights, tmp_path):
    said = r"a Deformable DETR with a dilated \(DC5\) backbone cannot be read"
    file = of_coco(weights, tmp_path / "x.pth", dilation=True)
    with pytest.raises(UserError, match=rf"x\.pth: {said}"):
        detr_pth.convert(file, tmp_path / "out", WORDS)
