"""The configuration: one YAML file a setup, checked to the last key before any work starts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PicoDataset(Section):
    """The built-in pico world: rendered on first use into ``root`` in HICO-DET's own layout, then read like HICO-DET."""

    kind: Literal["pico"]
    root: Path
    seed: int = Field(0, ge=0)
    train: int = Field(4000, ge=1)
    test: int = Field(1000, ge=1)


class HicoDetDataset(Section):
    """HICO-DET in any of its three forms: ``anno_bbox.mat`` or a pair of JSON files, ``images/train2015``, ``images/test2015``.

    root: the folder or one of the files. image_labels: ``anno.mat``, where it does not lie beside them.
    """

    kind: Literal["hico-det"]
    root: Path
    lenient: bool = False
    image_labels: Path | None = None


class VCocoDataset(Section):
    """V-COCO: the folder of its official files and COCO's pictures. Trains on ``trainval``.

    combinations: which objects an action can be done with: what is annotated in ``trainval``, ``all``, or a vocabulary file.
    """

    kind: Literal["v-coco"]
    root: Path
    lenient: bool = False
    combinations: Literal["trainval", "all"] | Path = "trainval"


class SwigHoiDataset(Section):
    """SWiG-HOI: the folder of its JSON files and pictures. Trains on ``trainval``."""

    kind: Literal["swig-hoi"]
    root: Path
    lenient: bool = False


class FolderDataset(Section):
    """A plain folder of pictures. annotations: its JSON file (docs/formats.md), where pictures are labelled."""

    kind: Literal["folder"]
    root: Path
    vocabulary: Path | None = None
    annotations: Path | None = None
    lenient: bool = False


Dataset = PicoDataset | HicoDetDataset | VCocoDataset | SwigHoiDataset | FolderDataset


class Table(Section):
    """One table of the cache. Keys other than these are the stage's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    stage: str
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    shard_rows: int = Field(256, ge=1)

    def parameters(self) -> dict[str, Any]:
        """The stage's own parameters, as written."""
        return dict(self.__pydantic_extra__ or {})


class Workers(Section):
    executor: Literal["ray", "inline"] = "ray"
    count: int = Field(default=2, ge=1)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda|mps)(:\d+)?$")
    """Of the inline executor; Ray's workers take a GPU where a table's ``gpus`` reserves one."""
    hang_after: float = Field(default=1800, gt=0)
    """Seconds: a Ray worker that computes no batch and loads no model in them is replaced."""
    start_within: float = Field(default=100, gt=0)
    """Seconds in which the first Ray worker has to start; more where a cluster first fetches machines."""

    def limits(self) -> dict[str, float]:
        return {"hang_after": self.hang_after, "start_within": self.start_within}


class Config(Section):
    """One setup. Relative paths are relative to the working directory, which is the checkout."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    cache: Path = Path("cache")
    runs: Path = Path("runs")
    dataset: Dataset = Field(discriminator="kind")
    workers: Workers = Field(default_factory=lambda: Workers(count=2))
    tables: dict[str, Table]
    pair_teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Networks trained on annotations while the cache is filled, each a section like ``student``."""
    student: dict[str, Any] | None = None

    def splits(self) -> tuple[Literal["train", "test"], ...]:
        """("train",) for a folder without annotations, ("train", "test") for everything else."""
        if isinstance(self.dataset, FolderDataset) and self.dataset.annotations is None:
            return ("train",)
        return ("train", "test")


class _OnceLoader(yaml.SafeLoader):
    """YAML in which no mapping may have a key twice, as the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands here twice", key.start_mark
                    )
                seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(text: str) -> Any:
    """YAML as :func:`yaml.safe_load` reads it, without keys that stand twice in one mapping (YAMLError)."""
    return yaml.load(text, _OnceLoader)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` strings, values in YAML, as given to ``--set``.

    Raises:
        UserError: one line with the file, the key path, what was given and what is allowed.
    """
    try:
        document = read_yaml(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")] or [""], n=1)
        raise UserError(f"{path}: no such configuration" + (f"; did you mean {near[0]}?" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected keys such as name, dataset, tables; got {type(document).__name__}")
    for override in overrides:
        apply_override(document, override)
    return validate(Config, document, str(path))


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set ``a.b.c=value`` inside a nested document; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected key.path=value, for example student.seed=1")
    node = document
    for key in keys[:-1]:
        below = node.get(key, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {override}: {key} is a value, not a section")
        node[key] = dict(below)  # YAML's anchors make one section of several
        node = node[key]
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from None


def validate(model: type[Any], document: Any, where: str) -> Any:
    """``model.model_validate`` with errors turned into one line: key path, what was given, what is allowed."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise UserError(explain(error, document, f"{where}: ", model)) from None


def explain(error: ValidationError, document: Any, where: str, model: type[Any] | None = None) -> str:
    """One line for one problem of a pydantic error, an unknown key if there is one: a misspelt key, which gets its nearest
    valid neighbour, may be why another is missing.

    Args:
        where: what stands before the key: the file and, if the document is a section of it, the section with its dot.
    """
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    problem = next((each for each in error.errors() if each["type"] in unknown), error.errors()[0])
    location = [str(part) for part in problem["loc"]]
    location = [part for i, part in enumerate(location) if not (i and location[i - 1] == "dataset" and part in KINDS)]
    key = ".".join(location) or "(top level)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] in unknown:
        valid = sorted(_siblings(model, problem["loc"]))
        near = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}" if valid else "remove it"
        return f"{where}{key}: unknown key; {hint}{more}"
    if problem["type"] == "missing":
        return f"{where}{key}: missing; it has no default{more}"
    said = MESSAGES.get(problem["type"], problem["msg"])
    return f"{where}{key}: {said}; got {problem['input']!r}{more}"


MESSAGES = {
    "sequence_str": "Input should be a list",
    "path_type": "Input should be a path",
}
"""Where pydantic's own words are those of a programmer."""


KINDS = {
    "pico": PicoDataset,
    "hico-det": HicoDetDataset,
    "v-coco": VCocoDataset,
    "swig-hoi": SwigHoiDataset,
    "folder": FolderDataset,
}


def _siblings(model: type[Any] | None, location: tuple[int | str, ...]) -> set[str]:
    """The valid keys beside the key at ``location``."""
    for part in location[:-1]:
        if part in KINDS:
            model = KINDS[str(part)]
            continue
        fields = getattr(model, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
        model = annotation if isinstance(annotation, type) else None
    return set(getattr(model, "model_fields", {}))
