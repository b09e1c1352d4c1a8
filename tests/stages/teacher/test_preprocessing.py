"""Images prepared ahead, one by one and in threads, give the very values of a batch that nobody prepared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.blip.blip2 import Blip2Features, Blip2Itm
from hoi_distill.stages.teacher.blip.stages import BlipFeatures, BlipItm
from hoi_distill.stages.teacher.detectors.transformers import Detector
from hoi_distill.stages.teacher.preprocessing import OnDevice, joined, preprocess
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint, image_processor
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made
from tests.fixtures.tiny_blip2 import save_blip2
from tests.fixtures.tiny_detectors import FAMILIES, tiny_detector

TOWERS = ("clip", "siglip", "dinov2")
WRITERS = ("instructblip", "llava", "qwen")
QUESTIONS = ("what is there?", "is the dog there?")
PROMPTS = ("a photo of a person riding a bicycle", "a person sitting on a chair")
VIEWS = ("original", "flip")
DEVICE = {"preprocess": "device"}
PHOTOS = sorted((Path(__file__).parents[3] / "docs/photos").glob("*.jpg"))


@pytest.fixture
def build(families, checkpoints, processor, tmp_path):
    """``build("clip")``: a stage of that family, opened."""

    def stage_of(name, **own):
        if name in TOWERS:
            return made(VisionFeatures, checkpoint=Checkpoint.find(families(name)), columns=VIEWS, **own)
        if name in WRITERS:
            options = {"columns": QUESTIONS, "max_new_tokens": 4, "batch_size": 4}
            return made(Answers, checkpoint=Checkpoint.find(families(name)), **options)
        if name in FAMILIES:
            return made(Detector, checkpoint=Checkpoint.find(tiny_detector(name, tmp_path / name)))
        if name.startswith("blip2"):
            torch.manual_seed(0)
            folder = save_blip2(tmp_path / "blip2", processor.tokenizer, initializer_range=0.1)
        else:
            folder = checkpoints.itm
        checkpoint = Checkpoint.find(folder)
        if name == "blip":
            return made(BlipFeatures, checkpoint=checkpoint, columns=VIEWS, **own)
        if name == "blip_itm":
            return made(BlipItm, checkpoint=checkpoint, columns=PROMPTS, token_mode="cls")
        if name == "blip2":
            return made(Blip2Features, checkpoint=checkpoint, columns=VIEWS, **own)
        return made(Blip2Itm, checkpoint=checkpoint, columns=PROMPTS)

    def build(name, **own):
        stage = stage_of(name, **own)
        stage.open("cpu", {})
        return stage

    return build


@pytest.mark.parametrize(
    ("name", "own"),
    [(name, {}) for name in (*TOWERS, *WRITERS, *FAMILIES, "blip", "blip_itm", "blip2", "blip2_itm")]
    + [(name, DEVICE) for name in ("clip", "blip")],
)
def test_values_are_the_same_whoever_prepares(build, make_batch, name, own):
    stage, batch = build(name, **own), make_batch()
    now = stage.compute(replace(batch, memo={}), stage.columns, {})
    with ThreadPoolExecutor(3) as readers:
        ahead = list(readers.map(stage.prepare, batch.images[: batch.count]))
    stage.prepare = None  # everything is there
    then = stage.compute(replace(batch, memo={}, ahead=ahead), stage.columns, {})
    for column, values in now.items():
        if isinstance(values, pa.Array):
            assert values.equals(then[column]), column
        else:
            assert torch.equal(values, then[column]), column


@pytest.mark.parametrize("name", [*TOWERS, "blip", "blip2"])
def test_one_by_one_is_what_the_processor_makes_of_all(build, make_batch, name):
    stage, images = build(name), make_batch().images
    folder = stage.checkpoint.here()
    side = getattr(stage, "image_size", None)
    whole = {"do_resize": True, "size": {"height": side, "width": side}, "do_center_crop": False} if side else {}
    together = image_processor(folder)(list(images), return_tensors="pt", **whole)["pixel_values"]
    alone = joined([stage.prepare(image) for image in images], "cpu", torch.float32)["pixel_values"]
    assert torch.equal(alone, together)


def test_padding_is_prepared_once(build, make_batch):
    stage, batch = build("blip"), make_batch(count=2, size=6)
    prepare, asked = stage.prepare, []
    stage.prepare = lambda image: (asked.append(image), prepare(image))[1]
    assert len(stage.prepared(batch)) == 6
    assert len(asked) == 2


def test_joined_casts_floats_alone(build, make_batch):
    stage = build("qwen")
    images = [preprocess(stage.processor, image, "cpu") for image in make_batch().images[:3]]
    tensors = joined(images, "cpu", torch.bfloat16)
    assert tensors["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(tensors["image_grid_thw"], torch.cat([image["image_grid_thw"] for image in images]))
    assert np.prod(tensors["image_grid_thw"].numpy(), axis=1).sum() == len(tensors["pixel_values"])


@pytest.mark.parametrize("name", [*TOWERS, "blip", "blip2"])
def test_the_device_makes_the_processors_pixels_but_for_two_levels(build, name):
    """On photographs, and on an image of hard edges, where a filter overshoots most."""
    own, other = build(name), build(name, **DEVICE)
    edges = Image.fromarray(255 * np.random.default_rng(0).integers(0, 2, (90, 130, 3), np.uint8))
    std = torch.tensor(own.processor.image_std).view(1, 3, 1, 1)
    for image in (*map(open_rgb, PHOTOS[:3]), edges):
        theirs = own.prepare(image)["pixel_values"]
        ours = other.on_device.pixels(other.prepare(image), "cpu")["pixel_values"]
        levels = (ours - theirs).abs() * std * 255
        assert ours.shape == theirs.shape
        assert levels.max() < 2.01
        assert levels.mean() < 0.02


def open_rgb(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("name", ["clip", "blip"])
def test_maps_of_both_preprocessings_are_alike_and_in_two_tables(build, make_batch, name):
    own, other = build(name), build(name, **DEVICE)
    batch = make_batch()
    for view in VIEWS:
        first, second = (stage.compute(replace(batch, memo={}), [view], {})[view].float() for stage in (own, other))
        assert (first - second).abs().mean() < 0.02 * first.std()
    assert fingerprint_record(own) != fingerprint_record(other)
    assert own.vision_key != other.vision_key
    assert fingerprint_record(own) == fingerprint_record(build(name, preprocess="processor"))


def test_a_filter_that_the_device_does_not_have_is_refused(build):
    processor = build("clip").processor
    processor.resample = 1
    with pytest.raises(UserError, match=r"preprocess: device: .*resample is 1.*leave preprocess out"):
        OnDevice.of(processor, 8, 8)
