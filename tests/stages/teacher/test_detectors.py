"""Detectors: the stock answers in COCO's names and the image's pixels, whatever else is in the batch."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.detectors.transformers import Detector, label_map
from hoi_distill.stages.teacher.weights import Checkpoint, load, model_class
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.stages import made
from tests.fixtures.tiny_detectors import COCO_80, COCO_91, FAMILIES, stir, timm_names, tiny_detector

SIZES = ((90, 64), (64, 90), (90, 64), (130, 70), (64, 64), (33, 80))
"""Width and height: two alike, so that a forward pass holds several images."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {family: tiny_detector(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(1)
    blocks = [random.integers(0, 255, (4, 4, 3), np.uint8) for _ in SIZES]
    return [Image.fromarray(block).resize(size) for block, size in zip(blocks, SIZES, strict=True)]


def opened(folder, **options) -> Detector:
    stage = made(Detector, checkpoint=Checkpoint.find(folder), **options)
    stage.open("cpu", {})
    return stage


def answers(stage: Detector, images) -> list[dict]:
    batch = Batch(np.zeros(len(images), "V16"), [""] * len(images), len(images), images)
    return stage.compute(batch, ("value",), {})["value"].to_pylist()


def stock(folder, image) -> tuple[torch.Tensor, ...]:
    """Scores, labels and boxes by the class itself and transformers' own post-processing, best first."""
    from transformers import AutoImageProcessor

    model = model_class(Checkpoint.find(folder)).from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        out = model(**processor(images=[image], return_tensors="pt"))
    found = processor.post_process_object_detection(out, threshold=-1.0, target_sizes=[image.size[::-1]])[0]
    order = found["scores"].argsort(descending=True)
    return tuple(found[key][order] for key in ("scores", "labels", "boxes"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_gives_what_transformers_gives_for_each_image_alone(folders, images, family):
    names = COCO_91 if family == "detr" else COCO_80
    cells = answers(opened(folders[family]), images)
    for cell, image in zip(cells, images, strict=True):
        scores, labels, boxes = stock(folders[family], image)
        boxes = box_ops.clip(boxes, *image.size)
        inside = box_ops.area(boxes) > 0
        count = min(int(inside.sum()), len(cell["scores"]), TOP)
        assert count >= 5
        np.testing.assert_allclose(cell["scores"][:count], scores[inside][:count], atol=2e-5)
        np.testing.assert_allclose(cell["boxes"][:count], boxes[inside][:count], atol=2e-3)
        expected = [names[int(label)].replace(" ", "_") for label in labels[inside][:count]]
        assert [COCO_OBJECTS[label] for label in cell["labels"][:count]] == expected
        assert (cell["width"], cell["height"]) == image.size
    assert len({tuple(np.round(cell["scores"][:3], 5)) for cell in cells}) == len(cells)  # the image matters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_image_is_detected_alike_in_any_company(folders, images, family):
    stage = opened(folders[family])
    together = answers(stage, images)
    for cell, image in zip(together, images, strict=True):
        alone = answers(stage, [image])[0]
        assert alone["labels"] == cell["labels"]
        np.testing.assert_allclose(alone["boxes"], cell["boxes"], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_the_best_hundred_are_kept_without_a_floor(folders, images, family):
    for cell in answers(opened(folders[family]), images):
        assert 60 < len(cell["scores"]) <= TOP  # 12 queries of 80 classes; boxes outside the image are left out
        assert cell["scores"] == sorted(cell["scores"], reverse=True)
        boxes = np.array(cell["boxes"])
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= (cell["width"], cell["height"])).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize("family", ["detr", "rt_detr"])
def test_states_are_those_of_the_boxes_beside_them(folders, images, family):
    stage = opened(folders[family], states=True)
    plain = opened(folders[family])
    assert fingerprint_record(stage) != fingerprint_record(plain)
    assert plain.output.type == DETECTIONS
    model = load(Checkpoint.find(folders[family]), folders[family], "float32", "cpu")
    for cell, without in zip(answers(stage, images), answers(plain, images), strict=True):
        states = torch.tensor(cell.pop("states"))
        assert cell == without
        assert states.shape == (len(cell["labels"]), 32)
        if family == "detr":
            scores, classes = model.class_labels_classifier(states).softmax(-1)[:, :-1], COCO_91
        else:
            scores, classes = model.model.decoder.class_embed[-1](states).sigmoid(), COCO_80
        number = {OBJECT_INDEX[name.replace(" ", "_")]: key for key, name in classes.items() if name != "N/A"}
        columns = torch.tensor([number[label] for label in cell["labels"]])
        again = scores.gather(1, columns[:, None])[:, 0]
        np.testing.assert_allclose(again.detach(), cell["scores"], atol=5e-3)  # states are rounded to float16


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near_float32_and_is_another_table(folders, images, family):
    exact = opened(folders[family])
    best = np.array([cell["scores"][0] for cell in answers(exact, images)])
    for dtype, tolerance in (("float16", 0.01), ("bfloat16", 0.1)):
        rounded = opened(folders[family], dtype=dtype)
        assert rounded.model.dtype == getattr(torch, dtype)
        assert fingerprint_record(exact) != fingerprint_record(rounded)
        np.testing.assert_allclose([cell["scores"][0] for cell in answers(rounded, images)], best, atol=tolerance)


def test_memory_that_runs_out_halves_the_forward_and_the_run_goes_on(folders, images, monkeypatch):
    stage, expected = opened(folders["rt_detr"], batch_size="auto"), answers(opened(folders["rt_detr"]), images)
    passes = []
    forward = type(stage.model).forward

    def small(self, pixel_values, **options):
        passes.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("pretended")
        return forward(self, pixel_values, **options)

    monkeypatch.setattr(type(stage.model), "forward", small)
    found = answers(stage, images)
    assert passes == [6, 3, 2, 2, 2]
    for cell, whole in zip(found, expected, strict=True):
        assert cell["labels"] == whole["labels"]
        np.testing.assert_allclose(cell["boxes"], whole["boxes"], atol=1e-3)
    passes.clear()
    answers(stage, images[:3])
    assert passes == [2, 2]  # what the worker has learnt it keeps


def test_hico_tuning_is_told_but_names_no_other_table(folders):
    plain, tuned = (
        made(Detector, checkpoint=Checkpoint.find(folders["detr"]), hico_tuned=flag) for flag in (False, True)
    )
    assert fingerprint_record(plain) == fingerprint_record(tuned)
    assert [stage.provenance()["hico_tuned"] for stage in (plain, tuned)] == [False, True]


def test_a_stage_travels_without_its_model(folders, images):
    stage = opened(folders["rt_detr"])
    sent = pickle.loads(pickle.dumps(stage))
    assert not hasattr(sent, "model")
    sent.open("cpu", {})
    assert answers(sent, images) == answers(stage, images)


def test_classes_are_known_by_name():
    assert label_map({"id2label": COCO_91}, "x")[0] == {
        number: OBJECT_INDEX[name.replace(" ", "_")] for number, name in COCO_91.items() if name != "N/A"
    }
    spelled = {"0": "Person", "1": "motorbike", "2": "sofa", "3": "pottedplant", "4": "tvmonitor", "5": "hair drier"}
    wanted = ("person", "motorcycle", "couch", "potted_plant", "tv", "hair_drier")
    assert list(label_map({"id2label": spelled}, "x")[0].values()) == [OBJECT_INDEX[name] for name in wanted]
    assert label_map({"id2label": {0: "cat", 1: "unicorn"}}, "x") == ({0: 15}, ("unicorn",))
    with pytest.raises(UserError, match="'motorbike' twice"):
        label_map({"id2label": {0: "motorcycle", 1: "motorbike"}}, "x")
    with pytest.raises(UserError, match="none of COCO's 80"):
        label_map({"id2label": {0: "LABEL_0"}}, "x")


def edited(folder, tmp_path, **changes):
    """A copy of the checkpoint with another configuration."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_classes_outside_coco_are_refused_or_dropped(folders, images, tmp_path):
    copy = edited(folders["rt_detr"], tmp_path, id2label={**COCO_80, 0: "unicorn", 3: "griffin"})
    with pytest.raises(UserError, match=r"no COCO objects: griffin, unicorn; .*unknown_labels: drop"):
        made(Detector, checkpoint=Checkpoint.find(copy))
    stage = opened(copy, unknown_labels="drop")
    assert stage.parameters()["dropped_labels"] == ["griffin", "unicorn"]
    whole = answers(opened(folders["rt_detr"]), images)
    for cell, all_cells in zip(answers(stage, images), whole, strict=True):
        assert not {0, 3} & set(cell["labels"])
        assert {0, 3} & set(all_cells["labels"])


def test_a_partly_loaded_checkpoint_is_an_error_that_names_the_keys(folders, tmp_path):
    copy = edited(folders["detr"], tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["bbox_predictor.layers.1.bias"]
    save_file(weights | {"surplus": torch.zeros(1)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(bbox_predictor.layers.1.bias\), 1 unexpected \(surplus\)"):
        opened(copy)


def test_another_class_is_refused(checkpoints):
    with pytest.raises(UserError, match="BlipForImageTextRetrieval is no detector known here; there are Detr"):
        made(Detector, checkpoint=Checkpoint.find(checkpoints.itm))


@pytest.mark.parametrize(("family", "layout"), [("detr", "hub"), ("conditional_detr", "transformers_5")])
def test_a_timm_backbone_is_loaded_without_timm(tmp_path, images, family, layout):
    folder = tiny_detector(family, tmp_path / "own", timm_backbone.resnet("resnet18", [4]))
    prefix = "model.backbone.conv_encoder.model."
    timms = {prefix + timm_backbone.renamed(key): prefix + key for key in timm_names((2, 2, 2, 2), 2)}
    weights = load_file(folder / "model.safetensors")
    hub = {timms.get(key, key): tensor for key, tensor in weights.items()}
    assert not any("embedder" in key or "stages" in key for key in hub)
    hub |= {key: torch.tensor(0) for key in timms.values() if key.endswith("num_batches_tracked")}
    timm = {"model_type": "timm_backbone", "backbone": "resnet18", "features_only": True, "out_indices": [1, 2, 3, 4]}
    if layout == "hub":
        changes = {"use_timm_backbone": True, "backbone": "resnet18", "backbone_config": None}
    else:
        changes = {"backbone_config": timm}
    copy = edited(folder, tmp_path, **changes)
    save_file(hub, copy / "model.safetensors", metadata={"format": "pt"})
    assert answers(opened(copy), images) == answers(opened(folder), images)
    del hub["model.backbone.conv_encoder.model.layer3.1.bn2.running_var"]
    save_file(hub, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing .*stages.2.layers.1.layer.1.normalization.running_var"):
        opened(copy)


@pytest.mark.parametrize("left_out", [(), ("model.decoder.bbox_embed", "model.decoder.class_embed")])
@pytest.mark.parametrize("two_stage", [False, True])
def test_each_layer_of_a_refining_deformable_detr_keeps_its_own_heads(tmp_path, two_stage, left_out):
    """Configurations of the hub let transformers tie heads, and files hold those that decoder and network share once or twice."""
    folder = tiny_detector("deformable_detr", tmp_path / "own")
    record = json.loads((folder / "config.json").read_text())
    record |= {"two_stage": two_stage, "with_box_refine": True, "two_stage_num_proposals": 12}
    (folder / "config.json").write_text(json.dumps(record))
    untied = DeformableDetrConfig.from_dict({**record, "tie_word_embeddings": False})
    model = DeformableDetrForObjectDetection(untied)
    stir(model)
    model.model.decoder.bbox_embed = model.bbox_embed
    if two_stage:
        model.model.decoder.class_embed = model.class_embed
    weights = {key: each.clone() for key, each in model.state_dict().items() if not key.startswith(left_out)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = opened(folder).model.state_dict()
    for key, each in model.state_dict().items():
        torch.testing.assert_close(found[key], each, atol=0, rtol=0, msg=key)


@pytest.mark.parametrize("layout", ["hub", "transformers_5"])
def test_a_dilated_detr_of_the_hub_looks_at_the_finer_map(tmp_path, layout):
    """As facebook/detr-resnet-101-dc5 is written, but for the backbone's size."""
    stages = {
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32, 40],
        "depths": [1, 1, 1, 2],
        "out_features": ["stage4"],
    }
    folder = tiny_detector("detr", tmp_path / "own", stages)
    plain = opened(folder).model
    changes = {"use_timm_backbone": True, "backbone": "resnet50", "dilation": True, "backbone_config": None}
    if layout == "transformers_5":
        changes = {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "output_stride": 16}}
    copy, prefix = edited(folder, tmp_path, **changes), "model.backbone.conv_encoder.model."
    weights = load_file(folder / "model.safetensors")
    timms = {
        key: prefix + timm_backbone.original(key.removeprefix(prefix)) for key in weights if key.startswith(prefix)
    }
    hub = {timms.get(key, key): each for key, each in weights.items()}
    save_file(hub, copy / "model.safetensors", metadata={"format": "pt"})
    stage = made(Detector, checkpoint=Checkpoint.find(copy))
    stage.translated = {**stage.translated, "backbone_config": plain.config.backbone_config.to_dict()}
    stage.open("cpu", {})
    pixels = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        (coarse,), (fine,) = (model.model.backbone.model(pixels).feature_maps for model in (plain, stage.model))
    assert fine.shape[2:] == (4, 6)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("conditional_detr", {"dilation": True, "backbone": "resnet50"}, r"dilated \(DC5\)"),
        ("detr", {"backbone": "swin_tiny"}, "'swin_tiny' has no counterpart"),
        ("detr", {"backbone_kwargs": {"output_stride": 8}}, "output_stride 8 cannot be read"),
        ("detr", {"backbone": "resnet34", "dilation": True}, r"a dilated \(DC5\) resnet18 or resnet34 cannot be read"),
        (
            "detr",
            {"backbone": "resnet18", "backbone_kwargs": {"output_stride": 16}},
            "resnet18 or resnet34 cannot be read",
        ),
    ],
)
def test_a_backbone_without_counterpart_is_told(folders, tmp_path, family, changes, said):
    copy = edited(folders[family], tmp_path, use_timm_backbone=True, backbone_config=None, **changes)
    with pytest.raises(UserError, match=f"copy/config.json: .*{said}"):
        made(Detector, checkpoint=Checkpoint.find(copy))


def test_cached_is_live_for_every_row_of_a_shard_larger_than_a_batch(folders, images, tmp_path):
    from tests.fixtures.toy_album import album, replaced, run

    pictured = album(tmp_path, count=11)
    random = np.random.default_rng(0)
    shown = []
    for index, uri in enumerate(pictured.uris):
        block = random.integers(0, 255, (5, 5, 3), np.uint8)
        shown.append(Image.fromarray(block).resize(SIZES[index % len(SIZES)]))
        shown[-1].save(uri)
        with open(uri, "rb") as file:
            replaced(pictured, index, file.read())
    stage = made(Detector, checkpoint=Checkpoint.find(folders["rt_detr"]), batch_size=4, states=True)
    run(pictured.tasks(pictured.part(stage), size=11))
    stored = pictured.spec(stage).open().read(CellSelection(pictured.rows, ("value",)))["value"].to_pylist()
    live = opened(folders["rt_detr"], states=True)
    for cell, image in zip(stored, shown, strict=True):
        alone = answers(live, [image])[0]
        assert cell["labels"] == alone["labels"]
        np.testing.assert_allclose(cell["boxes"], alone["boxes"], atol=1e-3)
        np.testing.assert_allclose(cell["states"], alone["states"], atol=2e-2)
