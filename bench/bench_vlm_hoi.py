"""What a teacher costs a VLM-HOI training: none, cached scores, or BLIP in the loop as the paper has it; and inference.

The training step is the trainer's own (batch, forward, loss, backward, clip, step). A live teacher encodes the batch's raw
pictures once a step, scores sentences against them with the stock text model (each picture's states once, left to broadcast)
and adds Eq. 4's hinge, which gives the student no gradient. Two settings:

* pico: ``configs/pico_vlm_hoi.yaml`` on a small world of its own, in its batches, pictures decoded; the live teacher is
  asked for the distinct (verb, object) that the queries of any layer put first, as the released code asks;
* full size: MUREN-R50 and BLIP-base with random weights, one picture of 640 x 853 pixels, not decoded for the student, and
  two numbers of sentences between which the paper's (not logged) will mostly lie.

Variants take every step in turn, beginning with another one each time; ``over`` is the median, over blocks of steps, of the
ratio of their CPU seconds on one thread. The paper's 50.3 to 21.2 minutes an epoch, 2.37, is of four RTX 3090, fp16 BLIP and
batches of 16.

    python -m bench.bench_vlm_hoi [--json] [--blocks N] [--full-steps N] [--only pico|full]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor, nn

from bench.bench_itm import tokenizer_of
from hoi_distill.pipeline.filling.run import fill_cache
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.fit import training_set
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.student.calibration import Platt
from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig, network_config
from hoi_distill.stages.student.methods.vlm_hoi.initial_weights import initialise
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmTargets
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.losses import ItmTables, batch_loss
from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren, MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.picture_set import ImageBatch, StepBatches
from hoi_distill.stages.student.methods.vlm_hoi.predict import Inference, predicted, triplets, valid_verbs
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import itm_supervision
from hoi_distill.stages.student.methods.vlm_hoi.train import parameter_groups
from hoi_distill.stages.student.pretrained import load_student

SETUP = Path("configs/pico_vlm_hoi.yaml")
STEPS = 10
"""Of one block; the trainer compares gradients in one of ten."""
EPOCH = 10.0
"""The ramp is over: a term with a weight is whole."""
PAPER = 50.3 / 21.2
FULL_SIZE = (853, 640)
"""Width and height: the middle of the published short sides, 4:3."""
SENTENCES = (8, 64)
"""Of a picture, in the full size: few, and as many as MUREN has queries."""

Sentences = Callable[[MurenOutput], list[list[str]]]


class LiveTeacher:
    """BLIP in the training loop; only for comparison, and in favour of it: one vision pass a step, no expanded states.

    Args:
        stage: a ``blip_itm`` stage's model, processor and tokenizer, or as many made by hand.
        read: uint8 pictures ``[H, W, 3]`` by row; sentences: what to ask of each picture, from the student's output.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, read: Callable[[int], Any], sentences: Sentences):
        self.model, self.processor, self.tokenizer = model.eval(), processor, tokenizer
        self.read, self.sentences = read, sentences
        self.asked: list[int] = []

    @torch.inference_mode()
    def hinge(self, output: MurenOutput, batch: ImageBatch) -> float:
        """Mean over pictures of ``max(0, 1 - first) + rest``: which sentence is in the labels does not change the work."""
        pictures = [self.read(row) for row in batch.rows.tolist()]
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        states = self.model.vision_model(pixel_values=pixels).last_hidden_state
        values = []
        for state, sentences in zip(states.split(1), self.sentences(output), strict=True):
            self.asked.append(len(sentences))
            text = self.tokenizer(sentences, padding=True, return_tensors="pt")
            hidden = self.model.text_encoder(
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                encoder_hidden_states=state,
                encoder_attention_mask=torch.ones(state.shape[:2], dtype=torch.long),
            ).last_hidden_state
            match = self.model.itm_head(hidden[:, 0]).diff(dim=1)
            values.append((1 - match[0]).clamp(min=0).sum() + match[1:].mean(0).nan_to_num().sum())
        return float(torch.stack(values).mean())


def sentences_of(vocabulary: Vocabulary) -> Sentences:
    """The distinct (verb, object) that the queries of all layers put first, "no object" aside."""

    def asked(output: MurenOutput) -> list[list[str]]:
        verb, thing = output.verb_logits.argmax(-1), output.object_logits[..., :-1].argmax(-1)
        pairs = torch.stack([verb, thing], -1).transpose(0, 1).flatten(1, 2)  # [B, L * N, 2]
        return [
            [f"person {vocabulary.verbs[v]} {vocabulary.objects[o]}".replace("_", " ") for v, o in each.unique(dim=0)]
            for each in pairs
        ]

    return asked


