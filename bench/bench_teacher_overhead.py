"""What filling the cache costs beside the teacher itself: the worker's whole path against a bare loop.

Both decode the same JPEGs, encode them with a BLIP-base tower (ViT-B/16 at 384 pixels, random weights of std 0.02) and
score the same prompts with the same scorer, in the same batches. The bare loop keeps its numbers in memory; the worker
also hashes what it reads, builds Arrow and LMDB shards of features and logits, and commits them to a fresh
cache. The two are measured in turn; what counts is CPU time of the process, which other programs of the machine disturb
least.

    python -m bench.bench_teacher_overhead [--json] [--images N] [--rounds N] [--threads N] [--batch N] [--dtype T]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hoi_distill.storage.selection import CellSelection

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from typing_extensions import override

from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.stage import Stage, fingerprint_record
from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer
from hoi_distill.stages.teacher.blip.stages import BlipFeatures, BlipItm
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.workers.executors.inline import execute
from hoi_distill.workers.task import TableSpec, TableTask, Target, Task

LOADED: dict[Any, Any] = {}
"""Models stay loaded between rounds: loading is not what is compared."""


class Features(BlipFeatures):
    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Load the models once for all rounds."""
        super().open(device, LOADED)


class Itm(BlipItm):
    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Load the models once for all rounds."""
        super().open(device, LOADED)


def save_teacher(folder: Path, prompts: tuple[str, ...]) -> None:
    """BLIP-base's shapes with random weights, and a tokenizer that knows the prompts' words."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = [*special, *sorted({word for prompt in prompts for word in prompt.split()})]
    # The embedding table is BLIP's own size; the tokenizer uses its first rows.
    config = BlipConfig(
        text_config={"num_attention_heads": 12, "bos_token_id": 5}, vision_config={"initializer_range": 0.02}
    )
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(), tokenizer).save_pretrained(folder)


def save_images(folder: Path, count: int) -> list[Path]:
    """640 x 480 JPEGs of smooth noise, about a photograph's size in bytes."""
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        small = Image.fromarray(random.integers(0, 255, (60, 80, 3), np.uint8))
        path = folder / f"{index}.jpg"
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def bare_loop(paths: list[Path], prompts: tuple[str, ...], features: Features, itm: Itm, batch: int) -> list[Any]:
    """What a script without any cache would do."""
    model, processor = itm.model, itm.processor
    scorer = ItmScorer(model, itm.tokenizer, memory_mib=itm.memory_mib)
    kept = []
    for start in range(0, len(paths), batch):
        images = [decode(path.read_bytes()) for path in paths[start : start + batch]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            parts = pixels.to(model.dtype).split(itm._images_at_once())
            tokens = torch.cat([model.vision_model(pixel_values=part).last_hidden_state for part in parts])
            maps = tokens[:, 1:].transpose(1, 2).unflatten(2, features.checkpoint.grid()[1:])
            kept.append((maps.to(torch.float16).numpy(), scorer.score(tokens, prompts).numpy()))
    return kept


def task_of(paths: list[Path], stages: list[Stage], root: Path | str) -> Task:
    """The task that fills tables of all stages in the cache at ``root``."""
    rows = as_rows([digest_bytes(path.read_bytes()) for path in paths])  # the planner's part, remembered between runs
    tables = tuple(
        TableTask(
            Target(stage.name, stage, TableSpec(str(root), stage.name, fingerprint_record(stage), stage.output)),
            CellSelection(rows, stage.columns),
        )
        for stage in stages
    )
    return Task("bench", [str(path) for path in paths], [path.name for path in paths], tables)


def fill_cache(paths: list[Path], stages: list[Stage], root: Path | str) -> int:
    """The same through the executor, into the cache at ``root``; cells filled."""
    cells: list[int] = []
    task = task_of(paths, stages, root)
    execute([task], report=lambda done: cells.append(sum(done.cells.values())), stop=threading.Event())
    return sum(cells)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare the pipeline with a plain loop over the same models."""
    prompts = hico_vocabulary().prompts()[: arguments.prompts]
    save_teacher(folder / "teacher", prompts)
    paths = save_images(folder, arguments.images)
    checkpoint = Checkpoint.find(folder / "teacher")
    options = {"checkpoint": checkpoint, "dtype": arguments.dtype, "batch_size": arguments.batch}
    features = Features(Features.Config(**options))
    itm = Itm(Itm.Config(columns=prompts, token_mode="cls", **options))
    for stage in (features, itm):
        stage.open("cpu", LOADED)
    bare_loop(paths[:1], prompts, features, itm, arguments.batch)  # warm-up
    bare, cached = [], []
    for turn in range(arguments.rounds):
        bare.append(cpu_seconds(lambda: bare_loop(paths, prompts, features, itm, arguments.batch)))
        root = folder / f"cache-{turn}"
        cached.append(cpu_seconds(lambda: fill_cache(paths, [features, itm], root)))  # noqa: B023 - called at once
    ratios = [b / a for a, b in zip(bare, cached, strict=True)]
    return {
        "bare_cpu_s": bare,
        "cached_cpu_s": cached,
        "ratio": statistics.median(ratios),
        "ratio_of_medians": statistics.median(cached) / statistics.median(bare),
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    setting = {key: value for key, value in vars(arguments).items() if key != "json"}
    if arguments.json:
        print(json.dumps({"bench": "teacher_overhead", **setting, **result}))
        return
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    for bare, cached in zip(result["bare_cpu_s"], result["cached_cpu_s"], strict=True):
        print(f"bare {bare:7.2f} CPU-s   into the cache {cached:7.2f} CPU-s   ratio {cached / bare:.3f}")
    print(f"median ratio {result['ratio']:.3f}, ratio of medians {result['ratio_of_medians']:.3f} (aim: at most 1.10)")


if __name__ == "__main__":
    main()
