"""BLIP-2's tables, and the contrastive ones of both families: the stock answers, one pass, columns added to columns."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Blip2ForImageTextRetrieval, BlipForImageTextRetrieval, BlipImageProcessorPil

from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.stages.teacher.blip.blip2 import Blip2Features, Blip2Itm
from hoi_distill.stages.teacher.blip.itc import Blip2Itc, BlipItc
from hoi_distill.stages.teacher.blip.stages import BlipCaptions, BlipItm, ItmStage
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.stages import made
from tests.fixtures.tiny_blip import random_prompts
from tests.fixtures.tiny_blip2 import save_blip2
from tests.fixtures.toy_stages import Album, plan_of, run

PROMPTS = tuple(dict.fromkeys(random_prompts(22)))[:18]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor) -> Path:
    torch.manual_seed(0)
    return save_blip2(tmp_path_factory.mktemp("blip2"), processor.tokenizer, initializer_range=0.1)


@pytest.fixture(scope="module")
def found(folder) -> Checkpoint:
    return Checkpoint.find(folder)


def opened(*stages):
    shared: dict = {}
    for stage in stages:
        stage.open("cpu", shared)
    return stages


def stock_answers(model, processor, tokenizer, images, prompts, **options):
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    text = tokenizer(list(prompts), padding=True, return_tensors="pt")
    with torch.no_grad():
        return [
            model(
                pixel_values=image.expand(len(prompts), -1, -1, -1),
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                **options,
            )
            for image in pixels
        ]


def array(answers, prompts) -> np.ndarray:
    """``[B, P, ...]``"""
    return np.stack([np.array(answers[prompt].to_pylist(), np.float32) for prompt in prompts], axis=1)


def test_logits_similarities_and_maps_are_the_stock_ones(found, folder, processor, make_batch):
    itm, itc, features = opened(
        made(Blip2Itm, checkpoint=found, columns=PROMPTS),
        made(Blip2Itc, checkpoint=found, columns=PROMPTS),
        made(Blip2Features, checkpoint=found),
    )
    model = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    batch = make_batch()
    stock = [model, BlipImageProcessorPil.from_pretrained(folder), processor.tokenizer, batch.images, PROMPTS]
    logits = torch.stack([out.logits_per_image for out in stock_answers(*stock, use_image_text_matching_head=True)])
    np.testing.assert_allclose(array(itm.compute(batch, PROMPTS, {}), PROMPTS), logits, atol=1e-3)
    # With pictures repeated, the class's similarities are [P, P] of one picture; any row of them will do.
    cosines = torch.stack([out.logits_per_image[0] for out in stock_answers(*stock)])
    np.testing.assert_allclose(array(itc.compute(batch, PROMPTS, {}), PROMPTS), cosines, atol=1e-6)
    assert cosines.std(1).min() > 1e-3
    tokens = stock_answers(*stock)[1].vision_model_output.last_hidden_state[0]
    maps = features.compute(batch, ("original",), {})["original"]
    assert maps.shape == (4, *features.output.shape) == (4, 64, 4, 4)
    torch.testing.assert_close(maps[1, :, 2, 1], tokens[1 + 4 * 2 + 1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_stay_near_float32(found, make_batch, dtype):
    """As the class loads itself: under float16 the Q-Former stays float32."""
    batch = make_batch()
    for make, tolerance in ((Blip2Itm, 0.05), (Blip2Itc, 0.02)):
        exact, near = (
            opened(made(make, checkpoint=found, columns=PROMPTS, dtype=name))[0] for name in ("float32", dtype)
        )
        batch.memo.clear()
        expected = array(exact.compute(batch, PROMPTS, {}), PROMPTS)
        np.testing.assert_allclose(array(near.compute(batch, PROMPTS, {}), PROMPTS), expected, atol=tolerance)
    kept = near.model.qformer.layernorm.weight.dtype
    assert kept == (torch.float32 if dtype == "float16" else torch.bfloat16)


def test_blip_similarities_are_the_stock_ones(checkpoints, processor, make_batch):
    (itc,) = opened(made(BlipItc, checkpoint=Checkpoint.find(checkpoints.itm), columns=PROMPTS))
    model = BlipForImageTextRetrieval.from_pretrained(checkpoints.itm).eval()
    batch = make_batch()
    stock = [model, processor.image_processor, processor.tokenizer, batch.images, PROMPTS]
    cosines = torch.stack([out.itm_score[0] for out in stock_answers(*stock, use_itm_head=False)])
    asked = PROMPTS[::-1]
    np.testing.assert_allclose(array(itc.compute(batch, asked[:5], {}), asked[:5]), cosines.flip(1)[:, :5], atol=1e-6)
    np.testing.assert_allclose(array(itc.compute(batch, asked, {}), asked), cosines.flip(1), atol=1e-6)


def test_one_pass_fills_three_tables(found, make_batch, monkeypatch):
    stages = opened(
        made(Blip2Itm, checkpoint=found, columns=PROMPTS),
        made(Blip2Itc, checkpoint=found, columns=PROMPTS),
        made(Blip2Features, checkpoint=found),
    )
    assert len({stage.vision_key for stage in stages}) == 1
    passes = []
    forward = stages[0].model.vision_model.forward
    monkeypatch.setattr(
        stages[0].model.vision_model,
        "forward",
        lambda pixel_values: passes.append(len(pixel_values)) or forward(pixel_values=pixel_values),
    )
    batch = make_batch()
    for stage in stages:
        assert all(len(v) == 4 for v in stage.compute(batch, stage.columns, {}).values())
        assert len(pickle.dumps(stage)) < 20_000
    assert passes == [4]


def test_families_are_not_mixed_up(found, checkpoints):
    blip = Checkpoint.find(checkpoints.itm)
    for make, checkpoint in ((Blip2Itm, blip), (Blip2Itc, blip), (BlipItm, found), (BlipItc, found)):
        with pytest.raises(UserError, match="cannot fill the it"):
            made(make, checkpoint=checkpoint, columns=PROMPTS)
    with pytest.raises(UserError, match="cannot fill the features table; it takes Blip2ForImageTextRetrieval"):
        made(Blip2Features, checkpoint=blip)
    with pytest.raises(UserError, match="captions"):
        made(BlipCaptions, checkpoint=found)
    records = [
        fingerprint_record(made(BlipItm, checkpoint=blip, columns=PROMPTS, token_mode="cls")),
        fingerprint_record(made(Blip2Itm, checkpoint=found, columns=PROMPTS)),
    ]
    assert records[0].keys() == records[1].keys()


def test_the_choice_of_cells_is_no_part_of_the_fingerprint(found):
    whole, some = (
        made(Blip2Itm, checkpoint=found, columns=PROMPTS),
        made(Blip2Itm, checkpoint=found, columns=PROMPTS, itc="similar", itc_top_k=3),
    )
    assert fingerprint_record(whole) == fingerprint_record(some)
    assert some.inputs == ("similar",)
    assert some.batch_size == 1
    for wrong in ({"itc": "similar"}, {"itc_top_k": 3}, {"itc": "similar", "itc_top_k": 0}):
        with pytest.raises(UserError, match="itc_top_k"):
            made(Blip2Itm, checkpoint=found, columns=PROMPTS, **wrong)


@pytest.fixture
def line(tmp_path, folder, monkeypatch) -> Album:
    """Six pictures, their similarities to 18 prompts and BLIP-2's matching logits of 8."""
    album = Album(tmp_path)
    random = np.random.default_rng(0)
    for path in album.folder.iterdir():
        Image.fromarray(random.integers(0, 255, (60, 70, 3), np.uint8)).save(path)
    blip2 = {"checkpoint": str(folder), "batch_size": 4}
    album.config["tables"] = {
        "itc": {"stage": "blip2_itc", "columns": list(PROMPTS), **blip2},
        "itm": {"stage": "blip2_itm", "columns": list(PROMPTS[:8]), **blip2},
    }
    album.write()
    calls: list[int] = []
    real = ItmStage.compute

    def compute(self, batch, columns, inputs):
        calls.append(batch.count * len(columns))
        return real(self, batch, columns, inputs)

    monkeypatch.setattr(ItmStage, "compute", compute)
    album.calls = calls  # type: ignore[attr-defined]
    return album


