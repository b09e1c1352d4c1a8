"""One sequence: a cache, what happens to it, what it must hold at the end, and what was found wrong."""

from __future__ import annotations

import functools
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import typer.main

from bench.soak_children import Child, Ended, Send, run
from bench.soak_damage import damage
from bench.soak_faults import Fault, draw
from bench.soak_ledger import Ledger, missing, vanished
from hoi_distill.pipeline import cli
from hoi_distill.storage.errors import UserError, WorkStopped

typer.main.get_command = functools.cache(typer.main.get_command)
"""To build the commands takes longer than most of them run, and a fork inherits them."""
FAULTS = ("lost", "wrong_after_the_end", "wrong_before_check", "tracebacks", "need_a_human")
"""What a sequence is counted for, each at most once."""


def command(name: str, *options: str) -> Callable[[Send], int]:
    """A command of ``hoi-distill`` as a child's action; it ends with the command's exit code."""

    def act(_send: Send) -> int:
        sys.argv = ["hoi-distill", name, *options]
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        except OSError as error:
            raise AssertionError(f"{name} does not say in a line: {error}") from error
        return 0

    return act


class House(ABC):
    """The base of both kinds of sequences. ``found`` maps a name of :data:`FAULTS` to what was seen first."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        self.folder, self.cache, self.generator = folder, folder / "cache", generator
        self.ledger = Ledger(self.cache)
        self.steps: list[str] = []
        self.found: dict[str, str] = {}
        self.damaged = False  # a file was, so that a run may refuse until `check` has looked
        self.faults = 0
        self.ended = False

    @abstractmethod
    def act(self) -> None:
        """One random thing happens."""

    @abstractmethod
    def begin(self) -> None:
        """What usually happens first."""

    @abstractmethod
    def some_read(self, undisturbed: bool = False) -> None:
        """Cells are read and compared."""

    @abstractmethod
    def finish(self) -> None:
        """All faults are over: run to the end, check, run, compare."""

    def live(self, steps: int) -> None:
        """The whole sequence."""
        self.begin()
        for _ in range(steps):
            self.act()
        self.steps.append("-- the end: run, check, run, compare --")
        self.ended = True
        self.finish()

    def child(
        self, name: str, action: Callable[[Send], int], operations: int, seconds: float, undisturbed: bool = False
    ) -> Child:
        """A process that something may befall; it usually does about so many operations in about so many seconds."""
        fault = draw(self.generator, operations, seconds)
        return Child(name, action, Fault() if undisturbed else fault)

    def note(self, kind: str, text: str) -> None:
        """Remember a fault of the project, the first of each kind."""
        if kind not in self.found:
            self.steps.append(f"   !! {kind}: {text.splitlines()[-1] if text else ''}")
        self.found.setdefault(kind, text)

    def run(self, *children: Child) -> list[Ended]:
        """Let processes live, enter what they committed, count what no process should end with."""
        ended = run(children, str(self.folder))
        for each in ended:
            fate = "killed" if each.code is None else f"ended with {each.code}"
            self.steps.append(f"{each.child}: {fate}{': ' + each.refusal if each.refusal else ''}")
            self.faults += each.child.fault != Fault()
            self.ledger.add(each.said)
            if each.crash:
                self.note("tracebacks", each.crash)
            for message in each.said:
                if isinstance(message, tuple) and message[0] == "wrong" and not self.ended:
                    self.note("wrong_before_check", "; ".join(message[1]))
                if isinstance(message, tuple) and message[0] == "lost":
                    self.note("lost", str(message[1]))
        return ended

    def one(self, child: Child) -> Ended:
        """Run one process."""
        return self.run(child)[0]

    def checked(self, child: Child) -> Ended:
        """A check: it may set aside, it must not destroy."""
        sound = self.ledger.sound_payloads()
        ended = self.one(child)
        if gone := vanished(sound):
            self.note("lost", f"check removed the intact payload {gone[0]}")
        return ended

    def looking(self, *then: Callable[[Send], int]) -> Callable[[Send], int]:
        """An action: whether what was committed, and was not destroyed, is still there; then other actions, until one is
        refused. It ends with the worst of their codes."""
        entries = self.ledger.intact()

        def look(send: Send) -> str | None:
            """Why that cannot be seen, if it cannot."""
            try:
                if lost := missing(self.cache, entries):
                    send(("lost", "; ".join(lost)))
            except (UserError, WorkStopped) as error:
                return str(error)
            return None

        def act(send: Send) -> int:
            unseen = look(send)
            codes = [0]
            for action in then:
                codes.append(action(send))
                if codes[-1] in (1, 2):
                    break
            if unseen is not None and (unseen := look(send)) is not None:  # a run writes a lost table.json again
                send(("unreadable", unseen))
            return codes[-1] if codes[-1] in (1, 2) else max(codes)

        return act

    def damage(self) -> None:
        """A file of the cache is damaged while nobody looks."""
        if done := damage(self.cache, self.ledger, self.generator):
            self.damaged = True
            self.steps.append(done)
            self.faults += 1
            if self.generator.random() < 0.5:
                self.some_read(undisturbed=self.generator.random() < 0.7)

    def days_pass(self) -> None:
        """Every file of the cache is two days older."""
        for path in self.cache.rglob("*"):
            if path.is_file() and not path.is_symlink():
                then = path.stat().st_mtime_ns - 2 * 86400 * 10**9
                os.utime(path, ns=(then, then))
        self.steps.append("two days pass")

    def human(self, text: str) -> None:
        """Note that a human would have to help."""
        self.note("need_a_human", text)

    def settled(self, ended: Ended) -> None:
        """The last run: it ends, nothing is empty, every value is right."""
        for message in ended.said:
            if isinstance(message, tuple) and message[0] == "incomplete":
                self.human(str(message[1]))
            if isinstance(message, tuple) and message[0] == "unreadable":
                self.human(f"after a check a table cannot be read: {message[1]}")
            if isinstance(message, tuple) and message[0] == "wrong":
                self.note("wrong_after_the_end", "; ".join(message[1]))
        if ended.code != 0:
            self.human(f"after a check the same run does not end: {ended.refusal or ended.crash or ended.code}")
