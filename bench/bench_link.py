"""What a VLM costs a LINK training: cached maps, the VLM in the loop, or in the loop on images augmented anew at each step.

The training step is the trainer's own: batch, forward, loss, backward, clip, step.

* ``cached``: maps from the table, one of the two cached views; ``phase_2``: the same, distilling a cached pair teacher's
  logits, queries and maps;
* ``live``: the batch's images decoded and put through the very stage that fills the table, the same boxes;
* ``live_augmented``: the images cropped, recoloured and flipped first, boxes moved and associated anew. The detector is
  not run again, as it is where published code augments: in favour of it.

Two sizes: ``configs/pico_link.yaml`` with the shipped pico BLIP on a small world of its own, through the cache; and LINK's
default network with CLIP-B/16 at 224 pixels, random weights, JPEGs of 640 x 480, 21 pairs an image, tables in memory.

Variants take every step in turn, beginning with another one each time; ``over`` is the median over rounds of the ratio of
their CPU seconds on one thread. ``most_pairs``: steps at 435 pairs an image, 16 images, published sizes, each in a process
of its own whose peak resident memory is read.

    python -m bench.bench_link [--json] [--rounds N] [--only pico|full|most_pairs]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from bench.bench_teacher_overhead import save_images
from hoi_distill.pipeline.filling.run import fill_cache
from hoi_distill.pipeline.planning.cells import read_text
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.fit import ImageReader, training_set
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.stage import Batch, Stage
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.batches import LinkBatches
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.pair_teacher import PairTeacher
from hoi_distill.stages.student.methods.link.student import allowed, verbs
from hoi_distill.stages.student.methods.link.train import terms_of
from hoi_distill.stages.student.methods.vlm_hoi.augment import View, training_view
from hoi_distill.stages.student.methods.vlm_hoi.config import TransformConfig
from hoi_distill.stages.student.pairs.batches import PairBatch
from hoi_distill.stages.student.pairs.instances import NO_POSITIVES, ImageInstances, gather, with_annotations
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.terms import BatchImages, Supervision
from hoi_distill.stages.student.pairs.training import TermLoss
from hoi_distill.stages.student.source import MemorySource
from hoi_distill.stages.student.training.loop import Step
from hoi_distill.stages.student.training.optimization import parameter_groups
from hoi_distill.stages.student.training.processes import Processes
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint

SETUP = Path("configs/pico_link.yaml")
AUGMENTED_LIKE = Path("configs/pico_vlm_hoi.yaml")
"""Whose crops and sizes suit the pico world's images."""
SMALL_WORLD = (
    "dataset.train=96", "dataset.test=16", "student.labelled=96", "pair_teachers.phase_1.labelled=96",
    "pair_teachers.phase_1.steps=20", "workers.executor=inline",
)  # fmt: skip
PICO_STEPS, FULL_STEPS = 12, 3
"""Of one round, of each variant."""
CHANNELS, GRID, TEXT_WIDTH = 512, 14, 512
"""Of CLIP-B/16 at 224 pixels, in the space that it shares with texts."""
USUAL = (3, 8)
"""Humans and instances of a picture: 21 pairs, about the mean of HICO-DET's annotated test images under the rule of at
least three each (22)."""
MOST = (15, 30)
"""435 pairs, the most that 15 and 15 instances give."""
ALL_LEVELS = KdConfig(("pairs",), ("maps",), logit=1.0, query=1.0, map=1.0)


