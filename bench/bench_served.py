"""Teachers behind a server: 10,000 requests to a stub on loopback, and JSON answers beside parsed English.

The requests go through the whole command: images are read, asked about and committed. The stub answers after a while, so that
requests overlap, and turns one in fifty away with a 429. CPU time is the command's own, less that of a command that finds
nothing to do; the stub runs in the process that measures. The same is done again with ``kill -9`` of the command at chosen
numbers of requests; then it is run to its end.

The other half asks a stub that knows the scene of each image of the pico world and errs on purpose: it leaves out 15 % of the
interactions, adds a wrong one to one image in five, and cuts 3 % of its answers. It says the same in JSON and in English.

    python -m bench.bench_served [--json] [--requests N] [--images N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.triplets import Triplets
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.served.answers import ServedAnswers
from hoi_distill.stages.teacher.served.triplets import ServedTriplets
from tests.fixtures.chat_server import ChatServer, Reply, completion, error, image_of, question_of

QUESTIONS = ("what is there", "who is there", "where is it", "why is it there")
ENGLISH = "Which interactions of people with objects does the image show?"
IN_FLIGHT = 256
Pair = tuple[int, int]


def asked_of(bodies: Sequence[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often each cell was asked for."""
    return Counter((image_of(body), question_of(body)) for body in bodies)


class Stub:
    """Answers after 0.3 s, and turns every fiftieth request away."""

    def __init__(self) -> None:
        self.turned_away = 0

    def __call__(self, body: dict[str, Any], number: int) -> Reply:
        """The reply to a request."""
        if number % 50 == 49:
            self.turned_away += 1
            return error(429, retry_after_ms="100")
        return Reply(completion(question_of(body)), after=0.3)


def world(root: Path, url: str, requests: int) -> Path:
    """Images of their own bytes, and a configuration that asks ``requests`` questions about them."""
    (root / "images").mkdir()
    for number in range(requests // len(QUESTIONS)):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 7)).save(root / "images" / f"{number:05d}.png")
    table = {"stage": "served_answers", "base_url": url, "model": "tiny", "columns": list(QUESTIONS),
             "in_flight": IN_FLIGHT, "batch_size": 256, "shard_rows": 256}  # fmt: skip
    path = root / "served.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "served",
                "cache": str(root / "cache"),
                "runs": str(root / "runs"),
                "dataset": {"kind": "folder", "root": str(root / "images")},
                "workers": {"executor": "inline"},
                "tables": {"captions": table},
            }
        )
    )
    return path


def command(word: str, path: Path, *more: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "hoi_distill", word, str(path), *more]


def cpu_of(work: Callable[[], Any]) -> float:
    """CPU seconds of the processes that ``work`` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def counts(path: Path) -> dict[str, int]:
    """Cells of the table: filled, failed, empty."""
    said = subprocess.run(command("plan", path, "--json"), check=True, stdout=subprocess.PIPE, text=True).stdout
    table = json.loads(said)["tables"][0]
    return {name: table[name] for name in ("filled", "failed", "empty")}


def undisturbed(root: Path, requests: int) -> dict[str, Any]:
    """One run from nothing to its end."""
    stub = Stub()
    with ChatServer(stub) as server:
        path = world(root, server.url, requests)
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        cpu = cpu_of(lambda: subprocess.run(command("run", path), **quiet))
        idle = cpu_of(lambda: subprocess.run(command("run", path), **quiet))
        times = asked_of(server.bodies)
    return {
        **counts(path),
        "requests": len(server.bodies),
        "turned_away": stub.turned_away,
        "most_in_flight": server.most,
        "asked_and_answered_twice": sum(times.values()) - stub.turned_away - len(times),
        "cpu_ms_a_request": 1000 * (cpu - idle) / len(server.bodies),
    }


def killed(root: Path, requests: int, kills: int) -> dict[str, Any]:
    """The same with ``kill -9`` after equal numbers of requests."""
    stub = Stub()
    reached, at = threading.Event(), [requests]

    def answer(body: dict[str, Any], number: int) -> Reply:
        if number >= at[0]:
            reached.set()
        return stub(body, number)

    with ChatServer(answer) as server:
        path = world(root, server.url, requests)
        for kill in range(kills):
            reached.clear()
            at[0] = requests * (kill + 1) // (kills + 1)
            run = subprocess.Popen(command("run", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            reached.wait()
            run.send_signal(signal.SIGKILL)
            run.wait()
        subprocess.run(command("run", path), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times = asked_of(server.bodies)
    again = len(server.bodies) - stub.turned_away - len(times)
    return {**counts(path), "kills": kills, "requests": len(server.bodies), "asked_again": again,
            "asked_again_a_kill": again / kills, "cells_of_a_batch": 256 * len(QUESTIONS)}  # fmt: skip


def noisy(truth: Sequence[Pair], hois: np.ndarray, draw: random.Random) -> list[Pair]:
    """What the stub sees of an image's interactions."""
    seen = [pair for pair in truth if draw.random() >= 0.15]
    if draw.random() < 0.2:
        verb, obj = hois[draw.randrange(len(hois))]
        seen.append((int(verb), int(obj)))
    return list(dict.fromkeys(seen))


