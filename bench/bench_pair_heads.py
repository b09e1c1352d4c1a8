"""A training step of LINK's network beside the heads of UPT and PViC, which users have.

The step is forward and backward of the head alone, in training mode: no loader, no loss, no optimizer. Four images have maps
of 512 x 14 x 14, and 60 pairs each (6 humans of 11 instances) or 435 (15 of 30). UPT and PViC have the widths of their papers
(:mod:`bench.peer_heads`) and 117 verbs. LINK and the pair classifier have their default widths and 600 interactions.

Heads take every round in turn, beginning with another one each time. ``over_link`` is the median over rounds of the ratio of
CPU seconds on one thread. ``limit_cpu_s`` is how long LINK's products alone would take at the speed of one large product, which
is measured in the same process: no float32 network of these sizes is faster.

    python -m bench.bench_pair_heads [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.peer_heads import WIDTH, PvicHead, UptHead
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig, LinkShape
from hoi_distill.stages.student.methods.link.student import verbs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.pairs.instances import NO_POSITIVES, ImageInstances, gather
from hoi_distill.stages.student.pairs.regions import Regions

IMAGES, CHANNELS, GRID, TEXT_WIDTH = 4, 512, 14, 512
SIZES = {60: (6, 11), 435: (15, 30)}
"""Pairs an image, and the humans and instances that give them."""
OBJECTS = 80


def regions_of(humans: int, instances: int) -> Regions:
    """Random boxes and maps."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        corner = random.uniform(0, 300, (instances, 2))
        boxes = np.concatenate((corner, corner + random.uniform(30, 180, (instances, 2))), 1).astype(np.float32)
        labels = np.concatenate((np.zeros(humans, np.int16), random.integers(1, OBJECTS, instances - humans, np.int16)))
        scores = random.uniform(0.5, 1, instances).astype(np.float32)
        images.append(ImageInstances(640, 480, humans, boxes, scores, labels, NO_POSITIVES))
    maps = random.standard_normal((IMAGES, CHANNELS, GRID, GRID), np.float32)
    return gather(images, torch.from_numpy(maps))


def heads(regions: Regions) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each head in training mode, and how it makes its logits of the batch."""
    torch.manual_seed(0)
    verb = verbs(hico_vocabulary())
    text, hidden = torch.randn(len(verb), TEXT_WIDTH), torch.randn(len(regions.image), WIDTH)
    link = Link(LinkShape(CHANNELS, TEXT_WIDTH, LinkNetworkConfig()), verb, text)
    upt, pvic = UptHead(CHANNELS), PvicHead(CHANNELS)
    config = PairClassifierConfig()
    shape = Shape(
        CHANNELS, OBJECTS, TEXT_WIDTH, config.roi_size, config.width, config.dropout, config.feature_dropout,
        config.logit_scale,
    )  # fmt: skip
    classifier = PairClassifier(shape, verb, text)
    made: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "link": (link, lambda: link(regions).logits),
        "upt": (upt, lambda: upt(regions, hidden)),
        "pvic": (pvic, lambda: pvic(regions, hidden)),
        "pair_classifier": (classifier, lambda: classifier(regions)),
    }
    return {name: (model.train(), logits) for name, (model, logits) in made.items()}


def step(model: nn.Module, logits: Callable[[], Tensor]) -> float:
    """CPU seconds of forward and backward."""
    model.zero_grad()
    started = time.process_time()
    logits().square().mean().backward()
    return time.process_time() - started


def compared(pairs: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of a step of each head, and those of the others over LINK's."""
    regions = regions_of(*SIZES[pairs])
    assert len(regions.pairs) == pairs * IMAGES
    every = heads(regions)
    gflop = {}
    for name, head in every.items():
        with FlopCounterMode(display=False) as counter:
            step(*head)
        gflop[name] = counter.get_total_flops() / 1e9
    seconds: dict[str, list[float]] = {name: [] for name in every}
    speeds = []
    for turn in range(rounds):
        first = turn % len(every)
        for name in [*list(every)[first:], *list(every)[:first]]:
            seconds[name].append(step(*every[name]))
        speeds.append(product_speed())
    link = seconds["link"]
    return {
        "cpu_s_per_step": {name: statistics.median(each) for name, each in seconds.items()},
        "over_link": {
            name: statistics.median(a / b for a, b in zip(each, link, strict=True))
            for name, each in seconds.items()
            if name != "link"
        },
        "gflop_per_step": gflop,
        "limit_cpu_s": gflop["link"] / statistics.median(speeds),
    }


def product_speed(rows: int = 1740, inner: int = 384, columns: int = 1536) -> float:
    """GFLOP a CPU second of one large float32 product, the feed-forward block's at 435 pairs."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    started = time.process_time()
    for _ in range(10):
        left @ right
    return 20 * rows * inner * columns / (time.process_time() - started) / 1e9


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"threads": 1, "images": IMAGES, "rounds": arguments.rounds}
    for pairs in SIZES:
        result[f"{pairs}_pairs_an_image"] = compared(pairs, arguments.rounds)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