class LiveBatches(LinkBatches):
    """The VLM in the loop: at every step images are decoded, looked at in some view, and encoded by ``stage``.

    Args:
        augment: how images are cropped, scaled and recoloured; None: the two views that are cached otherwise.
    """

    def __init__(
        self, config: LinkConfig, data: TrainingSet, *tables: Any, stage: Stage, augment: TransformConfig | None = None
    ) -> None:
        super().__init__(config, data, *tables)
        assert data.read is not None
        self.stage, self.read, self.augment = stage, data.read, augment

    def __getitem__(self, step: int) -> PairBatch:
        rows = self.rows(step)
        flipped = self.mirrored(self.drawn(step, len(rows))[0]).tolist()
        images, pixels, mirrored = [], [], []
        for row, flip in zip(rows.tolist(), flipped, strict=True):
            image = self.images[row]
            whole = (image.width, image.height)
            view = View(whole, (0, 0, *whole), whole, flip)
            if self.augment is not None:
                augmented = training_view(self.augment, *whole, seed=self.config.seed, epoch=step, row=row)
                moved = self.moved(image, row, augmented)
                if moved is not None:
                    image, view = moved, augmented
            images.append(image)
            pixels.append(Image.fromarray(view.of_image(self.read(row))))
            mirrored.append(self.augment is None and flip)
        batch = Batch(np.zeros(len(rows), "V16"), [str(row) for row in rows], len(rows), pixels)
        maps = torch.as_tensor(self.stage.compute(batch, ("original",), {})["original"]).half()  # as they are cached
        regions = gather(images, maps, np.array(mirrored))
        candidates = candidates_of(regions, self.valid)
        shown = BatchImages(rows, images, regions, candidates, [])
        targets = {term.name: term.targets(shown) for term in self.terms}
        return PairBatch(torch.from_numpy(rows), regions, candidates, targets)

    def moved(self, image: ImageInstances, row: int, view: View) -> ImageInstances | None:
        """The image as the view shows it, annotations associated anew; None where no pair is left of it."""

        def seen(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            there = view.of_boxes(boxes) * np.array(view.size * 2, np.float32)
            return there, np.all(there[:, 2:] - there[:, :2] > 1, axis=1)

        boxes, kept = seen(image.boxes)
        humans = int(kept[: image.humans].sum())
        if not humans or kept.sum() < 2:
            return None
        human, thing, hoi = self.data.true_pairs(row)
        (human, there), (thing, also) = seen(human), seen(thing)
        annotated = there & also
        left = ImageInstances(*view.size, humans, boxes[kept], image.scores[kept], image.labels[kept], NO_POSITIVES)
        return with_annotations(left, human[annotated], thing[annotated], hoi[annotated], iou=self.link.association_iou)


class Variant:
    """One training, step by step; every variant of a size begins with equal weights."""

    def __init__(self, config: LinkConfig, batches: LinkBatches, data: TrainingSet, text: np.ndarray) -> None:
        torch.manual_seed(config.seed)
        shape = LinkShape(batches.channels(), text.shape[1], config.network)
        self.model = Link(shape, verbs(data.vocabulary), torch.from_numpy(text.astype(np.float32))).train()
        self.config, self.batches = config, batches
        self.loss = TermLoss(batches.terms, Processes.of(Accelerator(cpu=True)))
        groups = parameter_groups(self.model, config.learning_rate, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, foreach=True)

    def step(self, number: int) -> tuple[float, int]:
        """CPU seconds of one step, and the pairs that it looked at."""
        started = time.process_time()
        batch = self.batches[number]
        loss, _ = self.loss(self.model, batch, Step(number))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return time.process_time() - started, len(batch.regions.pairs)


def compared(variants: Mapping[str, Variant], rounds: int, steps: int) -> dict[str, Any]:
    """Seconds a step, pairs a second, and each variant's seconds over those of the first."""
    for variant in variants.values():
        variant.step(0)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    pairs: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds):
        spent, looked = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0)
        for number in range(round_ * steps, (round_ + 1) * steps):
            turn = number % len(variants)  # nobody always comes after the one that has emptied the processor's caches
            for name in [*list(variants)[turn:], *list(variants)[:turn]]:
                took, count = variants[name].step(number)
                spent[name] += took
                looked[name] += count
        for name in variants:
            seconds[name].append(spent[name] / steps)
            pairs[name].append(looked[name] / spent[name])
    first, *others = variants
    return {
        "cpu_s_per_step": {name: statistics.median(each) for name, each in seconds.items()},
        "pairs_per_cpu_s": {name: statistics.median(each) for name, each in pairs.items()},
        f"over_{first}": {name: statistics.median(ratios(seconds[name], seconds[first])) for name in others},
        f"over_{first}_by_round": {name: ratios(seconds[name], seconds[first]) for name in others},
    }


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """The quotients of two lists, one by one."""
    return [a / b for a, b in zip(one, other, strict=True)]


