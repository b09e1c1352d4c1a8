"""Features, matching and captions: one pass, the stock answers, and a fingerprint that names what they depend on."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.blip.stages import BlipCaptions, BlipFeatures, BlipItm
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

ROOT = Path(__file__).parents[3]

PROMPTS = ("a photo of a person riding a bicycle", "a photo of a person and a cup", "a person sitting on a chair")
QUESTIONS = ("", "a photo of", "is there anybody riding a bicycle?")


@pytest.fixture(scope="module")
def found(checkpoints):
    return {name: Checkpoint.find(path) for name, path in vars(checkpoints).items()}


def opened(stages, shared=None):
    shared = {} if shared is None else shared
    for stage in stages:
        stage.open("cpu", shared)
    return stages


def count_tower_images(monkeypatch) -> list[int]:
    """Numbers of images of each vision pass from now on."""
    from transformers import BlipVisionModel

    passes: list[int] = []
    forward = BlipVisionModel.forward

    def counted(self, pixel_values=None, **options):
        passes.append(len(pixel_values))
        return forward(self, pixel_values=pixel_values, **options)

    monkeypatch.setattr(BlipVisionModel, "forward", counted)
    return passes


def test_one_pass_fills_three_tables(found, make_batch, monkeypatch):
    stages = opened(
        [
            made(BlipFeatures, checkpoint=found["itm"]),
            made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls"),
            made(BlipCaptions, checkpoint=found["caption"], columns=QUESTIONS),
        ]
    )
    assert len({stage.vision_key for stage in stages}) == 1
    passes = count_tower_images(monkeypatch)
    batch = make_batch()
    for stage in stages:
        assert set(stage.compute(batch, stage.columns, {})) == set(stage.columns)
    assert passes == [len(batch.images)]
    assert [stage.computed_cells for stage in stages] == [3, 9, 9]


def test_another_tower_is_not_shared(found, make_batch, monkeypatch):
    stages = opened(
        [
            made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls"),
            made(BlipCaptions, checkpoint=found["other"], columns=("",)),
        ]
    )
    assert stages[0].vision_key != stages[1].vision_key
    assert (
        made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls", dtype="bfloat16").vision_key
        != stages[0].vision_key
    )
    passes = count_tower_images(monkeypatch)
    batch = make_batch()
    for stage in stages:
        stage.compute(batch, stage.columns, {})
    assert len(passes) == 2


def test_a_shared_tower_is_held_once(found):
    features, captions = opened(
        [made(BlipFeatures, checkpoint=found["itm"]), made(BlipCaptions, checkpoint=found["caption"])]
    )
    assert features.model.vision_model is captions.model.vision_model


def test_features_are_the_stock_map_without_cls(found, checkpoints, processor, make_batch):
    (stage,) = opened([made(BlipFeatures, checkpoint=found["itm"], columns=("original", "flip"))])
    batch = make_batch()
    maps = stage.compute(batch, stage.columns, {})
    model = BlipForImageTextRetrieval.from_pretrained(checkpoints.itm).eval()
    pixels = processor(images=list(batch.images), return_tensors="pt")["pixel_values"]
    for view, seen in (("original", pixels), ("flip", pixels.flip(-1))):
        with torch.no_grad():
            tokens = model.vision_model(pixel_values=seen).last_hidden_state
        assert maps[view].shape == (4, *stage.output.shape) == (4, 64, 4, 4)
        row, column = 2, 1
        torch.testing.assert_close(maps[view][:, :, row, column], tokens[:, 1 + 4 * row + column])


@pytest.mark.parametrize("name", ["itm", "caption"])
def test_fused_attention_gives_the_same_maps_up_to_rounding_under_a_name_of_its_own(found, make_batch, name):
    shared: dict = {}
    plain = made(BlipFeatures, checkpoint=found[name])
    fused = made(BlipFeatures, checkpoint=found[name], fused_attention=True)
    assert plain.vision_key != fused.vision_key
    assert fingerprint_record(fused) == {**fingerprint_record(plain), "parameters.attention": "fused"}
    opened([plain, fused], shared)
    maps = [stage.compute(make_batch(), ["original"], {})["original"] for stage in (plain, fused)]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-5)
    assert not torch.equal(*maps)


def test_flip_is_the_mirrored_image(found):
    (stage,) = opened([made(BlipFeatures, checkpoint=found["itm"], columns=("original", "flip"))])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rows = np.zeros(1, "V16")
    flip = stage.compute(Batch(rows, ["a"], 1, [image]), ["flip"], {})["flip"]
    original = stage.compute(Batch(rows, ["b"], 1, [mirrored]), ["original"], {})["original"]
    torch.testing.assert_close(flip, original)


def test_matching_logits_are_the_stock_ones_in_order(found, checkpoints, processor, make_batch):
    (stage,) = opened([made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls")])
    batch = make_batch()
    asked = PROMPTS[::-1]
    answers = stage.compute(batch, asked, {})
    model = BlipForImageTextRetrieval.from_pretrained(checkpoints.itm).eval()
    for prompt in asked:
        inputs = processor(images=list(batch.images), text=[prompt] * 4, return_tensors="pt")
        with torch.no_grad():
            stock = model(**inputs).itm_score.numpy()
        np.testing.assert_allclose(np.array(answers[prompt].to_pylist()), stock, atol=1e-3)


def test_captions_are_what_the_stock_class_generates(found, checkpoints, processor, make_batch):
    (stage,) = opened([made(BlipCaptions, checkpoint=found["caption"], columns=QUESTIONS, max_new_tokens=8)])
    batch = make_batch()
    answers = stage.compute(batch, QUESTIONS[:2], {})
    model = BlipForConditionalGeneration.from_pretrained(checkpoints.caption).eval()
    for question in QUESTIONS[:2]:
        text = {"text": [question] * 4} if question else {}
        inputs = processor(images=list(batch.images), **text, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)
        lines = processor.batch_decode(written, skip_special_tokens=True)
        stock = [line.replace("[DEC]", "").strip().removeprefix(question).strip() for line in lines]
        assert [cell["text"] for cell in answers[question].to_pylist()] == stock
        assert answers[question].field("score").null_count == 4


def test_yes_no_questions_get_a_probability(found, checkpoints, processor, make_batch):
    question = QUESTIONS[2]
    (stage,) = opened([made(BlipCaptions, checkpoint=found["caption"], columns=QUESTIONS)])
    batch = make_batch()
    cells = stage.compute(batch, [question], {})[question].to_pylist()
    model = BlipForConditionalGeneration.from_pretrained(checkpoints.caption).eval()
    inputs = processor(images=list(batch.images), text=[question] * 4, return_tensors="pt")
    ids = inputs["input_ids"][:, :-1].clone()
    ids[:, 0] = model.config.text_config.bos_token_id
    with torch.no_grad():
        logits = model(pixel_values=inputs["pixel_values"], input_ids=ids).logits[:, -1]
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    expected = torch.sigmoid(logits[:, yes] - logits[:, no])
    assert all(0 <= cell["score"] <= 1 for cell in cells)
    np.testing.assert_allclose([cell["score"] for cell in cells], expected, atol=1e-6)
    assert [cell["text"] for cell in cells] == processor.tokenizer.batch_decode(logits.argmax(-1, keepdim=True))


def test_every_answer_has_the_declared_type_and_survives_arrow_ipc(found, make_batch):
    stages = opened(
        [
            made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls"),
            made(BlipCaptions, checkpoint=found["caption"], columns=QUESTIONS, max_new_tokens=4),
        ]
    )
    for stage in stages:
        for column, values in stage.compute(make_batch(), stage.columns, {}).items():
            assert values.type == stage.output.type
            sink = pa.BufferOutputStream()
            table = pa.table({column: values})
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            assert pa.ipc.open_file(sink.getvalue()).read_all()[column].to_pylist() == values.to_pylist()


def test_a_cell_does_not_depend_on_its_companions(found, make_batch):
    """Neither on the batch's other rows nor on the columns asked with it."""
    (stage,) = opened([made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls")])
    batch = make_batch()
    together = stage.compute(batch, PROMPTS, {})
    shuffled = Batch(batch.row_ids, batch.keys, 3, [batch.images[index] for index in (2, 1, 0, 0)])
    alone = stage.compute(shuffled, PROMPTS[1:2], {})[PROMPTS[1]].to_pylist()
    np.testing.assert_allclose(alone[2], together[PROMPTS[1]].to_pylist()[0], atol=1e-3)


def test_the_fingerprint_follows_what_the_values_depend_on(found, checkpoints, tmp_path):
    moved = Checkpoint.find(shutil.copytree(checkpoints.itm, tmp_path / "moved"))

    def record(checkpoint=found["itm"], columns=PROMPTS, **options):
        return fingerprint_record(
            made(BlipItm, checkpoint=checkpoint, columns=columns, **{"token_mode": "cls", **options})
        )

    assert record(moved) == record()
    assert record(columns=PROMPTS[:1], batch_size=7, memory_mib=9, gpus=1.0) == record()
    changed = [
        record(dtype="bfloat16"),
        record(token_mode="enc"),
        fingerprint_record(made(BlipFeatures, checkpoint=found["itm"])),
    ]
    assert all(other != record() for other in changed)
    assert [key for key, value in record(token_mode="enc").items() if record()[key] != value] == [
        "parameters.token_mode"
    ]
    captions = [
        made(BlipCaptions, checkpoint=found[name], max_new_tokens=n)
        for name, n in (("caption", 8), ("caption", 9), ("other", 8))
    ]
    assert len({str(fingerprint_record(stage)) for stage in captions}) == 3


def test_the_first_token_of_a_foreign_checkpoint_has_to_be_given(found):
    for options in ({}, {"token_mode": None}):
        with pytest.raises(UserError, match=r"token_mode: not given.* enc for Salesforce.* cls for"):
            made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, **options)


@pytest.mark.parametrize("folder", ["itm", "long_tailed/itm"])
def test_our_own_teachers_read_cls_as_they_did(folder):
    ours = Checkpoint.find(ROOT / "stages/teacher/pico" / folder)
    assert fingerprint_record(made(BlipItm, checkpoint=ours, columns=PROMPTS)) == fingerprint_record(
        made(BlipItm, checkpoint=ours, columns=PROMPTS, token_mode="cls")
    )


@pytest.mark.parametrize("name", ["hico_det_vlm_hoi", "v_coco_vlm_hoi"])
def test_configurations_around_salesforces_blip_ask_it_with_enc(name):
    tables = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())["tables"]
    assert tables["itm"]["checkpoint"].startswith("Salesforce/")
    assert tables["itm"]["token_mode"] == "enc"


