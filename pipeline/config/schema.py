"""The configuration: one YAML file a setup, checked to the last key before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from hoi_distill.pipeline.config.documents import Section, apply_override, read_document, validate
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import SCHEMES, Place, place_at
from hoi_distill.storage.files.uri import ADDRESSES, image_place


def _cache_root(given: Any, as_path: ValidatorFunctionWrapHandler) -> Place:
    return place_at(given) if isinstance(given, str) and given.startswith(SCHEMES) else as_path(given)


def _images_root(given: Any, as_path: ValidatorFunctionWrapHandler) -> Place:
    return image_place(given) if isinstance(given, str) and given.startswith(ADDRESSES) else as_path(given)


def _runs_root(given: Any, as_path: ValidatorFunctionWrapHandler) -> Path:
    return _on_disk(
        given, as_path, "an object store cannot hold runs; write a path (the cache and images may lie in one)"
    )


def _annotations_root(given: Any, as_path: ValidatorFunctionWrapHandler) -> Path:
    return _on_disk(
        given, as_path, "annotations are read from a disk; write a path here, and the address in dataset.images"
    )


def _on_disk(given: Any, as_path: ValidatorFunctionWrapHandler, refusal: str) -> Path:
    if isinstance(given, str) and given.startswith(ADDRESSES):
        raise ValueError(refusal)
    path: Path = as_path(given)
    return path


if TYPE_CHECKING:
    CacheRoot = Place
    ImagesRoot = Place
    RunsRoot = Path
    AnnotationsRoot = Path
else:
    CacheRoot = Annotated[Path, WrapValidator(_cache_root)]
    """A path, or the address of an object store."""
    RunsRoot = Annotated[Path, WrapValidator(_runs_root)]
    ImagesRoot = Annotated[Path, WrapValidator(_images_root)]
    """A path or an address, of a folder or of tar files."""
    AnnotationsRoot = Annotated[Path, WrapValidator(_annotations_root)]


class PicoDataset(Section):
    """The built-in pico world: rendered on first use into ``root`` in HICO-DET's own layout, then read like HICO-DET."""

    kind: Literal["pico"]
    root: Path
    seed: int = Field(0, ge=0)
    train: int = Field(4000, ge=1)
    test: int = Field(1000, ge=1)


class CrowdDataset(Section):
    """The built-in crowd (docs/crowd.md): drawn on first use into ``root`` as the pico world is, with twins and texts."""

    kind: Literal["crowd"]
    root: Path
    seed: int = Field(0, ge=0)
    train: int = Field(2000, ge=1)
    test: int = Field(1000, ge=1)


class HicoDetDataset(Section):
    """HICO-DET in any of its three forms: ``anno_bbox.mat`` or a pair of JSON files, ``images/train2015``, ``images/test2015``.

    root: the folder or one of the files. image_labels: ``anno.mat``, where it does not lie beside them. images: where
    ``train2015`` and ``test2015`` lie, if not there (docs/cluster.md).
    """

    kind: Literal["hico-det"]
    root: AnnotationsRoot
    lenient: bool = False
    image_labels: Path | None = None
    images: ImagesRoot | None = None


class VCocoDataset(Section):
    """V-COCO: the folder of its official files and COCO's images. Trains on ``trainval``.

    combinations: which objects an action can be done with: what is annotated in ``trainval``, ``all``, or a vocabulary file.
    images: where ``train2014`` and ``val2014`` lie, if not in the folder.
    """

    kind: Literal["v-coco"]
    root: AnnotationsRoot
    lenient: bool = False
    images: ImagesRoot | None = None
    combinations: Literal["trainval", "all"] | Path = "trainval"


class SwigHoiDataset(Section):
    """SWiG-HOI: the folder of its JSON files and images. Trains on ``trainval``. images: where ``images_512`` lies, if not
    there."""

    kind: Literal["swig-hoi"]
    root: AnnotationsRoot
    lenient: bool = False
    images: ImagesRoot | None = None


class FolderDataset(Section):
    """A plain folder of images: a path, an address, or tar files (docs/cluster.md). annotations: its JSON file
    (docs/formats.md), where images are labelled."""

    kind: Literal["folder"]
    root: ImagesRoot
    vocabulary: Path | None = None
    annotations: Path | None = None
    lenient: bool = False


Dataset = PicoDataset | CrowdDataset | HicoDetDataset | VCocoDataset | SwigHoiDataset | FolderDataset


class TableSection(Section):
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
    allow_cpu: bool = False
    """Compute on CPUs where a GPU is asked for, by ``device`` or by a table's ``gpus``, and none is there."""
    hang_after: float = Field(default=1800, gt=0)
    """Seconds: a Ray worker that computes no batch and loads no model in them is replaced."""
    start_within: float = Field(default=100, gt=0)
    """Seconds in which the first Ray worker has to start; more where a cluster first fetches machines."""

    def limits(self) -> dict[str, float]:
        """The time limits of Ray's workers, as keyword arguments."""
        return {"hang_after": self.hang_after, "start_within": self.start_within}


class Config(Section):
    """One setup. Relative paths are relative to the working directory, which
    :mod:`hoi_distill.pipeline.config.whereabouts` chooses."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    cache: CacheRoot = Path("cache")
    runs: RunsRoot = Path("runs")
    dataset: Dataset = Field(discriminator="kind")
    workers: Workers = Field(default_factory=lambda: Workers(count=2))
    tables: dict[str, TableSection]
    pair_teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Networks trained on annotations while the cache is filled, each a section like ``student``."""
    student: dict[str, Any] | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where a student's training is logged. TensorBoard's files always lie in the run's folder."""

    def splits(self) -> tuple[Literal["train", "test"], ...]:
        """("train",) for a folder without annotations, ("train", "test") for everything else."""
        if isinstance(self.dataset, FolderDataset) and self.dataset.annotations is None:
            return ("train",)
        return ("train", "test")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` strings, values in YAML, as given to ``--set``.

    Raises:
        UserError: one line with the file, the key path, what was given and what is allowed.
    """
    document = read_document(path, "configuration", "name, dataset, tables")
    if "arms" in document and "setup" in document:
        raise UserError(f"{path}: a matrix of experiments, not a configuration; run: hoi-distill experiments {path}")
    for override in overrides:
        apply_override(document, override)
    checked: Config = validate(Config, document, f"{path}: ")
    return checked
