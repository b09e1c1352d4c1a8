"""The original DETR's files become transformers' checkpoints, whole or not at all."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.checkpoints import detr_pth, detr_state_dict
from hoi_distill.stages.checkpoints.dilated import dilate
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.original_detr import QUERIES, D, Trap, original
from tests.fixtures.stages import made


@pytest.fixture(scope="module")
def weights():
    return original()


def test_every_weight_arrives_and_none_is_invented(weights, tmp_path):
    torch.save({"model": weights, "args": argparse.Namespace(dilation=False, lr=1e-4)}, tmp_path / "detr.pth")
    detr_pth.main([str(tmp_path / "detr.pth"), "--out", str(tmp_path / "out")])
    found = Checkpoint.find(tmp_path / "out")
    assert found.preprocessing["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    stage = made(Detector, checkpoint=found)
    assert sorted(stage.labels.values()) == list(range(80))
    assert {number: COCO_OBJECTS[label] for number, label in stage.labels.items()}[90] == "toothbrush"
    stage.open("cpu", {})
    state = stage.model.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == sum(tensor.numel() for tensor in weights.values())
    assert stage.model.config.num_labels == 91
    layer = "model.decoder.layers.2"
    for third, name in enumerate("qkv"):
        packed = weights["transformer.decoder.layers.2.multihead_attn.in_proj_weight"]
        torch.testing.assert_close(
            state[f"{layer}.encoder_attn.{name}_proj.weight"], packed[third * D : (third + 1) * D]
        )
    torch.testing.assert_close(
        state[f"{layer}.final_layer_norm.weight"], weights["transformer.decoder.layers.2.norm3.weight"]
    )
    stage.processor.size = {"height": 64, "width": 96}  # the real 800 pixels take seconds
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    cell = stage.compute(Batch(np.zeros(1, "V16"), ["a"], 1, [image]), ("value",), {})["value"][0].as_py()
    assert len(cell["scores"]) == QUERIES


def test_an_encoder_layer_computes_what_torchs_own_does(weights):
    """Renaming is right only if the modules mean the same: DETR's layer from torch's attention against transformers'."""
    from transformers import DetrConfig, DetrForObjectDetection

    config = detr_pth.config_of(weights, "x")
    model = DetrForObjectDetection(DetrConfig(**config, num_labels=91)).eval()
    model.load_state_dict(detr_state_dict.translated(weights, "x"))
    prefix = "transformer.encoder.layers.1."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    attention = torch.nn.MultiheadAttention(D, 8, batch_first=True)
    attention.load_state_dict({k.removeprefix("self_attn."): v for k, v in own.items() if k.startswith("self_attn.")})
    x, position = torch.randn(2, 5, D), torch.randn(2, 5, D)

    def norm(value, name):
        return torch.nn.functional.layer_norm(value, (D,), own[f"{name}.weight"], own[f"{name}.bias"])

    with torch.inference_mode():
        y = norm(x + attention(x + position, x + position, x)[0], "norm1")
        hidden = (y @ own["linear1.weight"].T + own["linear1.bias"]).relu()
        expected = norm(y + hidden @ own["linear2.weight"].T + own["linear2.bias"], "norm2")
        layer = model.model.encoder.layers[1]
        found = layer(x, attention_mask=None, spatial_position_embeddings=position)
    torch.testing.assert_close(found if torch.is_tensor(found) else found[0], expected, atol=1e-5, rtol=1e-4)


def test_other_classes_need_their_names(tmp_path):
    small = original(classes=2)
    torch.save(small, tmp_path / "detr.pth")
    with pytest.raises(UserError, match=r"2 classes, of which only 91 .* give --labels"):
        detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out")
    with pytest.raises(UserError, match="2 classes, but 1 labels given"):
        detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out", ["person"])
    detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out", ["person", "cup"])
    assert list(made(Detector, checkpoint=Checkpoint.find(tmp_path / "out")).labels.values()) == [
        0,
        COCO_OBJECTS.index("cup"),
    ]


