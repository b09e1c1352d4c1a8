"""Memory that runs out halves the forward and loses nothing; the size finds itself."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from transformers import Blip2VisionModel, BlipVisionModel

from hoi_distill.stages import batching as forwards
from hoi_distill.stages.batching import (
    AUTO_BATCH,
    AUTO_ROWS_ON_CPU,
    PartSize,
    fitting_rows,
    in_parts,
    one_tensor,
    part_size,
    taken,
)
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.blip.blip2 import Blip2Features, Blip2Itm
from hoi_distill.stages.teacher.blip.stages import BlipFeatures, BlipItm
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint
from tests.fixtures.stages import made
from tests.fixtures.tiny_blip2 import save_blip2

PROMPTS = ["a photo of a person riding a bicycle", "a person sitting on a chair"]


def small(limit: int, seen: list[int]):
    """A model that doubles its rows and runs out of memory above ``limit`` of them."""
    rows = torch.arange(10.0)

    def forward(positions: np.ndarray) -> torch.Tensor:
        seen.append(len(positions))
        if len(positions) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return rows[positions] * 2

    return forward


def test_a_batch_that_fits_is_one_forward():
    seen: list[int] = []
    (answer,) = in_parts(small(10, seen), 10, PartSize(10), "cpu")
    assert seen == [10]
    assert answer.tolist() == [2.0 * row for row in range(10)]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7])
def test_out_of_memory_halves_and_goes_on_with_every_row_once_in_order(limit):
    seen: list[int] = []
    size = PartSize(10)
    answers = torch.cat(in_parts(small(limit, seen), 10, size, "cpu"))
    assert answers.tolist() == [2.0 * row for row in range(10)]
    assert size.row_count is not None
    assert size.row_count <= limit
    assert len([length for length in seen if length > limit]) <= 4  # log2 of the batch, not one a row


def test_the_smaller_size_is_remembered():
    seen: list[int] = []
    shared: dict = {}
    torch.cat(in_parts(small(3, seen), 10, part_size(shared, "tower", 10), "cpu"))
    seen.clear()
    torch.cat(in_parts(small(3, seen), 10, part_size(shared, "tower", 10), "cpu"))
    assert set(seen) == {3}


def test_every_part_has_one_shape():
    """The last one too: what a row meets depends on nobody's absence."""
    seen: list[int] = []
    parts = in_parts(small(10, seen), 7, PartSize(3), "cpu")
    assert seen == [3, 3, 3]
    assert [len(part) for part in parts] == [3, 3, 1]


def test_a_row_that_does_not_fit_is_an_error_with_advice():
    with pytest.raises(torch.OutOfMemoryError) as raised:
        in_parts(small(0, []), 10, PartSize(10), "cpu")
    assert "smaller dtype" in "".join(raised.value.__notes__)


def test_other_errors_are_not_swallowed():
    def broken(positions):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        in_parts(broken, 4, PartSize(4), "cpu")


def test_the_size_that_fits():
    gib = 1 << 30
    assert fitting_rows(2 * gib, 5 * gib, 20 * gib) == 8  # 1 GiB a row and 1 GiB besides, of 16 GiB
    assert fitting_rows(gib, gib + 3, 20 * gib) == AUTO_BATCH
    assert fitting_rows(2 * gib, 8 * gib, gib) == 1


def test_auto_takes_modest_parts_where_there_is_no_gpu():
    size = part_size({}, "tower", "auto")
    in_parts(small(99, seen := []), 10, size, "cpu")
    assert size.row_count == AUTO_ROWS_ON_CPU
    assert set(seen) == {AUTO_ROWS_ON_CPU}


@pytest.fixture
def starved(monkeypatch):
    """From now on forwards of more than two rows run out of memory."""
    tried: list[int] = []

    def limit(stage_class, method):
        original = getattr(stage_class, method)

        def limited(self, *arguments, **options):
            rows = len(options["pixel_values"]) if "pixel_values" in options else len(arguments[0])
            tried.append(rows)
            if rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
            return original(self, *arguments, **options)

        monkeypatch.setattr(stage_class, method, limited)
        return tried

    return limit


def test_features_are_the_same_in_halves(families, make_batch, starved):
    from transformers import CLIPVisionModel

    stage = made(VisionFeatures, checkpoint=Checkpoint.find(families("clip")), batch_size=8)
    stage.open("cpu", {})
    batch = make_batch(5, 8)
    whole = stage.compute(batch, ["original"], {})["original"]
    tried = starved(CLIPVisionModel, "forward")
    again = Batch(batch.row_ids, batch.keys, batch.count, batch.images)
    halves = stage.compute(again, ["original"], {})["original"]
    assert tried == [8, 4, 2, 2, 2]
    torch.testing.assert_close(halves, whole, atol=1e-5, rtol=1e-5)


