"""``answers`` with ``engine: vllm`` asks vLLM's offline interface for what the transformers engine computes.

vLLM cannot run here. A stand-in of its interface runs the same weights through transformers.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.stage import Batch, Turn, fingerprint_record
from hoi_distill.stages.teacher import vllm_engine
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

OPEN, YES_NO = "what is the person holding", "is there anybody riding a bicycle?"
QUESTIONS = (OPEN, YES_NO)


class SamplingParams(SimpleNamespace):
    """As vLLM's: what a prompt wishes for."""


class LLM:
    """As vLLM's offline interface: token ids with one mark for an image in, texts and log-probabilities out."""

    asked = 0

    def __init__(self, model: str, **options) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        self.options = options
        self.model = AutoModelForImageTextToText.from_pretrained(model).eval()
        self.images = AutoImageProcessor.from_pretrained(model, backend="pil")
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def generate(self, prompts, sampling_params, use_tqdm=True):
        LLM.asked += len(prompts)
        return [self._one(prompt, wish) for prompt, wish in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt, wish):
        pixels = self.images([prompt["multi_modal_data"]["image"]], return_tensors="pt")["pixel_values"]
        mark, ids = self.model.config.image_token_id, list(prompt["prompt_token_ids"])
        at = ids.index(mark)
        patches = (pixels.shape[-1] // self.model.config.vision_config.patch_size) ** 2
        ids = torch.tensor([[*ids[:at], *[mark] * patches, *ids[at + 1 :]]])
        tokens, first = [], None
        for _ in range(wish.max_tokens):
            with torch.no_grad():
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
            logprobs = logits[0, -1].log_softmax(-1)
            first = logprobs if first is None else first
            tokens.append(int(logprobs.argmax()))
            ids = torch.cat([ids, torch.tensor([tokens[-1:]])], 1)
        listed = None
        if getattr(wish, "logprobs", None):
            top = first.topk(min(wish.logprobs, len(first)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            listed = [{token: SimpleNamespace(logprob=value) for token, value in pairs}]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return SimpleNamespace(outputs=[SimpleNamespace(text=text, logprobs=listed)])


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = LLM, SamplingParams, ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.asked = 0


@pytest.fixture
def batch() -> Batch:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)) for shape in [(50, 80), (90, 40)]]
    return Batch(np.zeros(3, "V16"), ["a", "b", "b"], 2, [*images, images[-1]])


def stage(folder, **keys) -> Answers:
    return made(Answers, checkpoint=Checkpoint.find(folder), columns=QUESTIONS, max_new_tokens=6, batch_size=3, **keys)


def answers(folder, batch, **keys):
    answering = stage(folder, **keys)
    answering.open("cpu", {})
    return {column: cells.to_pylist()[:2] for column, cells in answering.compute(batch, QUESTIONS, {}).items()}


@pytest.mark.slow
def test_both_engines_answer_alike(families, batch, vllm, monkeypatch):
    """A random model's first token is rarely yes: enough are listed to hold every yes and no."""
    monkeypatch.setattr(vllm_engine, "LISTED", 10_000)
    ours, theirs = (answers(families("llava"), batch, engine=engine) for engine in ("transformers", "vllm"))
    assert theirs[OPEN] == ours[OPEN]
    for one, other in zip(ours[YES_NO], theirs[YES_NO], strict=True):
        assert other["text"] == one["text"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-3)


def test_only_wanted_cells_are_asked_for(families, batch, vllm):
    batch.turn = Turn(wanted=np.array([[True, False], [False, False]]))
    answers(families("llava"), batch, engine="vllm")
    assert LLM.asked == 1


def test_neither_yes_nor_no_is_a_failure(families, batch, vllm, monkeypatch):
    monkeypatch.setattr(vllm_engine, "LISTED", 1)
    answers(families("llava"), batch, engine="vllm")
    assert set(batch.turn.failures) == {(0, YES_NO), (1, YES_NO)}


def test_the_engine_is_another_table_and_the_default_is_the_old_one(families):
    folder = families("llava")
    assert "engine" not in stage(folder).parameters()
    assert fingerprint_record(stage(folder)) != fingerprint_record(stage(folder, engine="vllm"))


def test_a_missing_engine_is_told_before_work_starts(families):
    with pytest.raises(UserError, match="engine: vllm is not installed here; install it with"):
        stage(families("llava"), engine="vllm").rehearse()
    stage(families("llava")).rehearse()


def test_a_family_that_vllm_lacks_is_refused(families):
    with pytest.raises(UserError, match="write engine: transformers"):
        stage(families("instructblip"), engine="vllm")


def test_planning_and_the_other_engine_import_no_vllm():
    assert "vllm" not in sys.modules
