"""Maps of CLIP, SigLIP and DINOv2 are the stock tokens of the whole image, and a fingerprint says of which."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

NAMES = ("clip", "siglip", "dinov2", "dinov2_registers")


@pytest.fixture
def found(families):
    def find(name: str) -> Checkpoint:
        return Checkpoint.find(families("dinov2", registers=True) if name == "dinov2_registers" else families(name))

    return find


def opened(checkpoint, columns=("original",), **options):
    stage = made(VisionFeatures, checkpoint=checkpoint, columns=columns, **options)
    stage.open("cpu", {})
    return stage


def whole_image(checkpoint, images, side=32):
    """Pixels by hand: the checkpoint's resampling, scale, mean and deviation, the image squeezed into a square."""
    record = checkpoint.preprocessing
    mean, std = np.array(record["image_mean"]), np.array(record["image_std"])
    squares = [image.resize((side, side), Image.Resampling(record["resample"])) for image in images]
    stacked = np.stack([(np.asarray(square) / 255 - mean) / std for square in squares])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float()


def stock_tokens(checkpoint, pixels, layer=None):
    """Normed tokens with everything the tower has, by the stock class."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint.folder).eval()
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        out = tower(pixel_values=pixels, output_hidden_states=True)
    norm = getattr(tower, "post_layernorm", None) or tower.layernorm
    with torch.no_grad():
        return model, norm(out.hidden_states[-1 if layer is None else layer])


@pytest.mark.parametrize(("name", "leading"), [("clip", 1), ("siglip", 0), ("dinov2", 1), ("dinov2_registers", 3)])
@pytest.mark.parametrize("layer", [-1, 2])
def test_maps_are_the_stock_tokens(found, make_batch, name, leading, layer):
    checkpoint = found(name)
    stage = opened(checkpoint, ("original", "flip"), layer=layer)
    batch = make_batch()
    maps = stage.compute(batch, stage.columns, {})
    pixels = whole_image(checkpoint, batch.images)
    for view, seen in (("original", pixels), ("flip", pixels.flip(-1))):
        _, tokens = stock_tokens(checkpoint, seen, None if layer == -1 else layer)
        assert maps[view].shape == (4, *stage.output.shape) == (4, 32, 4, 4)
        for row, column in ((0, 0), (2, 1), (3, 3)):
            ours = maps[view][:, :, row, column]
            torch.testing.assert_close(ours, tokens[:, leading + 4 * row + column], atol=2e-3, rtol=1e-3)


def test_projected_tokens_share_the_texts_space(found, make_batch):
    checkpoint = found("clip")
    full, projected = opened(checkpoint), opened(checkpoint, width="projected")
    assert projected.output.shape == (24, 4, 4)
    assert full.vision_key == projected.vision_key
    batch = make_batch()
    maps = projected.compute(batch, ["original"], {})["original"]
    model, tokens = stock_tokens(checkpoint, whole_image(checkpoint, batch.images))
    with torch.no_grad():
        expected = model.visual_projection(tokens[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(maps, expected, atol=5e-3, rtol=1e-3)


def test_tables_of_one_tower_take_one_pass(found, make_batch, monkeypatch):
    from transformers import CLIPVisionModel

    shared: dict = {}
    stages = [made(VisionFeatures, checkpoint=found("clip"), width=width) for width in ("full", "projected")]
    for stage in stages:
        stage.open("cpu", shared)
    passes = []
    forward = CLIPVisionModel.forward
    monkeypatch.setattr(CLIPVisionModel, "forward", lambda self, **given: passes.append(1) or forward(self, **given))
    batch = make_batch()
    for stage in stages:
        stage.compute(batch, ["original"], {})
    assert len(passes) == 1


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_what_has_no_projection_says_so(found, name):
    with pytest.raises(UserError, match="width: full"):
        made(VisionFeatures, checkpoint=found(name), width="projected")


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(found, make_batch, name):
    stage = opened(found(name), batch_size=8)
    batch = make_batch(5, 8)
    together = stage.compute(batch, ["original"], {})["original"]
    for index, image in enumerate(batch.images[:5]):
        alone = stage.compute(Batch(batch.row_ids[:8], batch.keys, 1, [image] * 8), ["original"], {})["original"]
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_another_image_size_is_another_grid(found, make_batch, name):
    stage = opened(found(name), image_size=48)
    assert stage.compute(make_batch(), ["original"], {})["original"].shape == (4, 32, 6, 6)


def test_a_corner_of_a_wide_image_is_on_the_map(found):
    """The checkpoint's own processor would crop the middle out of it."""
    stage = opened(found("clip"))
    image = np.zeros((32, 96, 3), np.uint8)
    other = image.copy()
    other[:, -8:] = 255
    rows = np.zeros(2, "V16")
    images = [Image.fromarray(image), Image.fromarray(other)]
    maps = stage.compute(Batch(rows, ["a", "b"], 2, images), ["original"], {})["original"]
    assert (maps[0, :, :, 3] - maps[1, :, :, 3]).abs().max() > 0.1