def test_the_fine_tuned_weights_of_upt_and_pvic_have_cocos_80_objects_in_their_order(tmp_path):
    """Their files keep ``model_state_dict``, whose classifier has the 80 objects and "no object"."""
    torch.save({"epoch": 1, "model_state_dict": original(classes=80)}, tmp_path / "detr-r50-hicodet.pth")
    detr_pth.convert(tmp_path / "detr-r50-hicodet.pth", tmp_path / "out")
    labels = made(Detector, checkpoint=Checkpoint.find(tmp_path / "out")).labels
    assert labels == {number: number for number in range(80)}


@pytest.mark.parametrize("told", ["by the training's arguments", "by the file's name", "by the user"])
def test_a_dilated_backbone_is_known_by_whoever_tells_it(weights, told, tmp_path):
    file = tmp_path / ("detr-r50-DC5-hicodet.pth" if told == "by the file's name" else "detr.pth")
    arguments = {"args": argparse.Namespace(dilation=True)} if told == "by the training's arguments" else {}
    torch.save({"model": weights, **arguments}, file)
    flag = ["--dilated"] if told == "by the user" else []
    detr_pth.main([str(file), "--out", str(tmp_path / "out"), *flag])
    stage = made(Detector, checkpoint=Checkpoint.find(tmp_path / "out"))
    stage.open("cpu", {})
    assert type(stage.model).__name__ == "DilatedDetr"
    with torch.inference_mode():
        (found,) = stage.model.model.backbone.model(torch.zeros(1, 3, 64, 96)).feature_maps
    assert found.shape[2:] == (4, 6)


def test_basic_blocks_are_not_dilated(tmp_path):
    """timm would dilate the second convolution of their first block too."""
    torch.save({"model": original(resnet="resnet18")}, tmp_path / "detr.pth")
    with pytest.raises(UserError, match=r"detr\.pth: a dilated \(DC5\) resnet18 or resnet34 cannot be read"):
        detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out", dilated=True)
    detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out")


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_every_second_cell_of_a_dilated_stage_is_the_plain_stages(size):
    """The meaning of dilation: the same network on a grid that is twice as fine."""
    from transformers import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetStage

    torch.manual_seed(0)
    stage = ResNetStage(ResNetConfig(), 8, 16, stride=2, depth=3).eval()
    image = torch.randn(2, 8, *size)
    with torch.inference_mode():
        plain = stage(image)
        dilate(stage)
        fine = stage(image)
    assert fine.shape[2:] == size
    torch.testing.assert_close(fine[..., ::2, ::2], plain, atol=1e-5, rtol=1e-5)


def test_what_is_no_plain_detr_is_refused(weights, tmp_path):
    def refused(said, record):
        torch.save(record, tmp_path / "detr.pth")
        with pytest.raises(UserError, match=said):
            detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out")

    refused("'mask_head.lay1.weight' is no weight", {"model": {**weights, "mask_head.lay1.weight": torch.zeros(1)}})
    lacking = {key: value for key, value in weights.items() if key != "bbox_embed.layers.1.bias"}
    refused(r"do not fill DetrForObjectDetection exactly \(bbox_predictor.layers.1.bias\)", {"model": lacking})
    refused("can be read safely", {"model": {}})
    refused(
        "it lacks 'query_embed.weight'", {key: each for key, each in weights.items() if key != "query_embed.weight"}
    )
    refused(r"detr.pth: 'fc.weight' is no weight of a ResNet", {**weights, "backbone.0.body.fc.weight": torch.zeros(1)})


def test_a_file_with_code_in_it_is_not_run(tmp_path, capsys):
    torch.save({"model": Trap()}, tmp_path / "detr.pth")
    with pytest.raises(UserError, match="can be read safely"):
        detr_pth.convert(tmp_path / "detr.pth", tmp_path / "out")
    assert pickle.dumps(Trap())
    assert "ran" not in capsys.readouterr().out