def stored(album: Album, name: str, columns) -> np.ndarray:
    workspace = album.workspace()
    made = plan_of(workspace)[name]
    values = made.table.read(CellSelection(workspace.sources["images"].ids[made.rows], tuple(columns)))
    return np.stack([np.array(values[column].to_pylist(), np.float32) for column in columns], axis=1)


def test_ten_more_prompts_are_ten_columns(line, tmp_path):
    """And the old columns, computed again among the new ones, are what they were."""
    run(line.workspace())
    assert sum(line.calls) == 6 * 8
    before = stored(line, "itm", PROMPTS[:8])
    line.config["tables"]["itm"]["columns"] = list(PROMPTS)
    line.write()
    line.calls.clear()
    assert run(line.workspace()).cells == {"itm": 60}
    assert sum(line.calls) == 60
    assert np.array_equal(stored(line, "itm", PROMPTS[:8]), before)
    line.config["cache"] = str(tmp_path / "another")
    line.write()
    run(line.workspace())
    again = stored(line, "itm", PROMPTS)[:, :8]
    np.testing.assert_allclose(again, before, atol=1e-3)
    assert before.std(0).min() > 0
    assert before.std(1).min() > 1e-2


def test_similarity_chooses_which_cells_a_picture_wants(line):
    tables = line.config["tables"]
    tables["itm"].update(columns=list(PROMPTS), itc="itc", itc_top_k=5)
    line.write()
    assert plan_of(line.workspace())["itm"].counts["unknown"] == 6 * 18
    assert run(line.workspace()).cells == {"itc": 6 * 18, "itm": 6 * 5}
    assert sum(line.calls) == 6 * 5, "only what is wanted is computed"
    made = plan_of(line.workspace())["itm"]
    assert made.complete()
    assert made.counts["wanted"] == 30
    rank = np.argsort(np.argsort(-stored(line, "itc", PROMPTS), axis=1), axis=1)
    assert np.array_equal(made.cells.wanted, rank < 5)
    (line.folder / "bad.png").write_bytes(b"no picture")
    assert run(line.workspace()).failures == {"itc": 18, "itm": 18}
    (line.folder / "bad.png").unlink()
    del tables["itm"]["itc"], tables["itm"]["itc_top_k"]
    line.write()
    line.calls.clear()
    assert run(line.workspace()).cells == {"itm": 6 * 13}, "cells filled under a choice stay filled without it"
    tables["itm"].update(itc="itc", itc_top_k=7)
    line.write()
    assert run(line.workspace()).cells == {}


def test_a_prompt_without_similarity_is_named(line):
    line.config["tables"]["itc"]["columns"] = list(PROMPTS[:4])
    line.config["tables"]["itm"].update(itc="itc", itc_top_k=2)
    line.write()
    with pytest.raises(UserError, match=f"'{PROMPTS[4]}' is chosen by column '{PROMPTS[4]}' of itc; add it"):
        line.workspace()
