"""The workspace of a configuration: its dataset is read, its stages are built, its cache is open."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hoi_distill.pipeline.config.schema import Config, CrowdDataset, Dataset, PicoDataset, load_config
from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.graph.nodes import Node, build_graph
from hoi_distill.pipeline.inputs import Source, image_source, images_place, load_dataset, text_source
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.quantities import size
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.errors import UserError

IMAGE_BYTES = {"pico": 14_000, "crowd": 48_000}
"""Bytes of a drawn image and of what is written about it, by the dataset's kind: du -sb of each default world, by the number of
its images."""


@dataclass(frozen=True)
class Workspace:
    """Everything that planning, running and training start from.

    Attributes:
        path: the configuration's file.
        config: what the file says, with the overrides.
        dataset: the annotations of each split.
        vocabulary: the dataset's.
        cache: the cache, opened.
        nodes: the tables and their stages, upstream first.
        sources: the rows: ``{"images": ..., "texts": ...}``.
        overrides: what ``--set`` was given.
        limit: how many images of each split a trial run takes. None: all.
    """

    path: Path
    config: Config
    dataset: Mapping[str, Annotations]
    vocabulary: Vocabulary
    cache: Cache
    nodes: dict[str, Node]
    sources: dict[str, Source]
    overrides: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def images(self) -> Source:
        """The rows of the dataset's images."""
        return self.sources["images"]

    @property
    def annotated(self) -> bool:
        """Whether a student can be trained and tested here. A folder without annotations has nothing to train on."""
        return "test" in self.config.splits()

    def as_student(self, pair_teacher: str) -> Workspace:
        """The workspace in which the section of a pair teacher stands in the place of the student's."""
        section = self.config.pair_teachers[pair_teacher]
        return replace(self, config=self.config.model_copy(update={"student": section}))

    def image_names(self) -> dict[int, list[str]]:
        """The dataset's names of each row of the images. Images of equal bytes are one row."""
        names: dict[int, list[str]] = {}
        for split, rows in self.images.splits.items():
            for row, name in zip(rows.tolist(), self.dataset[split].image_id, strict=True):
                names.setdefault(row, []).append(str(name))
        return names

    def mending_command(self) -> str:
        """What a user types to fill the cache."""
        tables = [f"--set {shlex.quote(o)}" for o in self.overrides if not o.startswith("student.")]
        limit = [] if self.limit is None else [f"--limit {self.limit}"]
        return " ".join(["hoi-distill run", str(self.path), *tables, *limit])


def prepare(path: Path, overrides: Sequence[str] = (), *, limit: int | None = None, rehash: bool = False) -> Workspace:
    """Read the configuration and the dataset and build the stages. Computes nothing.

    Raises:
        UserError: anything wrong with the configuration, the annotations, a checkpoint or the cache's folder.
    """
    config = load_config(path, overrides)
    memory = functools.cache(lambda: Cache.open(config.cache).memory)  # one, which lists what is listed once
    try:
        announce_drawing(config.dataset)
        dataset = load_dataset(config.dataset, limit, memory)
    except UserError as error:
        raise UserError(f"{path}: dataset: {error}") from None
    vocabulary = next((a.vocabulary for a in dataset.values() if a.vocabulary is not None), None)
    if vocabulary is None:
        raise UserError(f"{path}: dataset: has no vocabulary")
    if not any(len(annotations.path) for annotations in dataset.values()):
        raise UserError(f"{path}: dataset.root: no images in {config.dataset.root}")
    cache = Cache.open(config.cache)
    digests = functools.partial(memory().digests, rehash=rehash)
    context = StageContext(vocabulary, dataset, digests, memory().derived)
    with working("reading the checkpoints"):
        nodes = build_graph(config, context, path)
    with working(f"naming the images of {images_place(config.dataset)} by their bytes"):
        try:
            named, images = image_source(dataset, memory(), rehash, getattr(config.dataset, "lenient", False))
        except UserError as error:
            raise UserError(f"{path}: dataset: {error}") from None
    if any(named[split].width is not dataset[split].width for split in named):  # only the bytes told the images' sizes
        nodes = build_graph(config, StageContext(vocabulary, named, digests, memory().derived), path)
    sources = {"images": images, "texts": text_source(vocabulary.prompts())}
    return Workspace(path, config, named, vocabulary, cache, nodes, sources, tuple(overrides), limit)


def announce_drawing(dataset: Dataset) -> None:
    """Say that a world will be drawn. The first command that needs it draws it, even a plan."""
    if isinstance(dataset, PicoDataset):
        from hoi_distill.stages.data.pico.world import KIND, is_written
    elif isinstance(dataset, CrowdDataset):
        from hoi_distill.stages.data.crowd.world import KIND, is_written
    else:
        return
    if not is_written(dataset.root, dataset.seed, dataset.train, dataset.test):
        number = dataset.train + dataset.test
        about = f"{number:,} images, about {size(number * IMAGE_BYTES[dataset.kind])}"
        print(f"Drawing the {KIND} into {dataset.root} first: {about}.", file=sys.stderr)
