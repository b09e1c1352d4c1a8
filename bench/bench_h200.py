"""What one H200, and eight in one machine, would be bound by while they fill the cache: arithmetic, no run on a GPU.

For each teacher of the shipped configurations of HICO-DET, V-COCO and SWiG-HOI:

* TFLOP an image, counted by torch's flop counter on the real architecture without weights. Matching: by the formula of
  ``bench.bench_itm``. Generation: the prompt, and every token up to ``max_new_tokens``.
* Device milliseconds at the vendor's peak: the larger one of FLOP over peak FLOP/s and, for generation, of bytes read over
  peak bandwidth. No kernel reaches the peak, so this is the least that the device takes.
* CPU milliseconds on this machine, one thread: to decode a JPEG of 640 x 480, to preprocess it with the checkpoint's own
  processor, and to commit its cells. So the CPU's part is what it is here.
* Bytes: the preprocessed image that goes to the device, and the cells that are stored.

The bound is what needs more time: the device at its peak, or the cores of the machine if all of them work.

    python -m bench.bench_h200 [--json] [--rounds N] [--cores OF_ONE OF_EIGHT]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench import bench_itm
from bench.bench_teacher_overhead import save_images
from hoi_distill.pipeline.planning.model_arithmetic import BANDWIDTH, PEAK, Work
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.stage import ArrowOutput, TensorOutput
from hoi_distill.stages.teacher.blip.first_token import CELL
from hoi_distill.stages.teacher.blip.first_token import cells as answer_cells
from hoi_distill.stages.teacher.detectors.given import DETECTIONS
from hoi_distill.stages.teacher.detectors.transformers import cells as detection_cells
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes

CORES = (16, 96)
"""Of a machine with one card, and of one with eight."""
IMAGES = 32
SIZE = (640, 480)
TOKENS, QUESTION = 128, 28
"""Of an answer (``max_new_tokens``), and of a question of about twenty words."""
BATCH = 128
"""Images of one forward of a generation: what ``batch_size: auto`` takes at most."""
SCORED = 8
"""Images of one forward of yes/no questions: the default ``batch_size``."""

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Teacher:
    """A stage of shipped configurations.

    Attributes:
        name: the checkpoint's, its input size, and what is asked.
        dtype: that the configurations choose.
        work: counts what the device does for one image.
        processor: makes the checkpoint's image processor.
        output: of a cell.
        cells: values of each column for ``IMAGES`` images.
    """

    name: str
    dtype: str
    work: Callable[[], Work]
    processor: Callable[[], Callable[[list[Image.Image]], Any]]
    output: ArrowOutput | TensorOutput
    cells: Callable[[], Cells]


def counted(forward: Callable[[], Any]) -> float:
    """FLOP of one call."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        forward()
    return float(counter.get_total_flops())


def clip_work(side: int, patch: int, views: int, **sizes: int) -> Work:
    """CLIP's vision tower on each view of an image."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=patch, **sizes))
        return Work(views * counted(lambda: tower(torch.empty(1, 3, side, side))))


def matching_work() -> Work:
    """BLIP-base's vision tower at 384 pixels, and HICO-DET's 600 prompts."""
    from transformers import BlipVisionConfig, BlipVisionModel

    prompts = hico_vocabulary().prompts()
    lengths = [len(ids) for ids in bench_itm.tokenizer_of(prompts)(list(prompts))["input_ids"]]
    with torch.device("meta"):
        tower = BlipVisionModel(BlipVisionConfig(image_size=384))
        vision = counted(lambda: tower(torch.empty(1, 3, 384, 384)))
    return Work(vision + 2 * bench_itm.SETTINGS["blip_384"].macs_ours(lengths))


def detector_work() -> Work:
    """DETR-R50 on an image of 800 x 1,066. Its forward does not run without data, so it runs on the CPU, once."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(out_features=["stage4"])
    config = DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone)
    model = DetrForObjectDetection(config).eval()
    return Work(counted(lambda: model(torch.zeros(1, 3, 800, 1066))))