class Variant:
    """One training, step by step."""

    def __init__(
        self,
        model: Muren,
        config: VlmHoiConfig,
        batch_of: Callable[[int], ImageBatch],
        targets: ItmTargets | None = None,
        live: LiveTeacher | None = None,
    ) -> None:
        self.model, self.config, self.batch_of, self.live = model.train(), config, batch_of, live
        self.tables = ItmTables.of(targets, torch.device("cpu")), None
        self.optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay)

    def step(self, number: int) -> float:
        """CPU seconds of one step."""
        started = time.process_time()
        batch = self.batch_of(number)
        output = self.model(batch.pixels, batch.mask)
        logged = (number + 1) % self.config.log_every == 0
        loss, _ = batch_loss(output, batch, self.config, self.tables, EPOCH, ratios=logged)
        if self.live is not None:
            loss = loss + self.live.hinge(output, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return time.process_time() - started


def compared(variants: Mapping[str, Variant], blocks: int, steps: int) -> dict[str, Any]:
    """Seconds a step, and each variant's over the first's (no teacher) and the second's (cached)."""
    for variant in variants.values():
        variant.step(0)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for block in range(blocks):
        spent = dict.fromkeys(variants, 0.0)
        for number in range(block * steps, (block + 1) * steps):
            turn = number % len(variants)  # nobody always comes after the one that has emptied the processor's caches
            for name in [*list(variants)[turn:], *list(variants)[:turn]]:
                spent[name] += variants[name].step(number)
        for name in variants:
            seconds[name].append(spent[name] / steps)
    first, second = list(variants)[:2]
    result: dict[str, Any] = {"cpu_s_per_step": {name: statistics.median(each) for name, each in seconds.items()}}
    result["over_no_teacher"] = {name: ratio(seconds[name], seconds[first]) for name in list(variants)[1:]}
    result["over_cached"] = {name: ratio(seconds[name], seconds[second]) for name in list(variants)[2:]}
    return result


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the quotients of two lists."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def pico(folder: Path, blocks: int) -> dict[str, Any]:
    """Training on the pico world's pictures and labels, and inference with the student that comes of it."""
    overrides = (f"cache={folder / 'cache'}", f"runs={folder / 'runs'}", f"dataset.root={folder / 'world'}")
    small = ("dataset.train=96", "dataset.test=16", "student.labelled=96", "workers.executor=inline")
    workspace = prepare(SETUP, [*overrides, *small])
    fill_cache(workspace)
    resolved = resolve(workspace, plan_all(workspace))
    data, words = training_set(workspace, resolved), workspace.vocabulary
    config = replace(resolved.config, itm=ItmConfig())
    without = replace(config, itm=ItmConfig(weight=0.0))
    (folder / "state").mkdir()
    supervision = itm_supervision(config, data, folder / "state")
    assert data.read is not None
    stage: Any = workspace.nodes["itm"].stage
    stage.open("cpu", {})
    live = LiveTeacher(stage.model, stage.processor, stage.tokenizer, data.read, sentences_of(words))

    def variant(which: VlmHoiConfig, targets: ItmTargets | None, teacher: LiveTeacher | None = None) -> Variant:
        torch.manual_seed(0)
        model = Muren(network_config(which, words))
        initialise(model, Path(which.start or ""), allow_random_decoder=True)
        batches = StepBatches(which, data, len(words.objects), labelled=targets, unlabelled=None)
        return Variant(model, which, batches.__getitem__, targets, teacher)

    variants = {
        "no_teacher": variant(without, None),
        "cached": variant(config, supervision.labelled),
        "live": variant(without, None, live),
    }
    result = compared(variants, blocks, STEPS)
    result["live_sentences_per_picture"] = statistics.mean(live.asked)
    VlmHoiStudent(variants["cached"].model.eval(), words, config).save_pretrained(folder / "student")
    return {**result, "inference": pico_inference(folder / "student", data.read, words, config)}


def pico_inference(
    folder: Path, read: Callable[[int], np.ndarray], words: Vocabulary, config: VlmHoiConfig
) -> dict[str, float]:
    """Of a saved student, from the file of a picture to its triplets after NMS."""
    student = load_student(folder)
    assert isinstance(student, VlmHoiStudent)

    def seconds(rows: range, batch: int) -> float:
        started = time.process_time()
        inference = Inference(config.pictures, config.scoring, batch)
        found = predicted(
            student.model, len(rows), lambda row: read(rows[row]), inference, vocabulary=words, missing_object=False
        )
        list(found)
        return time.process_time() - started

    seconds(range(8), 8)  # warm-up
    return {
        "latency_ms": 1e3 * statistics.median(seconds(range(row, row + 1), 1) for row in range(64)),
        "fps_in_batches_of_16": 64 / statistics.median(seconds(range(64), 16) for _ in range(3)),
    }


def _answered(prompts: list[str], _output: Any) -> list[list[str]]:
    """The prompts, whatever the student says of the one picture."""
    return [prompts]


def full(steps: int) -> dict[str, Any]:
    """The published network beside the published teacher's, on pictures of noise."""
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil

    words, (width, height) = hico_vocabulary(), FULL_SIZE
    random, sizes = np.random.default_rng(0), (4, len(words.verbs))
    columns = columns_for(words)
    log_odds = random.standard_normal((4, len(columns.prompts)), np.float32)
    targets = ItmTargets(columns, log_odds, Platt(1.0, 0.0, 0, 0), np.zeros(len(columns.prompts), np.float32), "abcd")
    boxes = torch.from_numpy(random.uniform(0.3, 0.5, (2, 4, 4)).astype(np.float32))
    hois = words.hois[random.integers(len(words.hois), size=4)]
    verbs = torch.zeros(sizes)
    verbs[torch.arange(4), torch.from_numpy(hois[:, 0].astype(np.int64))] = 1
    pairs = Targets(boxes[0], boxes[1], torch.from_numpy(hois[:, 1].astype(np.int64)), verbs)
    pixels, mask = torch.randn(1, 3, height, width), torch.ones(1, height, width, dtype=torch.bool)
    raw = random.integers(0, 255, (480, 640, 3), np.uint8)

    def batch_of(taught: ItmTargets | None, number: int) -> ImageBatch:
        row = np.array([number % 4])
        return ImageBatch(torch.from_numpy(row), pixels, mask, [pairs], None if taught is None else taught(row), None)

    prompts = words.prompts()
    text = {"num_attention_heads": 12, "bos_token_id": 5}
    blip = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config={"image_size": 384}))
    parts = blip, BlipImageProcessorPil(), tokenizer_of(prompts)
    taught, without = VlmHoiConfig(), VlmHoiConfig(itm=ItmConfig(weight=0.0))
    model = Muren(MurenConfig.hico())  # one for all: the work does not depend on its weights
    variants = {
        "no_teacher": Variant(model, without, lambda number: batch_of(None, number)),
        "cached": Variant(model, taught, lambda number: batch_of(targets, number), targets),
    }
    for count in SENTENCES:
        asked = list(prompts[:: len(prompts) // count][:count])
        teacher = LiveTeacher(*parts, lambda _row: raw, partial(_answered, asked))
        variants[f"live_{count}_sentences"] = Variant(
            model, without, lambda number: batch_of(None, number), live=teacher
        )
    result = compared(variants, steps, 1)
    return {**result, "inference": {"latency_s": statistics.median(forward_seconds(model, pixels, mask, words))}}


@torch.inference_mode()
def forward_seconds(model: Muren, pixels: Tensor, mask: Tensor, words: Vocabulary) -> list[float]:
    """From pixels to triplets after NMS."""
    model.eval()
    valid, found = valid_verbs(words, missing_object=False), []
    for _ in range(3):
        started = time.process_time()
        output = model(pixels, mask).layer(-1)
        triplets(output.layer(0), FULL_SIZE, valid, VlmHoiConfig().scoring, len(words.objects))
        found.append(time.process_time() - started)
    return found


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--blocks", type=int, default=6, help=f"of {STEPS} steps, pico")
    parser.add_argument("--full-steps", type=int, default=4)
    parser.add_argument("--only", choices=("pico", "full"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"threads": 1}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if arguments.only != "full":
            result["pico"] = pico(Path(folder), arguments.blocks)
        if arguments.only != "pico":
            result["full_size"] = full(arguments.full_steps)
    result["paper_live_over_no_teacher"] = PAPER
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
