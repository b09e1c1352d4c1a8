"""Teacher checkpoints: where they are, who they are, and loading them whole or not at all.

A checkpoint is known by its contents, never by its path: :class:`Checkpoint` carries the digest of everything that
decides the teacher's answers, and another digest of the vision tower alone, by which stages find out that they may
share one pass. Nothing here imports torch until :func:`load` is called, so that planning stays light.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from hoi_distill.stages.checkpoints import weight_files as layout
from hoi_distill.stages.keys import StageContext
from hoi_distill.storage.digests import digest_of_file, fingerprint
from hoi_distill.storage.errors import UserError

Digests = Callable[[Sequence[Path]], np.ndarray]
"""Content digests ``V16 [N]`` of N files, see :meth:`hoi_distill.storage.file_digests.DigestMemory.digests`."""

Derived = Callable[[Path, str, Callable[[], str]], str]
"""``derived(file, name, make)``: what ``make`` works out from the bytes of a file; ``DigestMemory.derived`` remembers it."""

RECORDS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json",
    "tokenizer*.json", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.model",
    "chat_template*",
)  # fmt: skip
"""What else decides a teacher's answers: configuration, tokenizer and processor."""
NESTED_RECORDS = ("qformer_tokenizer/*", "modules.json", "*_Pooling/config.json")
"""The same of models that are several things: InstructBLIP's second tokenizer, a sentence encoder's pooling."""
OWN_CLASSES = {
    "PicoBlipForPairQuestions": "hoi_distill.stages.teacher.pico.modeling.marked",
    "PicoBlip": "hoi_distill.stages.teacher.pico.modeling.blip",
    "PicoClip": "hoi_distill.stages.teacher.pico.modeling.clip",
}
"""Architectures of this project, by the beginning of their name, the first that fits: the module that defines
them."""
VARIANTS = {
    "MixedSelectionDeformableDetr": "hoi_distill.stages.checkpoints.mixed_selection",
    "DilatedDetr": "hoi_distill.stages.checkpoints.dilated",
}
"""Variants of transformers' architectures that published checkpoints need and it lacks: the module that defines them."""
TOWERS = ("vision_model.", "model.vision_model.", "model.vision_tower.", "vision_tower.", "model.visual.", "visual.")
"""How the names of a vision tower's tensors begin: BLIP, CLIP and SigLIP; LLaVA; Qwen-VL; in new and old checkpoints."""
NOT_TOWER = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