@dataclass(frozen=True)
class Writer:
    """InstructBLIP with Vicuna-7B.

    Attributes:
        vision: FLOP of the vision tower, once an image.
        bridge: FLOP of the Q-Former, once a question.
        prompt: FLOP of the language model on a question and the 32 tokens of the image.
        token: FLOP of the language model on one more token, at the middle of an answer.
        weights: bytes of the language model.
        cache: bytes of its keys and values at the middle of an answer.
    """

    vision: float
    bridge: float
    prompt: float
    token: float
    weights: float
    cache: float

    @classmethod
    def counted(cls) -> Writer:
        """Without weights."""
        from transformers import (
            InstructBlipQFormerConfig,
            InstructBlipQFormerModel,
            InstructBlipVisionConfig,
            InstructBlipVisionModel,
            LlamaConfig,
            LlamaForCausalLM,
        )

        queries, middle = 32, 32 + QUESTION + TOKENS // 2
        with torch.device("meta"):
            tower = InstructBlipVisionModel(InstructBlipVisionConfig(attn_implementation="eager"))
            bridge = InstructBlipQFormerModel(InstructBlipQFormerConfig(attn_implementation="eager"))
            config = LlamaConfig(vocab_size=32_001)
            model = LlamaForCausalLM(config)
            ids = torch.zeros(1, QUESTION, dtype=torch.long)
            asked, states = torch.empty(1, queries, 768), torch.empty(1, 257, 1408)
            return cls(
                vision=counted(lambda: tower(torch.empty(1, 3, 224, 224))),
                bridge=counted(lambda: bridge(input_ids=ids, query_embeds=asked, encoder_hidden_states=states)),
                prompt=counted(lambda: model(inputs_embeds=torch.empty(1, queries + QUESTION, 4096))),
                token=counted(lambda: model(inputs_embeds=torch.empty(1, 1, 4096)))
                + 4.0 * config.num_hidden_layers * config.hidden_size * middle,
                weights=2.0 * sum(parameter.numel() for parameter in model.parameters()),
                cache=2.0 * 2 * config.num_hidden_layers * config.hidden_size * middle,
            )

    def answers(self, questions: int) -> Work:
        """Of ``TOKENS`` tokens each, ``BATCH`` images together."""
        steps = questions * (TOKENS - 1)
        flop = self.vision + questions * (self.bridge + self.prompt) + steps * self.token
        return Work(flop, steps * (self.weights / BATCH + self.cache))

    def one_score(self) -> Work:
        """One yes/no question, the image's vision pass left out, ``SCORED`` images together."""
        return Work(self.bridge + self.prompt, self.weights / SCORED)


def clip_processor(side: int) -> Callable[[], Callable[[list[Image.Image]], Any]]:
    """CLIP's, as ``vision_features`` calls it."""

    def make() -> Callable[[list[Image.Image]], Any]:
        from transformers import CLIPImageProcessorPil

        size, processor = {"height": side, "width": side}, CLIPImageProcessorPil()
        return lambda images: processor(images, size=size, do_center_crop=False, return_tensors="pt")

    return make


def blip_processor(side: int) -> Callable[[], Callable[[list[Image.Image]], Any]]:
    """BLIP's and InstructBLIP's."""

    def make() -> Callable[[list[Image.Image]], Any]:
        from transformers import BlipImageProcessorPil

        processor = BlipImageProcessorPil(size={"height": side, "width": side})
        return lambda images: processor(images, return_tensors="pt")

    return make


def detr_processor() -> Callable[[list[Image.Image]], Any]:
    """DETR's: the short side to 800 pixels."""
    from transformers import DetrImageProcessorPil

    processor = DetrImageProcessorPil()
    return lambda images: processor(images=images, return_tensors="pt")


def maps(columns: tuple[str, ...], shape: tuple[int, ...]) -> Callable[[], Cells]:
    """Random maps of each view."""
    random = np.random.default_rng(0)
    return lambda: {name: random.standard_normal((IMAGES, *shape), np.float32) for name in columns}


def logits() -> Cells:
    """Two random logits of each prompt."""
    values = np.random.default_rng(0).standard_normal((600, 2 * IMAGES), np.float32).astype(np.float16)
    prompts = hico_vocabulary().prompts()
    return {
        prompt: pa.FixedSizeListArray.from_arrays(pa.array(value), 2)
        for prompt, value in zip(prompts, values, strict=True)
    }


def boxes() -> Cells:
    """A hundred boxes an image."""
    random = np.random.default_rng(0)
    found = [
        (random.random((100, 4), np.float32), random.random(100, np.float32), np.zeros(100, np.int16))
        for _ in range(IMAGES)
    ]
    return {"value": detection_cells(found, [SIZE] * IMAGES, DETECTIONS)}


def answers(columns: int, text: str) -> Callable[[], Cells]:
    """The same text for each image."""
    return lambda: {f"question {index}": answer_cells([text] * IMAGES, np.zeros(IMAGES)) for index in range(columns)}


