"""Which files of a model's folder are its weights: just those that transformers will load, whole, or a clear refusal.

What is digested, loaded and fetched from a model hub is decided here alone, so that it is the same everywhere. Nothing here
imports torch.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hoi_distill.storage.errors import UserError

KINDS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""What a set of weights begins with, as transformers prefers them: one file, or the index of several; safetensors first."""
POINTER = b"version https://git-lfs"
"""How the text begins that stands in a clone for a file which Git LFS has not fetched."""


@dataclass(frozen=True)
class WeightFiles:
    """A folder's weights.

    Attributes:
        files: what is loaded, sorted by name.
        index: which tensor stands in which of several files; None of a single one.
        unread: what the folder's other sets of weights begin with, by name.
    """

    files: tuple[Path, ...]
    index: Path | None
    unread: tuple[str, ...]

    @property
    def safe(self) -> bool:
        """Whether they are safetensors."""
        return self.files[0].suffix == ".safetensors"

    def tell_unread(self) -> None:
        """Say once, to people, which of several sets of weights is read."""
        if self.unread:
            folder, read = self.files[0].parent, (self.index or self.files[0]).name
            _say(f"{folder}: several sets of weights: {read} is read, not {', '.join(self.unread)}; keep one of them")


def weight_files(folder: Path) -> WeightFiles:
    """The files that transformers' ``from_pretrained(folder)`` reads.

    Raises:
        UserError: there are none, one is missing or cut or only Git LFS's pointer, or an adapter belongs to them.
    """
    there = [name for kind in KINDS for name in kind if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder}: no weight files (looked for {', '.join(sum(KINDS, ()))}){_instead(folder)}")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}/adapter_config.json: an adapter beside the weights, which loading may or may not apply; merge it into "
            "them (peft's merge_and_unload), or take it away"
        )
    first = folder / there[0]
    index = first if first.suffix == ".json" else None
    files = tuple(sorted(folder / name for name in shards(index))) if index else (first,)
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: missing, though {there[0]} names it; fetch the whole checkpoint again")
        refuse_cut(file)
    return WeightFiles(files, index, tuple(there[1:]))


def shards(index: Path) -> list[str]:
    """The files that an index names, in order.

    Raises:
        UserError: it cannot be read, or names a file outside its folder.
    """
    refuse_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("its weight_map names no files of this folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weight files ({_reason(error)}); fetch it again") from None
    return names


def refuse_pointer(file: Path) -> None:
    """Refuse Git LFS's pointer, which a clone may have in place of the file.

    Raises:
        UserError: If it is one.
    """
    with open(file, "rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise UserError(f"{file}: Git LFS's pointer to the file, not the file; run 'git lfs pull' in that folder")


def refuse_cut(file: Path) -> None:
    """Refuse a weight file that is not whole.

    A safetensors file is opened, which reads its header; of a ``.bin`` the table of contents at its end is looked for.

    Raises:
        UserError: If it is a pointer, empty, or not as long as it says it is.
    """
    refuse_pointer(file)
    why = ""
    if not file.stat().st_size:
        why = "it is empty"
    elif file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            why = _reason(error)
    else:
        with open(file, "rb") as stream:
            is_zip = stream.read(2) == b"PK"
        if is_zip and not zipfile.is_zipfile(file):
            why = "its end is missing"
    if why:
        raise UserError(f"{file}: damaged or not fetched to the end ({why}); fetch it again")


def fetch(source: str, revision: str | None, others: Sequence[str], foreign: Sequence[str] = ()) -> Path:
    """The local folder of a model hub's repository: its weights, one set of them, and the files that match ``others``.

    Looked up in the hub's cache first and fetched if it may be. An index comes first, then the files that it names.

    Args:
        source: The hub id.
        revision: None is its main branch.
        others: Patterns of the files that are wanted beside the weights.
        foreign: patterns of weight files that transformers does not read, for repositories that hold nothing else.

    Raises:
        UserError: not to be had, or without weights.
    """
    from huggingface_hub import snapshot_download

    def snapshot(patterns: Iterable[str], local: bool) -> Path:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns), local_files_only=local))

    reason: Exception | None = None
    for local in (True, False):
        for kind in (*KINDS, foreign) if foreign else KINDS:
            try:
                found = snapshot([*others, *kind], local)
                for name in kind:
                    if name.endswith(".index.json") and (found / name).is_file():
                        found = snapshot([name, *shards(found / name)], local)
                if kind is not foreign or not any(any(found.glob(pattern)) for pattern in foreign):
                    weight_files(found)
                return found
            except UserError as error:  # of the other kind, or not all of it is here yet
                reason = error
            except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated classes
                reason = error
                if not local:
                    break
    raise UserError(
        f"{source}@{revision or 'main'}: checkpoint not found: {_reason(reason)}; give a local folder or go online"
    )


@cache
def _say(line: str) -> None:
    print(f"hoi-distill: warning: {line}", file=sys.stderr)


def _instead(folder: Path) -> str:
    """What else of the kind there is: half a sentence for the message, with the remedy."""
    others = sorted(path.name for kind in ("*.safetensors", "*.bin", "*.pth", "*.gguf") for path in folder.glob(kind))
    if not others:
        return "; save the model with save_pretrained"
    some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return f"; {some} there {'is' if len(others) == 1 else 'are'} not read: save the model with save_pretrained"


def _reason(error: Any) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