def test_features_keep_their_table_under_another_head(found):
    """The maps depend on the tower alone."""
    assert fingerprint_record(made(BlipFeatures, checkpoint=found["itm"])) == fingerprint_record(
        made(BlipFeatures, checkpoint=found["caption"])
    )
    assert fingerprint_record(made(BlipFeatures, checkpoint=found["itm"])) != fingerprint_record(
        made(BlipFeatures, checkpoint=found["other"])
    )


def test_an_opened_stage_travels_as_plain_parameters(found, make_batch):
    (stage,) = opened([made(BlipItm, checkpoint=found["itm"], columns=PROMPTS, token_mode="cls")])
    sent = pickle.dumps(stage)
    assert len(sent) < 10_000
    arrived = opened([pickle.loads(sent)])[0]
    batch = make_batch()
    ours, theirs = stage.compute(batch, PROMPTS, {}), arrived.compute(batch, PROMPTS, {})
    assert [ours[p].to_pylist() for p in PROMPTS] == [theirs[p].to_pylist() for p in PROMPTS]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda found: made(BlipItm, checkpoint=found["caption"], columns=PROMPTS), "itm table"),
        (lambda found: made(BlipCaptions, checkpoint=found["itm"]), "captions table"),
        (lambda found: made(BlipFeatures, checkpoint=found["itm"], columns=("original", "upside down")), "upside down"),
    ],
)
def test_an_impossible_setup_is_told_at_once(found, make, why):
    with pytest.raises(UserError, match=why):
        make(found)


def test_an_unscorable_prompt_is_told_before_the_first_image(found):
    with pytest.raises(UserError, match="zeppelin"):
        opened(
            [made(BlipItm, checkpoint=found["itm"], columns=(*PROMPTS, "a person riding a zeppelin"), token_mode="cls")]
        )
