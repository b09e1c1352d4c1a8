"""A configuration made ready: its dataset read, its stages built, its cache open."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hoi_distill.pipeline.config.schema import Config, Dataset, PicoDataset, load_config
from hoi_distill.pipeline.console.progress import size, working
from hoi_distill.pipeline.graph.nodes import Node, build_graph
from hoi_distill.pipeline.inputs import Source, image_source, load_dataset, text_source
from hoi_distill.stages.keys import StageContext
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary


PICTURE_BYTES = 14_000
"""Of a drawn picture and what is written of it: du -sb of the default world, by 5,000."""


@dataclass(frozen=True)
class Workspace:
    """Everything that planning, running and training start from."""

    path: Path
    config: Config
    dataset: Mapping[str, Annotations]
    vocabulary: Vocabulary
    cache: Cache
    nodes: dict[str, Node]
    sources: dict[str, Source]
    overrides: tuple[str, ...] = ()
    limit: int | None = None

    def mending_command(self) -> str:
        """What a user types to fill the cache of this setup."""
        tables = [f"--set {shlex.quote(o)}" for o in self.overrides if not o.startswith("student.")]
        limit = [] if self.limit is None else [f"--limit {self.limit}"]
        return " ".join(["hoi-distill run", str(self.path), *tables, *limit])


def prepare(path: Path, overrides: Sequence[str] = (), *, limit: int | None = None, rehash: bool = False) -> Workspace:
    """Read the configuration and the dataset and build the stages. Computes nothing.

    Raises:
        UserError: anything wrong with the configuration, the annotations, a checkpoint or the cache's folder.
    """
    config = load_config(path, overrides)
    try:
        announce_drawing(config.dataset)
        dataset = load_dataset(config.dataset, limit)
    except UserError as error:
        raise UserError(f"{path}: dataset: {error}") from None
    vocabulary = next((a.vocabulary for a in dataset.values() if a.vocabulary is not None), None)
    if vocabulary is None:
        raise UserError(f"{path}: dataset: has no vocabulary")
    if not any(len(annotations.path) for annotations in dataset.values()):
        raise UserError(f"{path}: dataset.root: no pictures in {config.dataset.root}")
    cache = Cache.open(config.cache)
    digests = functools.partial(cache.memory.digests, rehash=rehash)
    context = StageContext(vocabulary, dataset, digests, cache.memory.derived)
    with working("reading the checkpoints"):
        nodes = build_graph(config, context, path)
    with working(f"naming the pictures of {config.dataset.root} by their bytes"):
        try:
            dataset, images = image_source(dataset, cache.memory, rehash, getattr(config.dataset, "lenient", False))
        except UserError as error:
            raise UserError(f"{path}: dataset: {error}") from None
    sources = {"images": images, "texts": text_source(vocabulary.prompts())}
    return Workspace(path, config, dataset, vocabulary, cache, nodes, sources, tuple(overrides), limit)


def announce_drawing(dataset: Dataset) -> None:
    """Say that the pico world will be drawn, before it is: whatever asks for it first, a plan too, writes it."""
    if not isinstance(dataset, PicoDataset):
        return
    from hoi_distill.stages.data.pico.world import is_written

    if not is_written(dataset.root, dataset.seed, dataset.train, dataset.test):
        number = dataset.train + dataset.test
        about = f"{number:,} pictures, about {size(number * PICTURE_BYTES)}"
        print(f"Drawing the pico world into {dataset.root} first: {about}.", file=sys.stderr)


def is_folder(workspace: Workspace) -> bool:
    """Whether there is nothing to train on: a folder without annotations."""
    return "test" not in workspace.config.splits()