def test_the_fingerprint_follows_what_the_maps_depend_on(found, tmp_path):
    clip = found("clip")

    def record(checkpoint=clip, columns=("original",), **options):
        return fingerprint_record(made(VisionFeatures, checkpoint=checkpoint, columns=columns, **options))

    same = [{"columns": ("flip",)}, {"batch_size": 7}, {"batch_size": "auto"}, {"gpus": 1.0}, {"layer": 3}]
    same += [{"image_size": 32}, {"compile": True}]
    assert all(record(**options) == record() for options in same)
    others = [{"width": "projected"}, {"layer": 2}, {"image_size": 48}, {"dtype": "bfloat16"}, {"codec": "int8"}]
    records = [str(record(**options)) for options in [{}, *others]]
    assert len(set(records)) == len(records)
    moved = shutil.copytree(clip.folder, tmp_path / "moved")
    assert record(Checkpoint.find(moved)) == record()

    changed = load_file(moved / "model.safetensors")
    changed["visual_projection.weight"] = changed["visual_projection.weight"] + np.float32(1)
    save_file(changed, moved / "model.safetensors", metadata={"format": "pt"})
    assert record(Checkpoint.find(moved)) == record()
    assert record(Checkpoint.find(moved), width="projected") != record(width="projected")
    changed["vision_model.post_layernorm.bias"] = changed["vision_model.post_layernorm.bias"] + np.float32(1)
    save_file(changed, moved / "model.safetensors", metadata={"format": "pt"})
    assert record(Checkpoint.find(moved)) != record()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"layer": 4}, "layer 4"),
        ({"layer": 0}, "layer 0"),
        ({"image_size": 30}, "patch size"),
        ({"columns": ("upside down",)}, "upside down"),
    ],
)
def test_an_impossible_setup_is_told_at_once(found, options, why):
    with pytest.raises(UserError, match=why):
        made(VisionFeatures, checkpoint=found("clip"), **options)


def test_naflex_is_refused(found, tmp_path):
    folder = shutil.copytree(found("siglip").folder, tmp_path / "naflex")
    config = (folder / "config.json").read_text().replace('"SiglipModel"', '"Siglip2Model"')
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match="fixed-resolution"):
        made(VisionFeatures, checkpoint=Checkpoint.find(folder))


def test_half_precision_stays_near(found, make_batch):
    batch = make_batch()
    exact = opened(found("siglip")).compute(batch, ["original"], {})["original"]
    rough = opened(found("siglip"), dtype="bfloat16").compute(batch, ["original"], {})["original"].float()
    assert 0 < (exact - rough).abs().mean() < 0.05


def test_an_opened_stage_travels_as_plain_parameters(found, make_batch):
    stage = opened(found("dinov2"))
    sent = pickle.dumps(stage)
    assert len(sent) < 10_000
    arrived = pickle.loads(sent)
    arrived.open("cpu", {})
    batch = make_batch()
    ours, theirs = (each.compute(batch, ["original"], {})["original"] for each in (stage, arrived))
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_compiled_tower_agrees(found, make_batch):
    batch = make_batch()
    plain = opened(found("clip")).compute(batch, ["original"], {})["original"]
    compiled = opened(found("clip"), compile=True).compute(make_batch(), ["original"], {})["original"]
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("whole", "alone", "width"),
    [
        ("clip", "CLIPVisionModel", "full"),
        ("clip", "CLIPVisionModelWithProjection", "projected"),
        ("siglip", "SiglipVisionModel", "full"),
    ],
)
def test_a_tower_saved_alone_gives_the_same_maps(found, make_batch, tmp_path, whole, alone, width):
    import transformers

    checkpoint = found(whole)
    model = transformers.AutoModel.from_pretrained(checkpoint.folder)
    if alone.endswith("Projection"):
        config = model.config.vision_config
        config.projection_dim = model.config.projection_dim
        tower = transformers.CLIPVisionModelWithProjection(config)
        tower.vision_model, tower.visual_projection = model.vision_model, model.visual_projection
    else:
        tower = model.vision_model
    tower.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, backend="pil").save_pretrained(tmp_path)
    single = Checkpoint.find(tmp_path)
    assert single.architecture == alone
    batch = make_batch()
    maps = [
        opened(each, width=width).compute(Batch(batch.row_ids, batch.keys, 3, batch.images), ["original"], {})[
            "original"
        ]
        for each in (checkpoint, single)
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_a_configuration_may_leave_out_what_is_usual(found, tmp_path):
    """Hub checkpoints do: what is not there is the class's default, which the grid must follow."""
    import json

    from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

    for name, usual in (("clip", CLIPVisionConfig()), ("siglip", SiglipVisionConfig()), ("dinov2", Dinov2Config())):
        folder = shutil.copytree(found(name).folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        kept = {"vision_config": {}, "text_config": {}} if "vision_config" in config else {}
        architectures = {"architectures": config["architectures"], "model_type": config["model_type"]}
        (folder / "config.json").write_text(json.dumps({**kept, **architectures}))
        (folder / "processor_config.json").unlink(missing_ok=True)
        (folder / "preprocessor_config.json").write_text('{"do_resize": true}')
        stage = made(VisionFeatures, checkpoint=Checkpoint.find(folder))
        side = usual.image_size // usual.patch_size
        assert stage.output.shape == (usual.hidden_size, side, side)
        assert stage.layer == usual.num_hidden_layers