def variants_of(
    config: LinkConfig, data: TrainingSet, text: np.ndarray, *, stage: Stage, augment: TransformConfig, folder: Path
) -> dict[str, Variant]:
    """``config`` is the distilled training's."""
    plain = replace(config, kd=KdConfig())
    images = training_images(folder / "pictures", data, plain)
    valid = torch.from_numpy(allowed(config, data.vocabulary))
    taught, alone = (Supervision(terms_of(each, data, valid), valid) for each in (config, plain))
    batches = {
        "cached": (plain, LinkBatches(plain, data, images, alone)),
        "phase_2": (config, LinkBatches(config, data, images, taught)),
        "live": (plain, LiveBatches(plain, data, images, alone, stage=stage)),
        "live_augmented": (plain, LiveBatches(plain, data, images, alone, stage=stage, augment=augment)),
    }
    return {name: Variant(which, each, data, text) for name, (which, each) in batches.items()}


def pico(folder: Path, rounds: int) -> dict[str, Any]:
    """Training on the pico world."""
    places = (f"cache={folder / 'cache'}", f"runs={folder / 'runs'}", f"dataset.root={folder / 'world'}")
    workspace = prepare(SETUP, [*places, *SMALL_WORLD])
    fill_cache(workspace)
    resolved = resolve(workspace, plan_all(workspace))
    assert resolved.text is not None
    stage = workspace.nodes["features"].stage
    stage.open("cpu", {})
    augment = student_section(prepare(AUGMENTED_LIKE, [*places, *SMALL_WORLD[:3]]))[1].pictures
    data = training_set(workspace, resolved)
    text = read_text(resolved.text, workspace.sources["texts"], workspace.vocabulary.prompts())
    variants = variants_of(resolved.config, data, text, stage=stage, augment=augment, folder=folder)
    return compared(variants, rounds, PICO_STEPS)


def full(folder: Path, rounds: int) -> dict[str, Any]:
    """Training on random data of full size."""
    config = LinkConfig(kd=ALL_LEVELS)
    data, text = world(config, save_images(folder, 32), USUAL), unit_rows(len(hico_vocabulary().hois))
    augment = replace(TransformConfig(), short_sides=(224,))
    variants = variants_of(config, data, text, stage=clip_stage(folder / "clip"), augment=augment, folder=folder)
    return compared(variants, rounds, FULL_STEPS)