@dataclass(frozen=True)
class Checkpoint:
    """A teacher's weights on this machine, identified by content. Plain data: it travels to the workers in its stage.

    Attributes:
        folder: the local folder.
        source: what the user wrote (a folder or a hub id) and ``revision``; provenance only.
        architecture: ``config.architectures[0]``, the transformers class that loads it.
        digest: 32 hex digits over weight files, configuration, tokenizer and processor, by file name.
        tower: 32 hex digits over the vision tower's tensors and their configuration; equal towers encode alike. A model
            that is nothing but a tower (DINOv2) is taken whole.
        preprocessing: the image processor's record (sizes, means, resampling), {} where it has none.
        config: the parsed ``config.json``.
    """

    folder: str
    source: str
    revision: str | None
    architecture: str
    digest: str
    tower: str
    preprocessing: dict[str, Any] = field(hash=False)
    config: dict[str, Any] = field(hash=False, repr=False)

    def provenance(self) -> dict[str, Any]:
        """Where it came from, for a commit's record; no part of a fingerprint."""
        return {"checkpoint": self.source, "revision": self.revision, "architecture": self.architecture}

    @classmethod
    def find(
        cls,
        source: str | Path,
        revision: str | None = None,
        digests: Digests | None = None,
        derived: Derived | None = None,
    ) -> Checkpoint:
        """Identify the checkpoint in a local folder, or of a hub id at a revision (fetched once, never when offline).

        Args:
            source: A folder, or a hub id.
            revision: Of a hub id; None is its main branch.
            digests: Remembers digests of files, so that an unchanged file is not read again. By default it is read.
            derived: The same of what is derived from a file.

        Raises:
            UserError: no such checkpoint, one without architecture, or one whose files are missing, cut or not fetched.
        """
        folder = locate(str(source), revision)
        config = read_json(folder / "config.json")
        architectures = config.get("architectures") or [None]
        if not isinstance(architectures, list) or not isinstance(architectures[0], str):
            raise UserError(
                f"{folder / 'config.json'}: 'architectures' names no class; save the model with save_pretrained"
            )
        if "transformers_weights" in config:
            raise UserError(
                f"{folder / 'config.json'}: transformers_weights names weight files of its own; take the key away, or save "
                "the model with save_pretrained"
            )
        found = layout.weight_files(folder)
        found.tell_unread()
        for file in _records(folder):
            layout.refuse_pointer(file)
        weights = found.files
        return cls(
            folder=str(folder),
            source=str(source),
            revision=revision,
            architecture=architectures[0],
            digest=teacher_digest(folder, digests),
            tower=tower_digest(weights, config, digests=digests, derived=derived),
            preprocessing=_preprocessing(folder),
            config=config,
        )

    @property
    def own(self) -> bool:
        """Whether its class is one of this project's, which say how they were trained."""
        return self.architecture.startswith(tuple(OWN_CLASSES))

    def here(self) -> Path:
        """The folder on the machine that asks, checked to hold the very bytes that were planned with.

        Raises:
            UserError: another node lacks the folder, or its contents have changed.
        """
        folder = Path(self.folder) if Path(self.folder).is_dir() else locate(self.source, self.revision)
        if teacher_digest(folder) != self.digest:
            raise UserError(f"{folder}: the checkpoint is not the one this run was planned with; plan and start again")
        return folder

    def part(self, prefix: str) -> str:
        """32 hex digits over the tensors whose names begin with ``prefix`` (a projection, a head)."""
        return tower_digest(layout.weight_files(Path(self.folder)).files, self.config, (prefix,))

    def require_preprocessing(self) -> None:
        """Refuse a checkpoint that does not say how an image is prepared.

        Raises:
            UserError: If it does not.
        """
        if not self.preprocessing:
            raise UserError(
                f"{self.folder}: no preprocessor_config.json (nor an image processor in processor_config.json), which says how "
                "images are prepared; fetch it with the weights"
            )

    def grid(self) -> tuple[int, int, int]:
        """``(D, h, w)``: channels and patch rows and columns of the vision tower's map."""
        vision = self.config.get("vision_config")
        if not isinstance(vision, dict):
            raise UserError(
                f"{self.folder}/config.json: {self.architecture} has no 'vision_config'; use a BLIP checkpoint"
            )
        side = self.number(vision, "image_size", 384) // self.number(vision, "patch_size", 16)
        return self.number(vision, "hidden_size", 768), side, side

    def number(self, section: Mapping[str, Any], key: str, default: int) -> int:
        """A size in a section of ``config.json``; UserError where it is none."""
        value = section.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"{self.folder}/config.json: {key} is {value!r}, not a whole number above 0; fetch it again"
            )
        return value


class CheckpointName(BaseModel):
    """A local folder or a hub id, with the hub's revision."""

    model_config = ConfigDict(extra="forbid")

    id: str
    revision: str | None = None