def teachers() -> list[Teacher]:
    """Of the configurations; InstructBLIP is counted once for both of its rows."""
    writer = Writer.counted()
    base, large, views = (512, 14, 14), (1024, 24, 24), ("original", "flip")
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return [
        Teacher("DETR-R50, 800 x 1,066", "float32", detector_work, detr_processor, ArrowOutput(DETECTIONS), boxes),
        Teacher(
            "CLIP ViT-B-16, 224, two views", "bfloat16", lambda: clip_work(224, 16, 2), clip_processor(224),
            TensorOutput(base), maps(views, base),
        ),
        Teacher(
            "CLIP ViT-L-14, 336, one view", "bfloat16", lambda: clip_work(336, 14, 1, **wide), clip_processor(336),
            TensorOutput(large), maps(views[:1], large),
        ),
        Teacher(
            "BLIP-base, 384, 600 prompts", "float32", matching_work, blip_processor(384),
            ArrowOutput(pa.list_(pa.float16(), 2)), logits,
        ),
        Teacher(
            "InstructBLIP-7B, 224, two answers of 128 tokens", "bfloat16", lambda: writer.answers(2), blip_processor(224),
            ArrowOutput(CELL), answers(2, "word " * TOKENS),
        ),
        Teacher(
            "InstructBLIP-7B, 224, a question of yes or no", "bfloat16", writer.one_score, blip_processor(224),
            ArrowOutput(CELL), answers(1, "yes"),
        ),
    ]  # fmt: skip


@contextmanager
def timed(into: list[float], count: int) -> Iterator[None]:
    """Add the CPU milliseconds for each of ``count`` images."""
    started = time.process_time()
    yield
    into.append((time.process_time() - started) * 1e3 / count)


def measure(teacher: Teacher, encoded: list[bytes], folder: Path, rounds: int) -> dict[str, Any]:
    """The device's part by arithmetic, the CPU's part by measurement."""
    work, processor = teacher.work(), teacher.processor()
    spent: dict[str, list[float]] = {"decode": [], "preprocess": [], "commit": []}
    ids = as_rows([digest_bytes(data) for data in encoded])
    kind = teacher.output.type if isinstance(teacher.output, ArrowOutput) else None
    sent = 0
    for turn in range(rounds):
        with timed(spent["decode"], IMAGES):
            images = [decode(data) for data in encoded]
        with timed(spent["preprocess"], IMAGES):
            inputs = [processor([image]) for image in images]
        sent = inputs[0]["pixel_values"].nbytes
        values = teacher.cells()
        record = {"stage": teacher.name, "round": turn}
        table = Cache.open(folder / "cache").table("bench", record, teacher.output.describe(), kind)
        with timed(spent["commit"], IMAGES):
            table.commit(CellBlock(ids, tuple(values), np.ones((IMAGES, len(values)), bool)), values)
        stored = sum(path.stat().st_size for path in table.dir.rglob("*") if path.is_file()) / IMAGES
    return {
        "dtype": teacher.dtype,
        "tflop": work.flop / 1e12,
        "device_memory_gb": work.memory_bytes / 1e9,
        "device_ms_at_peak": work.milliseconds(teacher.dtype),
        "cpu_ms": {name: statistics.median(each) for name, each in spent.items()},
        "bytes_to_device": sent,
        "bytes_stored": stored,
    }


def bound(result: Mapping[str, Any], cards: int, cores: int) -> dict[str, Any]:
    """What ``cards`` cards and ``cores`` cores do in a second."""
    device, cpu = result["device_ms_at_peak"] / cards, sum(result["cpu_ms"].values()) / cores
    rate = 1e3 / max(device, cpu)
    return {
        "images_a_second": rate,
        "bound": "device" if device >= cpu else "CPU",
        "cores_that_keep_the_cards_busy": sum(result["cpu_ms"].values()) / device,
        "gb_stored_a_second": rate * result["bytes_stored"] / 1e9,
    }


def main() -> None:
    """Count, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=CORES, help="of a machine with one card, and with eight")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "peak_tflops": {name: PEAK[name] / 1e12 for name in ("bfloat16", "float32")},
        "peak_bandwidth_tb_a_second": BANDWIDTH / 1e12,
        "cores": dict(zip(("one", "eight"), arguments.cores, strict=True)),
        "teachers": {},
    }
    with tempfile.TemporaryDirectory(prefix="bench-h200-") as name:
        folder = Path(name)
        encoded = [path.read_bytes() for path in save_images(folder, IMAGES)]
        result["bytes_a_jpeg"] = statistics.mean(len(data) for data in encoded)
        for teacher in teachers():
            found = measure(teacher, encoded, folder, arguments.rounds)
            found |= {"one": bound(found, 1, arguments.cores[0]), "eight": bound(found, 8, arguments.cores[1])}
            result["teachers"][teacher.name] = found
            if not arguments.json:
                print(teacher.name, json.dumps(found), flush=True)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
