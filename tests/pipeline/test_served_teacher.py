"""A run whose teacher is behind a server: what it pays for is in the cache, whatever ends it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import prepare
from tests.fixtures.chat_server import ChatServer, Reply, completion, error, first_tokens, image_of, question_of
from tests.fixtures.command import ROOT
from tests.fixtures.toy_stages import paint, run

QUESTIONS = ["what is there", "who is there"]


class World:
    """A folder of images and a configuration that asks the server about them."""

    def __init__(self, root: Path, server: ChatServer, images: int = 8, **keys) -> None:
        self.root, self.path = root, root / "served.yaml"
        (root / "images").mkdir()
        for number in range(images):
            paint(root / "images" / f"{number:03d}.png", number)
        table = {"stage": "served_answers", "base_url": server.url, "model": "tiny", "columns": QUESTIONS,
                 "shard_rows": 4, "batch_size": 4, "in_flight": 4, "retries": 1, **keys}  # fmt: skip
        self.config = {
            "name": "served",
            "cache": str(root / "cache"),
            "runs": str(root / "runs"),
            "dataset": {"kind": "folder", "root": str(root / "images")},
            "workers": {"executor": "inline"},
            "tables": {"captions": table},
        }
        self.path.write_text(yaml.safe_dump(self.config))

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.line(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300,
                              env={**os.environ, **environment})  # fmt: skip

    def line(self, command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hoi_distill", command, str(self.path), *arguments]

    def counts(self) -> dict[str, int]:
        plan = json.loads(self.command("plan", "--json").stdout)
        return {name: plan["tables"][0][name] for name in ("filled", "failed", "empty")}

    def text(self) -> str:
        """All that the run left behind, whatever form it has."""
        files = [path for path in self.root.rglob("*") if path.is_file() and "images" not in path.parts]
        return "".join(path.read_bytes().decode("latin-1") for path in files)


def echo(body, _number=0) -> Reply:
    return Reply(completion(question_of(body)))


@pytest.mark.slow
def test_failures_are_cells_with_reasons_and_the_summary_counts_requests_and_price(tmp_path):
    cut = Reply(completion("a", finish="length"))
    with ChatServer(lambda body, number: cut if number == 3 else echo(body)) as server:
        world = World(tmp_path, server, prompt_price=1000.0)
        ran = world.command("run")
        assert world.counts() == {"filled": 15, "failed": 1, "empty": 0}
        again = world.command("run")
    assert ran.returncode == 0, ran.stderr
    assert "captions: 16 requests, 1,600 prompt tokens, 160 completion tokens, price 1.6." in ran.stdout
    assert "cut at max_new_tokens" in ran.stdout
    assert "Nothing to do" in again.stdout
    assert len(server.bodies) == 16
    assert "fp_1" in world.text()


@pytest.mark.slow
def test_a_trial_says_what_the_cells_to_come_cost_and_stores_nothing(tmp_path):
    with ChatServer(echo) as server:
        world = World(tmp_path, server, prompt_price=1000.0)
        said = world.command("plan", "--trial", "3").stdout
        trial = json.loads(world.command("plan", "--trial", "2", "--json").stdout)["tables"][0]["trial"]
        assert world.counts()["empty"] == 16
        assert not (tmp_path / "cache" / "tables").exists() or not list(
            (tmp_path / "cache" / "tables").rglob("*.commit")
        )
    assert (
        "captions: a trial of 3 cells took 3 requests, 300 prompt tokens, 30 completion tokens, price 0.3; 16 cells to come "
        "take about 16 requests, 1,600 prompt tokens, 160 completion tokens, price 1.6" in said
    )
    assert trial["expected"]["price"] == pytest.approx(1.6)
    assert len(server.bodies) == 5


@pytest.mark.slow
def test_a_spent_budget_ends_the_run_with_one_line_and_the_next_run_pays_for_the_rest(tmp_path):
    with ChatServer(echo) as server:
        world = World(tmp_path, server, in_flight=1, prompt_price=10.0, budget=0.0055)
        ran = world.command("run")
        assert ran.returncode == 2
        assert "budget is spent" in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "captions: 5 requests" in ran.stdout
        assert world.counts() == {"filled": 5, "failed": 0, "empty": 11}
        assert world.command("run", "--set", "tables.captions.budget=1").returncode == 0
    asked = Counter((image_of(body), question_of(body)) for body in server.bodies)
    assert len(asked) == 16
    assert set(asked.values()) == {1}


@pytest.mark.slow
def test_the_key_is_in_no_file_and_no_message(tmp_path):
    key = "sk-nobody-may-see-this"
    replies = [error(401, f"your key {key} is wrong")]
    with ChatServer(lambda body, _: replies.pop() if replies else echo(body)) as server:
        world = World(tmp_path, server, key_variable="TINY_KEY")
        missing = world.command("run")
        assert missing.returncode == 2
        assert (
            f"{world.path}: tables.captions: key_variable: the environment variable TINY_KEY is not set"
            in missing.stderr
        )
        assert not server.bodies
        runs = [world.command("run", TINY_KEY=key) for _ in range(2)]
    assert "your key *** is wrong" in runs[0].stderr
    assert runs[1].returncode == 0
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {key}"}
    assert key not in world.text()
    assert not any(key in ran.stdout + ran.stderr for ran in runs)


@pytest.mark.slow
def test_a_killed_run_asks_again_only_what_it_had_not_committed(tmp_path):
    """The server stops answering after three tasks' requests; then the run is killed."""
    held = [True]
    server = ChatServer(
        lambda body, number: Reply(completion(question_of(body)), until=lambda: number < 26 or not held)
    )
    with server:
        world = World(tmp_path, server, images=16)
        run = subprocess.Popen(world.line("run"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.bodies) < 28:
            assert run.poll() is None
            time.sleep(0.05)
        while world.counts()["filled"] < 24:
            assert run.poll() is None
            time.sleep(0.5)
        run.send_signal(signal.SIGKILL)
        run.wait()
        held.clear()
        assert world.command("run").returncode == 0
        assert world.counts() == {"filled": 32, "failed": 0, "empty": 0}
    asked = Counter((image_of(body), question_of(body)) for body in server.bodies)
    assert len(asked) == 32
    assert sum(asked.values()) <= 32 + 8


def test_a_cell_of_answers_about_pairs_is_a_request_for_each_and_fails_with_one_of_them(tmp_path):
    listed = {"yes": math.log(0.7), "no": math.log(0.2)}

    def told(body, number):
        flagged = error(400, "flagged", "content_policy_violation")
        return flagged if number == 0 else Reply(completion("yes", logprobs=first_tokens(listed)))

    with ChatServer(told) as server:
        asked = {"stage": "served_pair_answers", "base_url": server.url, "model": "tiny", "columns": "pair_questions",
                 "splits": ["train"], "batch_size": 4, "in_flight": 1}  # fmt: skip
        document = {
            "name": "pico",
            "cache": str(tmp_path / "cache"),
            "dataset": {"kind": "pico", "root": str(tmp_path / "world"), "train": 6, "test": 2},
            "workers": {"executor": "inline"},
            "tables": {
                "detections": {"stage": "ground_truth_boxes"},
                "instances": {"stage": "instances"},
                "pair_answers": asked,
            },
        }
        path = tmp_path / "pico.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        run(prepare(path))
        requests = len(server.bodies)
        run(prepare(path))
    counts = plan_all(prepare(path))["pair_answers"].counts
    assert (counts["failed"], counts["empty"]) == (1, 0)
    assert requests == len(server.bodies) > counts["filled"] > 6, "the second run has nothing to ask"