def _find(given: Any, name_of: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Checkpoint:
    """The checkpoint that a configuration names; one that was found already stays."""
    if isinstance(given, Checkpoint):
        return given
    name = name_of(given)
    name = CheckpointName(id=name) if isinstance(name, str) else name
    context = info.context
    memory = (context.digests, context.derived) if isinstance(context, StageContext) else ()
    return Checkpoint.find(name.id, name.revision, *memory)


CHECKPOINT = WrapValidator(_find)
if TYPE_CHECKING:
    CheckpointKey = Checkpoint
else:
    CheckpointKey = Annotated[str | CheckpointName, CHECKPOINT]
    """A key that names a checkpoint: a folder, a hub id, or ``{id, revision}``."""


def locate(source: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; a hub id is looked up in the hub's cache first and fetched if it may be."""
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise UserError(
            f"{source}: no such checkpoint folder; give a folder with config.json or a hub id like 'org/name'"
        )
    return layout.fetch(source, revision, (*RECORDS, *NESTED_RECORDS))


def _records(folder: Path) -> list[Path]:
    """What decides answers beside the weights."""
    records = [path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in RECORDS)]
    return [*records, *(path for pattern in NESTED_RECORDS for path in folder.glob(pattern))]


def teacher_digest(folder: Path, digests: Digests | None = None) -> str:
    """32 hex digits over the contents of what loading reads, by file name: the weights of
    :func:`hoi_distill.stages.checkpoints.weight_files.weight_files` and their index, configuration, tokenizer and processor."""
    weights = layout.weight_files(folder)
    files = sorted([*weights.files, *([weights.index] if weights.index else []), *_records(folder)])
    values = _hash_files(files) if digests is None else digests(files)
    names = [path.relative_to(folder).as_posix() for path in files]
    return fingerprint({name: bytes(value).hex() for name, value in zip(names, values, strict=True)})


def tower_digest(
    weights: Sequence[Path],
    config: dict[str, Any],
    prefixes: Sequence[str] = TOWERS,
    digests: Digests | None = None,
    derived: Derived | None = None,
) -> str:
    """32 hex digits over the tower's tensors (name, dtype, shape, bytes) and its configuration.

    The tower is what stands under the first of ``prefixes`` that occurs. Two checkpoints that carry byte-identical towers
    agree, whatever text model hangs below. Weights that are not safetensors, or hold no such tensor, are taken as a whole,
    and so is a configuration without ``vision_config``.
    """
    nested = config.get("vision_config")
    vision = nested if isinstance(nested, dict) else {} if "text_config" in config else config
    tensors: dict[str, str] = {}
    for prefix in prefixes:
        for path in weights:
            tensors |= tensor_digests(path, prefix, derived)
        if tensors:
            break
    else:
        values = _hash_files(weights) if digests is None else digests(weights)
        tensors = {path.name: bytes(value).hex() for path, value in zip(weights, values, strict=True)}
    kept = {key: value for key, value in vision.items() if key not in NOT_TOWER}
    return fingerprint({"model_type": config.get("model_type"), "vision_config": kept, "tensors": tensors})


def tensor_digests(path: Path, prefix: str, derived: Derived | None) -> dict[str, str]:
    """``{name: dtype, shape and digest}`` of the tensors under ``prefix`` in a safetensors file; {} of any other file."""
    if path.suffix != ".safetensors":
        return {}
    stat = path.stat()
    if derived is None:
        return _tensor_digests(str(path), prefix, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    found: dict[str, str] = json.loads(
        derived(
            path,
            f"tensors under {prefix}",
            lambda: json.dumps(_tensor_digests(str(path), prefix, stat.st_size, stat.st_mtime_ns, stat.st_ino)),
        )
    )
    return found


@lru_cache(maxsize=64)
def _tensor_digests(path: str, prefix: str, _size: int, _mtime_ns: int, _inode: int) -> dict[str, str]:
    """Digest of each tensor under ``prefix``, read by the header's offsets. The stat fields only key the memory."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    digests = {}
    for name, entry in sorted(header.items()):
        if name.startswith(prefix):
            begin, end = (start + offset for offset in entry["data_offsets"])
            value = hashlib.blake2b(data[begin:end].data, digest_size=16).hexdigest()
            digests[name] = f"{entry['dtype']}{entry['shape']}:{value}"
    return digests


def load(
    checkpoint: Checkpoint,
    folder: Path,
    dtype: str,
    device: str,
    *,
    make: Any = None,
    spare: Sequence[str] = (),
    **instead: Any,
) -> Any:
    """The whole model of a checkpoint, in evaluation mode, without gradients.

    The class is the one that the checkpoint names: an Auto class would build a sibling and fill what does not fit with
    random numbers.

    Args:
        checkpoint: What the folder holds.
        folder: ``checkpoint.here()``.
        dtype: Of weights and arithmetic.
        device: Where the model lies.
        make: another class to load it as, where the caller reads only what that class holds (a text encoder's states).
        spare: patterns of keys that may be missing or left over, for the caller does not use them.
        **instead: ``config`` and ``state_dict`` for ``from_pretrained``, of a checkpoint that must be translated first.

    Raises:
        UserError: the class is unknown, a file cannot be read, or the weights do not fill the model exactly; the line lists
            the keys.
    """
    import torch
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        kind = make or model_class(checkpoint)
        with _readable(folder, checkpoint.architecture):
            model, info = kind.from_pretrained(
                None if "state_dict" in instead else folder,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below with the other keys
                local_files_only=True,
                use_safetensors=layout.weight_files(folder).safe,
                **instead,
            )
    finally:
        logging.set_verbosity(verbosity)
    # Checkpoints written by old releases still carry the constant buffers (0, 1, 2, ...) of position_ids.
    free = (*spare, "*position_ids")
    wrong = {
        "missing": _besides(info["missing_keys"], spare),
        "unexpected": _besides(info["unexpected_keys"], free),
        "mismatched": info["mismatched_keys"],
    }
    told = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in wrong.items() if keys]
    if told:
        raise UserError(
            f"{folder}: the weights do not fill {checkpoint.architecture}: {', '.join(told)}; "
            "config.json and weights must come from the same model"
        )
    return model.to(device).eval().requires_grad_(requires_grad=False)


def image_processor(folder: Path, **options: Any) -> Any:
    """The checkpoint's own image processor on PIL, whatever else is installed: another backend gives other pixels.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoImageProcessor

    with _readable(folder, "its image processor"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, **options)


def tokenizer(folder: Path, make: Any = None) -> Any:
    """The checkpoint's own tokenizer, of the class ``make`` if that is given.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoTokenizer

    with _readable(folder, "its tokenizer"):
        return (make or AutoTokenizer).from_pretrained(folder, local_files_only=True)


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """What transformers raises of files that it cannot make sense of, as one line. Memory and devices that fail are no
    fault of the files, and a file system's errors have numbers."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise UserError(f"{folder}: {what} cannot be loaded from it: {why}; fetch the checkpoint again") from error


def model_class(checkpoint: Checkpoint) -> Any:
    """The class named by ``config.architectures[0]``: one of transformers', or one of this project's."""
    name = checkpoint.architecture
    defined = {**OWN_CLASSES, **VARIANTS}
    module = next((own for start, own in defined.items() if name.startswith(start)), "transformers")
    found = getattr(import_module(module), name, None)
    if found is None:
        raise UserError(
            f"{checkpoint.folder}/config.json: architecture '{name}' is not known to {module}; remote code stays off"
        )
    return found


def _besides(keys: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [key for key in keys if not any(fnmatch(key, pattern) for pattern in patterns)]


def _some(keys: Sequence[Any]) -> str:
    names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _hash_files(paths: Sequence[Path]) -> np.ndarray:
    return np.frombuffer(b"".join(map(digest_of_file, paths)), dtype="V16")


def _preprocessing(folder: Path) -> dict[str, Any]:
    """The image processor's record, from its own file or (newer layout) from inside the processor's."""
    if (folder / "preprocessor_config.json").exists():
        return dict(read_json(folder / "preprocessor_config.json"))
    if (folder / "processor_config.json").exists():
        inside = read_json(folder / "processor_config.json").get("image_processor")
        return inside if isinstance(inside, dict) else {}
    return {}


def read_json(path: Path, kind: type = dict) -> Any:
    """A checkpoint's record; UserError where it cannot be read or is not of ``kind``."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); save the model with save_pretrained") from error
    if not isinstance(record, kind):
        what = "object" if kind is dict else "list"
        raise UserError(f"{path}: holds no JSON {what}; save the model with save_pretrained")
    return record