def test_answers_are_the_same_in_halves(families, make_batch, starved):
    questions = ["what is the person holding", "is there anybody riding a bicycle?"]
    stage = made(
        Answers, checkpoint=Checkpoint.find(families("llava")), columns=questions, max_new_tokens=4, batch_size=8
    )
    stage.open("cpu", {})
    batch = make_batch(5, 8)
    whole = stage.compute(batch, questions, {})
    tried = starved(Answers, "_answers")
    halves = stage.compute(batch, questions, {})
    assert tried[:5] == [8, 4, 2, 2, 2]
    assert len(tried) == 5
    for question in questions:
        assert halves[question].field("text") == whole[question].field("text")
        ours, theirs = (
            np.array(cell.field("score").to_pylist(), float) for cell in (halves[question], whole[question])
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_measuring_asks_for_one_and_four_rows(monkeypatch):
    """With a pretended CUDA device whose memory grows by 1 GiB a row."""
    gib, peak = 1 << 30, [0]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    asked: list[int] = []

    def forward(positions):
        asked.append(len(positions))
        peak[0] = len(positions) * gib

    assert forwards.measured_rows(forward, "cuda") == 32
    assert asked == [1, 1, 4]


@pytest.mark.parametrize("family", ["blip", "blip2"])
def test_a_vision_pass_in_halves_fills_the_same_tables(family, checkpoints, processor, tmp_path, make_batch, starved):
    if family == "blip":
        found, tower = Checkpoint.find(checkpoints.itm), BlipVisionModel
        stages, keys = (BlipFeatures, BlipItm), {"token_mode": "cls"}
    else:
        found = Checkpoint.find(save_blip2(tmp_path / "blip2", processor.tokenizer))
        stages, tower, keys = (Blip2Features, Blip2Itm), Blip2VisionModel, {}
    shared: dict = {}
    features = made(stages[0], checkpoint=found, batch_size=8)
    itm = made(stages[1], checkpoint=found, columns=PROMPTS, batch_size=8, **keys)
    for stage in (features, itm):
        stage.open("cpu", shared)
    batch = make_batch(5, 8)
    whole, scores = features.compute(batch, ["original"], {})["original"], itm.compute(batch, PROMPTS, {})
    tried = starved(tower, "forward")
    again = Batch(batch.row_ids, batch.keys, batch.count, batch.images)
    halves = features.compute(again, ["original"], {})["original"]
    assert tried == [8, 4, 2, 2, 2, 2]
    torch.testing.assert_close(halves, whole, atol=1e-5, rtol=1e-5)
    later = Batch(batch.row_ids, batch.keys, batch.count, batch.images)
    scored = itm.compute(later, PROMPTS, {})
    assert tried[6:] == [2, 2, 2, 2], "what one stage has learnt the other knows"
    for prompt in PROMPTS:
        np.testing.assert_allclose(
            *(np.array(each[prompt].to_pylist(), np.float32) for each in (scored, scores)), atol=1e-3
        )


def test_blip_finds_its_batch_by_itself(checkpoints, make_batch):
    found = Checkpoint.find(checkpoints.itm)
    auto, plain = made(BlipFeatures, checkpoint=found, batch_size="auto"), made(BlipFeatures, checkpoint=found)
    assert auto.batch_size == AUTO_BATCH
    assert (
        fingerprint_record(auto)
        == fingerprint_record(plain)
        == fingerprint_record(made(BlipFeatures, checkpoint=found, compile=True))
    )
    assert pickle.loads(pickle.dumps(auto)).batch_size == AUTO_BATCH
    batch = make_batch(3, 20)
    auto.open("cpu", {})
    plain.open("cpu", {})
    ours = auto.compute(batch, ["original"], {})["original"]
    assert auto.rows.row_count == AUTO_ROWS_ON_CPU
    theirs = plain.compute(make_batch(3, 20), ["original"], {})["original"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_compiled_blip_tower_agrees(checkpoints, make_batch):
    found = Checkpoint.find(checkpoints.itm)
    plain, compiled = made(BlipFeatures, checkpoint=found), made(BlipFeatures, checkpoint=found, compile=True)
    maps = []
    for stage in (plain, compiled):
        stage.open("cpu", {})
        maps.append(stage.compute(make_batch(), ["original"], {})["original"])
    torch.testing.assert_close(maps[1], maps[0], atol=1e-4, rtol=1e-4)


def test_neighbouring_rows_are_taken_without_a_copy_unless_one_is_repeated():
    rows = torch.arange(12.0).reshape(6, 2)
    for positions in (np.array([1, 2, 3]), np.array([4, 5, 5]), np.zeros(3, np.int64)):
        assert torch.equal(taken(rows, positions), rows[positions])
    assert taken(rows, np.array([1, 2, 3])).data_ptr() == rows[1].data_ptr()


def test_parts_become_one_tensor_and_a_single_part_is_one():
    parts = [torch.ones(2, 3), torch.zeros(1, 3)]
    assert torch.equal(one_tensor(parts), torch.cat(parts))
    assert one_tensor(parts[:1]) is parts[0]
