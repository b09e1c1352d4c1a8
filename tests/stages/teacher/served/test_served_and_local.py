"""The same weights behind a server and in the worker give the same answers."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.served.answers import ServedAnswers
from hoi_distill.stages.teacher.weights import Checkpoint
from tests.fixtures.chat_server import ChatServer, Reply, completion, first_tokens, image_of, question_of
from tests.fixtures.stages import made

OPEN, YES_NO = "what is the person holding", "is there anybody riding a bicycle?"
QUESTIONS = (OPEN, YES_NO)
WRITTEN = 6


@pytest.fixture
def batch() -> Batch:
    random = np.random.default_rng(0)
    shapes = [(50, 80), (90, 40), (33, 64)]
    images = [Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)) for shape in shapes]
    return Batch(np.zeros(3, "V16"), ["a", "b", "c"], 3, images)


def local(folder, batch, columns=QUESTIONS):
    stage = made(Answers, checkpoint=Checkpoint.find(folder), columns=columns, max_new_tokens=WRITTEN, batch_size=3)
    stage.open("cpu", {})
    return {column: values.to_pylist() for column, values in stage.compute(batch, columns, {}).items()}


def served(url, model, batch, columns=QUESTIONS, **keys):
    stage = made(
        ServedAnswers,
        base_url=url,
        model=model,
        columns=columns,
        max_new_tokens=WRITTEN,
        batch_size=3,
        keep_cut=True,
        **keys,
    )
    stage.open("cpu", {})
    answers = {column: values.to_pylist() for column, values in stage.compute(batch, columns, {}).items()}
    assert not batch.turn.end
    assert not batch.turn.failures
    return answers


class StockModel:
    """A LLaVA folder answered by transformers' own classes: the processor's template, then argmax after argmax."""

    def __init__(self, folder) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def __call__(self, body, _number) -> Reply:
        image = Image.open(io.BytesIO(base64.b64decode(image_of(body).partition(",")[2])))
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question_of(body)}]}]
        text = self.processor.apply_chat_template(said, add_generation_prompt=True)
        given = dict(self.processor(images=[image], text=[text], return_tensors="pt"))
        tokens, first = [], None
        for _ in range(body["max_tokens"]):
            with torch.no_grad():
                logprobs = self.model(**given).logits[0, -1].log_softmax(-1)
            first = logprobs if first is None else first
            tokens.append(int(logprobs.argmax()))
            given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([tokens[-1:]])], 1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        decode = self.processor.tokenizer.decode
        listed = {}
        if body.get("logprobs"):
            top = first.topk(min(body["top_logprobs"], len(first)))
            listed = {
                decode([token]): value for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            }
        told = first_tokens(listed) if listed else None
        return Reply(completion(decode(tokens, skip_special_tokens=True), finish="length", logprobs=told))


@pytest.mark.slow
def test_served_weights_write_what_local_ones_do_and_score_alike(families, batch):
    """A random model's first token is rarely yes: the server lists enough tokens to hold every yes and no."""
    folder = families("llava")
    ours = local(folder, batch)
    with ChatServer(StockModel(folder)) as server:
        theirs = served(server.url, "tiny", batch, top_logprobs=10_000)
    assert [cell["text"] for cell in theirs[OPEN]] == [cell["text"] for cell in ours[OPEN]]
    scores = [[cell["score"] for cell in cells[YES_NO]] for cells in (ours, theirs)]
    assert np.ptp(scores[0]) > 0.01
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


@pytest.mark.slow
def test_transformers_serve_writes_what_the_local_model_does(families, batch, tmp_path):
    """A server that nobody here wrote. It gives no log-probabilities, which the stage says."""
    pytest.importorskip("fastapi")
    pytest.importorskip("multipart")
    folder = families("llava")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1",
               "--port", str(port), "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/v1"
        theirs = served(url, str(folder), batch, (OPEN,))
        assert [cell["text"] for cell in theirs[OPEN]] == [cell["text"] for cell in local(folder, batch, (OPEN,))[OPEN]]
        assert batch.turn.recorded["server_model"] == f"{folder}@main"
        stage = made(ServedAnswers, base_url=url, model=str(folder), columns=(YES_NO,))
        stage.open("cpu", {})
        stage.compute(batch, (YES_NO,), {})
        assert "the server gives no log-probabilities of tokens; write scores: graded" in batch.turn.end
    finally:
        server.terminate()
        server.wait()
        log.close()
