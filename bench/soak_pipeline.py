"""Sequences on planner and executor: the commands as a user gives them, on a folder of small pictures and small stages."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from bench import soak_stages
from bench.soak_children import Child, Send
from bench.soak_house import House, command
from bench.soak_ledger import report_commits
from hoi_distill.stages.data.image import open_picture

PROMPTS = ("ride", "hold", "eat", "wash")
VIEWS = ("original", "flip")
BROKEN = b"\x89PNG\r\n\x1a\n not a picture"


class PipelineHouse(House):
    """One or two setups that share a cache: the second has another teacher, so some of its tables are its own."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        super().__init__(folder, generator)
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        self.words = folder / "vocabulary.json"  # few: HICO-DET's 600 take longer than the rest
        self.words.write_text('{"verbs": {"ride": "riding"}, "interactions": ["ride bicycle"]}')
        for name in range(4):
            self.paint(name)
        self.prompts, self.views = list(PROMPTS[: generator.randint(1, 3)]), list(VIEWS[:1])
        self.setups = ["a"] if generator.random() < 0.6 else ["a", "b"]
        self.sums = generator.random() < 0.5
        self.write()
        soak_stages.register()

    # ---- the world ----

    def paint(self, name: int) -> None:
        """Write a picture of a random shade, or a broken file."""
        shade = self.generator.randrange(256)
        path = self.pictures / f"{name}.bmp"
        if self.generator.random() < 0.08:
            path.write_bytes(BROKEN + bytes([shade]))
        else:
            Image.new("RGB", (8, 8), (shade, name, 7)).save(path)

    def write(self) -> None:
        """Write the configurations."""
        for name in self.setups:
            below: dict[str, Any] = {"columns": self.prompts, "shard_rows": 3}
            tables: dict[str, Any] = {
                "found": {"stage": "soak_found", "weights": name, **below},
                "doubled": {"stage": "soak_doubled", **below},
                "chosen": {"stage": "soak_chosen", **below},
            }
            if self.sums:
                tables["maps"] = {"stage": "soak_maps", "columns": self.views, "shard_rows": 3}
                tables["sums"] = {"stage": "soak_sums", "shard_rows": 3}
            config = {
                "name": name,
                "cache": str(self.cache),
                "runs": str(self.folder / "runs"),
                "dataset": {"kind": "folder", "root": str(self.pictures), "vocabulary": str(self.words)},
                "workers": {"executor": "inline", "count": 1},
                "tables": tables,
            }
            self.path(name).write_text(yaml.safe_dump(config))

    def path(self, setup: str) -> Path:
        """The configuration of a setup."""
        return self.folder / f"{setup}.yaml"

    # ---- what may happen ----

    def begin(self) -> None:
        """Mostly begin with a run."""
        if self.generator.random() < 0.8:
            self.some_run()

    def act(self) -> None:
        """Do one thing at random."""
        actions: dict[Callable[[], None], int] = {
            self.some_run: 30, self.some_read: 8, self.some_check: 8, self.some_plan: 3, self.rivals: 7,
            self.collect: 5, self.days_pass: 5, self.change: 14, self.damage: 25,
        }  # fmt: skip
        self.generator.choices(list(actions), list(actions.values()))[0]()

    def some_run(self) -> None:
        """Run a setup."""
        self.run(self.struck_run())

    def some_read(self, undisturbed: bool = False) -> None:
        """Read all filled cells of a setup and compare them."""
        name = self.generator.choice(self.setups)
        reading = functools.partial(self.compare, name, self.means())
        self.run(self.child(f"read {name}", reading, 60, 0.05, undisturbed))

    def some_check(self) -> None:
        """Check the cache."""
        self.checked(self.check())

    def some_plan(self) -> None:
        """Plan a setup."""
        name = self.generator.choice(self.setups)
        self.run(self.child(f"plan {name}", command("plan", str(self.path(name))), 60, 0.05))

    def rivals(self) -> None:
        """Run two processes at once."""
        other = self.generator.choice((self.struck_run, self.struck_run, self.check))
        self.run(self.struck_run(), other())

    def collect(self) -> None:
        """``gc --yes``, after the tables that no note names are taken out of the book."""
        self.forget_unregistered()
        options = ["--yes", "--cache", str(self.cache)]
        if self.generator.random() < 0.5:
            options += ["--grace-days", "0"]
        self.run(self.child("gc " + " ".join(options[:1] + options[3:]), command("gc", *options), 60, 0.05))

    def forget_unregistered(self) -> None:
        """A note that cannot be read names nobody knows what: then nothing may go."""
        named: set[str] = set()
        for note in (self.cache / "registered").glob("[!.]*.json"):
            try:
                named.update(json.loads(note.read_text())["tables"])
            except (OSError, ValueError, KeyError, TypeError):
                return
        self.ledger.forget({entry.table for entry in self.ledger.entries.values()} - named)

    def change(self) -> None:
        """Change pictures, prompts or views."""
        generator = self.generator
        kind = generator.choice(("paint", "paint", "remove", "ask", "ask", "drop", "view"))
        name = generator.randrange(7)
        if kind == "paint":
            self.paint(name)
        elif kind == "remove" and len(list(self.pictures.iterdir())) > 2:
            (self.pictures / f"{name}.bmp").unlink(missing_ok=True)
        elif kind == "ask":
            self.prompts = list(dict.fromkeys([*self.prompts, generator.choice(PROMPTS)]))
        elif kind == "drop" and len(self.prompts) > 1:
            self.prompts.remove(generator.choice(self.prompts))
        elif kind == "view":
            self.views = list(VIEWS[: 3 - len(self.views)])
        self.write()
        self.steps.append(f"changed: {kind} {name}; prompts {self.prompts}, views {self.views}")

    # ---- what a process does ----

    def struck_run(self) -> Child:
        """A run that a fault may strike."""
        name = self.generator.choice(self.setups)
        extra = self.generator.choices(([], ["--retry-failed"], ["--limit", "3"], ["--rehash"]), (80, 8, 6, 6))[0]
        return self.child(" ".join(["run", name, *extra]), self.running(name, *extra), 400, 0.25)

    def running(self, name: str, *extra: str) -> Callable[[Send], int]:
        """The action of a run that reports its commits."""
        run = command("run", str(self.path(name)), *extra)

        def act(send: Send) -> int:
            """Do one thing at random."""
            report_commits(send)
            return run(send)

        return act

    def check(self) -> Child:
        """A check that a fault may strike."""
        return self.child("check", command("check", "--cache", str(self.cache)), 80, 0.05)

    def compare(self, name: str, means: Mapping[str, float], send: Send, whole: bool = False) -> int:
        """Read every cell that counts as filled, and (``whole``) every wanted one."""
        from hoi_distill.pipeline.training.binding import plan_all
        from hoi_distill.pipeline.workspace import prepare

        workspace = prepare(self.path(name))
        source = workspace.sources["images"]
        for table, table_plan in plan_all(workspace).items():
            if whole and not table_plan.complete():
                send(("incomplete", f"{name}, {table}: {table_plan.counts}"))
            if table_plan.table is None or table_plan.state is None:
                continue
            filled = table_plan.state.filled & table_plan.cells.wanted_mask()
            values = table_plan.table.read(replace(table_plan.cells, wanted=filled))
            wrong = [
                f"{name}, {table}: row {row}, column {table_plan.columns[column]!r}"
                for row, column in np.argwhere(filled).tolist()
                if not self.right(
                    table, means[source.uris[table_plan.rows[row]]], table_plan.columns[column], values, row
                )
            ]
            if wrong:
                send(("wrong", wrong))
        return 0

    def means(self) -> dict[str, float]:
        """By path, what the stages see of the pictures as they are now; -1 of one that is none."""
        return {str(path): _mean(path) for path in self.pictures.iterdir()}

    def right(self, table: str, mean: float, column: str, values: dict[str, Any], row: int) -> bool:
        """Whether a cell holds what its stage answers."""
        expected = soak_stages.right_value(table, mean, column, self.views)
        cells = values[column]
        return bool(cells[row].as_py() == expected if isinstance(cells, pa.Array) else (cells[row] == expected).all())

    # ---- the end ----

    def finish(self) -> None:
        """Run to the end without faults, and compare every cell."""
        check = command("check", "--cache", str(self.cache))
        for name in self.setups:
            first = self.one(Child(f"run {name} to the end", self.looking(self.running(name))))
            if first.code != 0 and not self.damaged:
                self.human(
                    f"the run does not end, though no file was damaged: {first.refusal or first.crash or first.code}"
                )
        self.checked(Child("check", check))
        for name in self.setups:
            last: list[Callable[[Send], int]] = [
                self.running(name),
                functools.partial(self.compare, name, self.means(), whole=True),
            ]
            if name == self.setups[-1]:
                last.append(check)
            self.settled(self.one(Child(f"run {name}, compare, check", self.looking(*last))))


def _mean(path: Path) -> float:
    try:
        with open_picture(path) as image:
            return soak_stages.mean_of(image.convert("RGB"))
    except OSError:
        return -1.0
