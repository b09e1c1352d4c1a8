"""What a teacher's device waits for: the CPU time of the thread that computes, less the forward, an image.

Two stages as large models have them: CLIP ViT-L/14 at 336 pixels and BLIP ViT-L/16 at 384, their towers cut to one layer, for
the forward is subtracted. A warm worker fills a task of JPEGs of 640 x 480. The thread that computes is measured by itself;
its forward is measured by hooks. Beside it stands what the readers do for an image meanwhile: read, decode and prepare.
Before images were prepared ahead, that preparation stood in the turn: the sum is what the device waited for then. The copies
that a turn cannot do without on a CPU are measured alone: pixels joined, the map in half precision, put channel after channel.

    python -m bench.bench_teacher_turn [--json] [--images N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from bench.bench_teacher_overhead import save_images, task_of
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.teacher.blip.stages import BlipFeatures
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.workers.host_copies import to_numpy
from hoi_distill.workers.worker import Worker

BATCH = 8


def save_clip(folder: Path) -> Path:
    """CLIP ViT-L/14 at 336 pixels, one layer of it, random weights."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 1}
    CLIPVisionModel(CLIPVisionConfig(**large, image_size=336, patch_size=14)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """BLIP ViT-L/16 at 384 pixels, one layer of it, random weights."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 1}
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "encoder_hidden_size": 1024}
    text = {**small, "num_attention_heads": 4, "vocab_size": 8, "bos_token_id": 5}
    BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(), tokenizer).save_pretrained(folder)
    return folder


def thread_ms(run: Callable[[], Any]) -> float:
    """CPU milliseconds of this thread alone."""
    started = time.thread_time()
    run()
    return 1000 * (time.thread_time() - started)


def copies_of(stage: VisionFeatures | BlipFeatures) -> Callable[[], None]:
    """The copies of one batch, of made-up values."""
    channels, height, width = stage.output.shape
    side = 14 * height if isinstance(stage, VisionFeatures) else 16 * height
    pixels = [torch.rand(1, 3, side, side) for _ in range(BATCH)]
    maps = torch.rand(BATCH, 1 + height * width, channels)[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    def copies() -> None:
        torch.cat(pixels)
        np.zeros((BATCH, channels, height, width), np.float16)[np.arange(BATCH)] = to_numpy(maps, stage.output)

    return copies


def turn_costs(stage: VisionFeatures | BlipFeatures, paths: list[Path], root: Path, rounds: int) -> dict[str, float]:
    """CPU milliseconds an image, medians of the rounds."""
    worker, forward = Worker(), [0.0]
    task = task_of(paths, [stage], root)
    worker.compute(task)  # opens the stage
    tower = stage.model if isinstance(stage, VisionFeatures) else stage.tower
    for module in (tower, stage.norm) if isinstance(stage, VisionFeatures) and stage.norm else (tower,):
        module.register_forward_pre_hook(lambda *_: forward.append(-time.thread_time()))
        module.register_forward_hook(lambda *_: forward.append(time.thread_time()))
    data = [path.read_bytes() for path in paths]
    images = [decode(each) for each in data]
    copies = copies_of(stage)
    names = ("turn_less_forward", "forward", "copies", "decode", "prepare")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        forward.clear()
        turn = thread_ms(lambda: worker.compute(task))
        figures["forward"].append(1000 * sum(forward))
        figures["turn_less_forward"].append(turn - figures["forward"][-1])
        figures["copies"].append(thread_ms(lambda: [copies() for _ in range(len(paths) // BATCH)]))
        figures["decode"].append(thread_ms(lambda: [decode(each) for each in data]))
        figures["prepare"].append(thread_ms(lambda: [stage.prepare(image) for image in images]))
    worker.close()
    return {f"{name}_ms": round(statistics.median(each) / len(paths), 3) for name, each in figures.items()}


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = save_images(folder, arguments.images)
        stages: dict[str, VisionFeatures | BlipFeatures] = {}
        for name, save, kind in (("clip_l_336", save_clip, VisionFeatures), ("blip_l_384", save_blip, BlipFeatures)):
            checkpoint = Checkpoint.find(save(folder / name))
            stages[name] = kind(kind.Config(checkpoint=checkpoint, columns=("original",), batch_size=BATCH))
        result = {
            name: turn_costs(stage, paths, folder / f"cache-{name}", arguments.rounds) for name, stage in stages.items()
        }
    if arguments.json:
        print(json.dumps({"bench": "teacher_turn", "images": arguments.images, "rounds": arguments.rounds, **result}))
        return
    for name, figures in result.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
