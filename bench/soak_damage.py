"""What happens to files while nobody looks: flipped bits, cut ends, deletions, copies, links to nowhere."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

from bench.soak_ledger import Ledger

KINDS = ("flip", "cut", "delete", "copy", "zeros", "dangle")
TARGETS = {
    "payload": ("tables/*/shards/*", 36),
    "record": ("tables/*/commits/*.commit", 26),
    "description": ("tables/*/table.json", 6),
    "note": ("registered/*.json", 7),
    "memory": ("digests.sqlite*", 6),
    "lease": ("leases/*", 3),
    "marker": ("tables/*/commits/*.bad", 4),
    "tombstone": ("tables/*/commits/*.drop", 3),
    "kept": ("tables/*/bad/*", 2),
    "draft": ("tables/*/tmp/*", 3),
    "folder": ("tables/*/*/", 4),
    "table": ("tables/*/", 4),
}


def damage(root: Path, ledger: Ledger, generator: random.Random) -> str | None:
    """Damage one file of a cache, and enter it in the book; what was done, in words, or None where there is nothing."""
    names, weights = list(TARGETS), [weight for _, weight in TARGETS.values()]
    for _ in range(5):
        target = generator.choices(names, weights)[0]
        pattern = TARGETS[target][0]
        found = sorted(path for path in root.glob(pattern) if path.is_dir() == pattern.endswith("/"))
        if found:
            break
    else:
        return None
    path = generator.choice(found)
    if path.is_dir():
        shutil.rmtree(path)
        ledger.destroyed(path)
        return f"folder {path.relative_to(root)} deleted"
    kind = generator.choices(KINDS, (52, 14, 14, 10, 5, 5))[0]
    how = _strike(path, kind, generator)
    if kind != "copy":
        ledger.destroyed(path)
    return f"{target} {path.relative_to(root)}: {how}"


def _strike(path: Path, kind: str, generator: random.Random) -> str:
    before = path.lstat()
    size = before.st_size
    if path.is_symlink() or (size == 0 and kind in ("flip", "cut", "zeros")):
        kind = "delete"
    match kind:
        case "flip":
            where, bit = generator.randrange(size), generator.randrange(8)
            with open(path, "r+b") as file:
                file.seek(where)
                byte = file.read(1)[0]
                file.seek(where)
                file.write(bytes([byte ^ 1 << bit]))
            said = f"bit {bit} of byte {where} of {size} flipped"
        case "cut":
            left = generator.choice((0, size // 2, size - 1, generator.randrange(size)))
            os.truncate(path, left)
            said = f"cut from {size} to {left} bytes"
        case "zeros":
            where = generator.randrange(size)
            with open(path, "r+b") as file:
                file.seek(where)
                file.write(bytes(min(512, size - where)))
            said = f"zeros from byte {where} of {size}"
        case "copy":
            copied = _name_of_copy(path, generator)
            shutil.copyfile(path, copied, follow_symlinks=False)
            return f"copied to {copied.name}"
        case "dangle":
            path.unlink()
            path.symlink_to(path.parent / "nowhere" / path.name)
            return "a link to nowhere in its place"
        case _:
            path.unlink()
            return "deleted"
    if generator.random() < 0.3:  # rot leaves no time behind
        with contextlib.suppress(OSError):
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        said += ", its time as before"
    return said


def _name_of_copy(path: Path, generator: random.Random) -> Path:
    """What a copying tool, or a merge of two caches, would leave."""
    stem, suffix = path.stem, path.suffix
    key, dash, generation = stem.rpartition("-")
    choices = [f"{stem} (1){suffix}", f"{path.name}.copy", f"{stem}~{suffix}"]
    if suffix == ".commit" and dash and generation.isdigit():
        choices += [f"{key}-{int(generation) + 1}{suffix}", f"{key}-{int(generation) + 7}{suffix}"] * 2
    names = [name for name in choices if not path.with_name(name).exists()]
    return path.with_name(generator.choice(names or [f"{stem}.{generator.getrandbits(32):08x}{suffix}"]))