def in_english(pairs: Sequence[Pair], vocabulary: Vocabulary, draw: random.Random) -> str:
    """The pairs as a model tells them: "There is a person riding a bicycle.", in three forms."""
    prompts = dict(zip([(int(v), int(o)) for v, o in vocabulary.hois], vocabulary.prompts(), strict=True))
    forms = ("There is {}.", "I can see {}.", "{} can be seen.")
    said = []
    for pair in pairs:
        line = draw.choice(forms).format(prompts[pair].removeprefix("a photo of "))
        said.append(line[0].upper() + line[1:])
    return " ".join(said) or "Nobody does anything with anything."


def structured(images: int) -> dict[str, Any]:
    """Precision and recall of triplets from JSON and from English that say the same, against the scenes."""
    vocabulary = pico_vocabulary()
    hois = np.array([hoi for hoi in vocabulary.hois if vocabulary.verbs[int(hoi[0])] != NO_INTERACTION])
    draw = random.Random(0)
    chosen = [draw.sample(range(len(hois)), draw.choice([1, 1, 2, 3])) for _ in range(images)]
    truth = [[(int(hois[index][0]), int(hois[index][1])) for index in each] for each in chosen]
    pictures = [Image.new("RGB", (8, 8), (number % 256, number // 256, 0)) for number in range(images)]
    said = [noisy(each, hois, draw) for each in truth]
    cut = [draw.random() < 0.03 for _ in range(images)]
    row_of: dict[str, int] = {}

    def answer(body: dict[str, Any], _: int) -> Reply:
        row = row_of[image_of(body)]
        if "response_format" in body:
            items = [
                {"verb": vocabulary.verbs[verb].replace("_", " "), "object": vocabulary.objects[obj].replace("_", " ")}
                for verb, obj in said[row]
            ]
            text = json.dumps({"interactions": items})
        else:
            text = in_english(said[row], vocabulary, random.Random(row))
        half = text[: len(text) // 2]
        return Reply(completion(half if cut[row] else text, finish="length" if cut[row] else "stop"))

    batch = Batch(np.zeros(images, "V16"), [""] * images, images, pictures)
    result: dict[str, Any] = {"images": images, "cut": sum(cut)}
    with ChatServer(answer) as server:
        keys = {"base_url": server.url, "model": "tiny", "batch_size": images}
        written = ServedTriplets(ServedTriplets.Config(**keys), vocabulary)
        told = ServedAnswers(ServedAnswers.Config(**keys, columns=(ENGLISH,)), vocabulary)
        for row, picture in enumerate(pictures):
            row_of[written.prepare(picture)] = row
        read = Triplets(Triplets.Config(columns=(ENGLISH,)), vocabulary)
        for stage in (written, told, read):
            stage.open("cpu", {})
        cells = {"json": written.compute(batch, written.columns, {})[written.columns[0]].to_pylist()}
        result["json_failures"] = len(batch.turn.failures)
        batch.turn.failures.clear()
        texts = told.compute(batch, told.columns, {})
        result["english_failures"] = len(batch.turn.failures)
        cells["english"] = read.compute(batch, read.columns, {"captions": texts})[ENGLISH].to_pylist()
    for kind, found in cells.items():
        result[kind] = {"against_the_scene": scored(found, truth), "against_what_was_said": scored(found, said)}
    return result


def scored(cells: Sequence[dict[str, Any] | None], wanted: Sequence[Sequence[Pair]]) -> dict[str, float]:
    """Precision and recall of triplets over the images with an answer."""
    hits = found = there = 0
    for cell, pairs in zip(cells, wanted, strict=True):
        if cell is None:
            continue
        have = set(zip(cell["verb"], cell["object"], strict=True))
        hits, found, there = hits + len(have & set(pairs)), found + len(have), there + len(set(pairs))
    return {"precision": hits / found, "recall": hits / there}


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--requests", type=int, default=10_000)
    arguments.add_argument("--images", type=int, default=1000)
    given = arguments.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, Any] = {"structured": structured(given.images)}
    for name, measure in (("undisturbed", undisturbed), ("killed", lambda root, count: killed(root, count, 3))):
        with tempfile.TemporaryDirectory() as root:
            result[name] = measure(Path(root), given.requests)
    print(json.dumps(result, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
