"""Objects by name: the model's own boxes for each name, whatever else is asked or stands in the batch."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.detectors import finders, open_vocabulary
from hoi_distill.stages.teacher.detectors.given import TOP
from hoi_distill.stages.teacher.detectors.open_vocabulary import OpenVocabularyBoxes, object_boxes
from hoi_distill.stages.teacher.weights import Checkpoint, image_processor, load, tokenizer
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made
from tests.fixtures.tiny_open_vocabulary import FINDERS, LONGEST, finder

NAMES = ("dog", "cup", "red bicycle", "person")
SIZES = ((90, 64), (64, 90), (60, 80))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("finders")
    return {family: finder(family, root / family) for family in FINDERS}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(1)
    blocks = [random.integers(0, 255, (4, 4, 3), np.uint8) for _ in SIZES]
    return [Image.fromarray(block).resize(size) for block, size in zip(blocks, SIZES, strict=True)]


def stage(folder, **keys) -> OpenVocabularyBoxes:
    return made(OpenVocabularyBoxes, **{"checkpoint": Checkpoint.find(folder), "columns": NAMES, "least": 0.0, **keys})


def opened(folder, **keys) -> OpenVocabularyBoxes:
    found = stage(folder, **keys)
    found.open("cpu", {})
    return found


def answers(found: OpenVocabularyBoxes, images, columns=NAMES) -> dict[str, list[dict]]:
    batch = Batch(np.zeros(len(images), "V16"), [""] * len(images), len(images), images)
    return {name: cells.to_pylist() for name, cells in found.compute(batch, columns, {}).items()}


def by_the_model(folder, image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels and scores of one name in one image, best first, by the model's whole forward."""
    checkpoint = Checkpoint.find(folder)
    model = load(checkpoint, folder, "float32", "cpu")
    pixels = {"pixel_values": image_processor(folder)([image], return_tensors="pt")["pixel_values"]}
    write = tokenizer(folder)

    def tokens(text):
        padded = write([text], padding="max_length", max_length=LONGEST, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    with torch.inference_mode():
        if checkpoint.architecture.startswith("Owl"):
            ids, mask = tokens(f"a photo of a {name}")
            out = model(input_ids=ids, attention_mask=mask, **pixels)
            logits, boxes, side = out.logits[0, :, 0], out.pred_boxes[0], [max(image.size)] * 4
        else:
            (ids, mask), (task, task_mask) = tokens(name), tokens(f"Detect {name}.")
            out = model(classes_input_ids=ids, classes_attention_mask=mask, tasks_input_ids=task,
                        tasks_attention_mask=task_mask, classes_structure=torch.tensor([1]), **pixels)  # fmt: skip
            logits, boxes, side = out.decoder_class_logits[0, :, 0], out.decoder_coord_logits[0], [*image.size] * 2
    order = logits.argsort(descending=True)
    pixel = box_ops.clip(box_ops.cxcywh_to_xyxy(boxes[order]) * torch.tensor(side), *image.size)
    there = box_ops.area(pixel) > 0
    return pixel[there].numpy(), logits[order][there].sigmoid().numpy()


@pytest.mark.parametrize("family", FINDERS)
def test_a_cell_is_what_the_whole_model_says_of_this_name_in_this_image_alone(folders, images, family):
    found = answers(opened(folders[family]), images)
    for index, image in enumerate(images):
        for name in NAMES:
            boxes, scores = by_the_model(folders[family], image, name)
            cell = found[name][index]
            assert len(cell["scores"]) == len(scores) >= 2
            np.testing.assert_allclose(cell["scores"], scores, atol=1e-4)
            np.testing.assert_allclose(cell["boxes"], boxes, atol=1e-2)
            assert (cell["width"], cell["height"]) == image.size
    assert len({round(found[name][0]["scores"][0], 5) for name in NAMES}) == len(NAMES)  # the name matters
    assert len({round(cell["scores"][0], 5) for cell in found["dog"]}) == len(images)  # so does the image


@pytest.mark.parametrize("family", FINDERS)
def test_a_names_boxes_do_not_depend_on_the_other_names_or_images(folders, images, family):
    together = answers(opened(folders[family]), images)
    for name in NAMES:
        (alone,) = answers(opened(folders[family], columns=(name,)), images[1:2], (name,))[name]
        assert len(alone["scores"]) == len(together[name][1]["scores"])
        np.testing.assert_allclose(alone["scores"], together[name][1]["scores"], atol=1e-4)
        np.testing.assert_allclose(alone["boxes"], together[name][1]["boxes"], atol=1e-2)


@pytest.mark.parametrize("family", FINDERS)
def test_an_image_is_encoded_once_whatever_the_number_of_names(folders, images, family, monkeypatch):
    found = opened(folders[family])
    looked, asked = [], []
    own, find = type(found.finder).look, type(found.finder).find
    monkeypatch.setattr(
        type(found.finder), "look", lambda self, pixels: looked.append(len(pixels["pixel_values"])) or own(self, pixels)
    )
    monkeypatch.setattr(
        type(found.finder), "find", lambda self, seen, names: asked.append(len(names)) or find(self, seen, names)
    )
    answers(found, images)
    assert sum(looked) == len(images)
    assert set(asked) == {len(NAMES)}


def test_more_names_than_go_through_at_once_are_all_answered(folders, images, monkeypatch):
    expected = answers(opened(folders["owlv2"]), images)
    monkeypatch.setattr(finders, "NAMES_AT_ONCE", 3)
    found = answers(opened(folders["owlv2"]), images)
    for name in NAMES:
        for one, other in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_the_best_hundred_of_a_floor_and_inside_the_image_are_kept():
    count = TOP + 20
    found = np.zeros((1, count, 5), np.float32)
    found[0, :, :4] = (0.5, 0.25, 0.2, 0.2)
    found[0, 3, :4] = (0.5, 0.9, 0.1, 0.1)  # in the padding of a square
    found[0, :, 4] = np.linspace(0.9, 0.0, count)
    (cell,) = object_boxes(found, np.float32([[100, 100]]), [(100, 60)], least=0.5).to_pylist()
    assert min(cell["scores"]) >= 0.5
    assert len(cell["scores"]) == int((found[0, :, 4] >= 0.5).sum()) - 1
    np.testing.assert_allclose(cell["boxes"][0], (40, 15, 60, 35), rtol=1e-5)


@pytest.mark.parametrize("family", FINDERS)
def test_every_key_that_decides_a_value_is_in_the_fingerprint_and_no_other(folders, family):
    usual = fingerprint_record(stage(folders[family], least=0.01))
    for keys in ({"least": 0.02}, {"dtype": "bfloat16"}, {"prompt": "{name}!"}):
        assert fingerprint_record(stage(folders[family], **{"least": 0.01, **keys})) != usual
    for keys in ({"columns": ("cat",)}, {"batch_size": 3}, {"gpus": 1.0}):
        assert fingerprint_record(stage(folders[family], **{"least": 0.01, **keys})) == usual


def test_a_name_is_put_as_the_prompt_says(folders):
    assert stage(folders["owlv2"]).put("umbrella") == "a photo of an umbrella"
    assert stage(folders["owlv2"]).put("person") == "a photo of a person"
    assert stage(folders["omdet_turbo"]).put("umbrella") == "umbrella"
    assert stage(folders["omdet_turbo"], prompt="one {name}, {phrase}").put("skis") == "one skis, a pair of skis"
    with pytest.raises(UserError, match=r"prompt: 'a photo' must hold \{name\} or \{phrase\}"):
        stage(folders["owlv2"], prompt="a photo")


def test_a_name_that_is_too_long_is_refused_before_any_image(folders):
    with pytest.raises(UserError, match=rf"columns: .*zzz.* tokens, the detector takes {LONGEST}; shorten"):
        opened(folders["owlv2"], columns=("dog", "z" * 80))


def test_an_opened_stage_travels_as_plain_parameters(folders, images):
    found = opened(folders["owlv2"])
    again = pickle.loads(pickle.dumps(found))
    assert not hasattr(again, "finder")
    again.open("cpu", {})
    assert answers(again, images[:1]) == answers(found, images[:1])


def test_memory_that_runs_out_halves_the_forward_and_the_run_goes_on(folders, images, monkeypatch):
    expected, found = answers(opened(folders["omdet_turbo"]), images), opened(folders["omdet_turbo"])
    own = type(found.finder).look

    def look(self, pixels):
        if len(pixels["pixel_values"]) > 1:
            raise torch.OutOfMemoryError
        return own(self, pixels)

    monkeypatch.setattr(type(found.finder), "look", look)
    for name, cells in answers(found, images).items():
        for one, other in zip(cells, expected[name], strict=True):
            np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def other(folder, tmp_path, **changes) -> Checkpoint:
    """The checkpoint with another config.json."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    record = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(record))
    return Checkpoint.find(tmp_path)


def test_a_model_that_reads_image_and_names_together_is_refused_with_the_reason(folders, tmp_path):
    found = other(folders["owlv2"], tmp_path, architectures=["GroundingDinoForObjectDetection"])
    with pytest.raises(UserError, match="one more name would change the boxes of all others; take Owlv2"):
        made(OpenVocabularyBoxes, checkpoint=found, columns=NAMES)


def test_any_other_model_is_refused_with_those_that_are_taken(folders, tmp_path):
    found = other(folders["owlv2"], tmp_path, architectures=["DetrForObjectDetection"])
    with pytest.raises(UserError, match=r"finds no objects by name; it takes Owlv2ForObjectDetection, OmDetTurbo"):
        made(OpenVocabularyBoxes, checkpoint=found, columns=NAMES)


def test_planning_says_that_a_timm_backbone_needs_timm(folders, tmp_path, monkeypatch):
    found = other(folders["omdet_turbo"], tmp_path, backbone_config={"model_type": "timm_backbone"})
    monkeypatch.setattr(open_vocabulary, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config\.json: its backbone is timm's; install it"):
        made(OpenVocabularyBoxes, checkpoint=found, columns=NAMES)


def test_object_names_are_the_vocabularys_in_words(folders):
    words = Vocabulary.from_actions([("ice_cream", "eat", "eating")], "test", objects=("person", "ice_cream"))
    assert words.object_names() == ("person", "ice cream")
