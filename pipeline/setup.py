"""A configuration made ready: its dataset read, its stages built, its cache open."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, load_config
from pipeline.graph import Context, Node, build_graph
from pipeline.progress import working
from pipeline.sources import Source, image_source, load_dataset, text_source
from storage.cache import Cache
from storage.errors import UserError

if TYPE_CHECKING:
    from stages.data.records import Annotations
    from stages.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Setup:
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


def prepare(path: Path, overrides: Sequence[str] = (), *, limit: int | None = None, rehash: bool = False) -> Setup:
    """Read the configuration and the dataset and build the stages. Computes nothing.

    Raises:
        UserError: anything wrong with the configuration, the annotations, a checkpoint or the cache's folder.
    """
    config = load_config(path, overrides)
    try:
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
    context = Context(vocabulary, vocabulary.prompts(), dataset, digests, cache.memory.derived)
    with working("reading weights and pictures"):
        nodes = build_graph(config, context, path)
        sources = {
            "images": image_source(dataset, cache.memory, rehash),
            "texts": text_source(vocabulary.prompts()),
        }
    return Setup(path, config, dataset, vocabulary, cache, nodes, sources, tuple(overrides), limit)


def is_folder(setup: Setup) -> bool:
    """Whether there is nothing to train on: a folder without annotations."""
    return "test" not in setup.config.splits()