def clip_stage(folder: Path) -> VisionFeatures:
    """CLIP-B/16's vision tower with random weights (and one layer of the text tower, which nobody runs)."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    CLIPModel(CLIPConfig(text_config={"num_hidden_layers": 1}, vision_config={"patch_size": 16})).save_pretrained(
        folder
    )
    CLIPImageProcessorPil().save_pretrained(folder)
    stage = VisionFeatures(VisionFeatures.Config(checkpoint=Checkpoint.find(folder), width="projected", batch_size=16))
    assert stage.output.shape == (CHANNELS, GRID, GRID)  # type: ignore[union-attr]
    stage.open("cpu", {})
    return stage


def world(config: LinkConfig, paths: Sequence[Path], instances: tuple[int, int]) -> TrainingSet:
    """A training set in memory: maps of noise, boxes beside each other, what a pair teacher of random weights says."""
    words, random = hico_vocabulary(), np.random.default_rng(0)
    humans, count = instances
    side = -(-(count**0.5) // 1)
    corner = np.stack(np.divmod(np.arange(count), int(side))[::-1], 1) * (640 / side, 480 / side)
    detections, annotated = [], []
    for _ in paths:
        start = corner + random.uniform(0, 10, (count, 2))
        boxes = np.concatenate((start, start + (500 / side, 400 / side)), 1).astype(np.float32)
        labels = np.concatenate((np.zeros(humans, np.int16), random.integers(1, 80, count - humans, np.int16)))
        scores = random.uniform(0.5, 1, count).astype(np.float32)
        detections.append({"boxes": boxes, "scores": scores, "labels": labels, "width": 640, "height": 480})
        hoi = np.flatnonzero(words.hois[:, 1] == labels[humans])[0]
        annotated.append((boxes[0], boxes[humans], hoi))
    maps = {
        view: random.standard_normal((len(paths), CHANNELS, GRID, GRID), np.float32).astype(np.float16)
        for view in config.views
    }
    tables: dict[str, Any] = {"detections": {"value": detections}, "features": maps, "pairs": {}, "maps": {}}
    network = Link(LinkShape(CHANNELS, TEXT_WIDTH, config.network), verbs(words))
    teacher = PairTeacher(network, config, torch.from_numpy(allowed(config, words)))
    for view in (
        config.views if config.kd.on else ()
    ):  # one at a time: of the memory that is measured training takes more
        said = [
            teacher.answer([seen], each[None], view == "flip")[0]
            for seen, each in zip(detections, maps[view], strict=True)
        ]
        tables["pairs"][view] = [answer.cell for answer in said]
        tables["maps"][view] = [answer.latent.astype(np.float16) for answer in said]
    human, thing, hoi = (np.stack(each) for each in zip(*annotated, strict=True))
    images = len(paths)
    annotations = Annotations(
        name="noise", split="train", vocabulary=words, image_id=np.array([path.name for path in paths]),
        path=[str(path) for path in paths], width=np.full(images, 640, np.int32), height=np.full(images, 480, np.int32),
        pair_offsets=np.arange(images + 1, dtype=np.int64), human_box=human, object_box=thing,
        object=words.hois[hoi, 1].astype(np.int64), verb=words.hois[hoi, 0].astype(np.int64), hoi=hoi.astype(np.int16),
    )  # fmt: skip
    everything = np.arange(images)
    read = ImageReader([str(path) for path in paths])
    return TrainingSet(MemorySource(tables), annotations, everything, everything >= 0, words.prompts(), read, "noise")


def unit_rows(count: int) -> np.ndarray:
    """Random unit vectors, ``float32 [count, TEXT_WIDTH]``."""
    rows = np.random.default_rng(0).standard_normal((count, TEXT_WIDTH), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def most_pairs() -> dict[str, Any]:
    """Peak memory of both kinds of training, each in a process of its own."""
    return {kind: json.loads(child("--peak", kind)) for kind in ("cached", "phase_2")}


def child(*arguments: str) -> str:
    """The last line that this module prints in a process of its own."""
    command = [sys.executable, "-m", "bench.bench_link", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()[
        -1
    ]


def peak(kind: str, folder: Path) -> dict[str, Any]:
    """Two steps of one training in this process."""
    config = LinkConfig(kd=ALL_LEVELS if kind == "phase_2" else KdConfig())
    data = world(config, [folder / f"{n}.jpg" for n in range(config.labelled_per_step)], MOST)
    valid = torch.from_numpy(allowed(config, data.vocabulary))
    supervision = Supervision(terms_of(config, data, valid), valid)
    batches = LinkBatches(config, data, training_images(folder / "pictures", data, config), supervision)
    variant = Variant(config, batches, data, unit_rows(len(data.vocabulary.hois)))
    resident = Path("/proc/self/statm").read_text().split()[1]
    variant.step(0)
    seconds, pairs = variant.step(1)
    assert pairs == 435 * config.labelled_per_step
    return {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss_bytes_before_the_first_step": int(resident) * os.sysconf("SC_PAGE_SIZE"),
        "pairs_of_a_step": pairs,
        "cpu_s_per_step": seconds,
        "pairs_per_cpu_s": pairs / seconds,
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("pico", "full", "most_pairs"))
    parser.add_argument("--peak", choices=("cached", "phase_2"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"threads": 1, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if arguments.peak:
            result = peak(arguments.peak, Path(folder))
        else:
            for name, measure in (("pico", pico), ("full", full)):
                if arguments.only in (None, name):
                    (own := Path(folder, name)).mkdir()
                    result["full_size" if name == "full" else name] = measure(own, arguments.rounds)
            if arguments.only in (None, "most_pairs"):
                result["most_pairs"] = most_pairs()
    print(json.dumps(result) if arguments.json or arguments.peak else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
