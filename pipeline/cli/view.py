"""The command that shows a cache in a browser: ``view``."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Limit, Overrides
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration


@in_every_folder("config", names_of_configuration)
def view(
    config: ConfigFile,
    overrides: Overrides = None,
    limit: Limit = None,
    host: Annotated[
        str, typer.Option(help="The interface. Others than 127.0.0.1 are reached from outside.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8740,
) -> None:
    """Show images, annotations, every cached answer and the runs in a browser. Read only; Ctrl-C ends it."""
    from hoi_distill.pipeline.extras import refuse_missing_packages

    refuse_missing_packages(("starlette", "uvicorn"), "view")
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.viewer.library import Library
    from hoi_distill.pipeline.viewer.server import serve
    from hoi_distill.pipeline.workspace import prepare

    workspace = prepare(config, overrides or (), limit=limit)
    library = Library(workspace, plan_all(workspace))
    used = [table.table.dir for table in library.tables.values() if table.table is not None]
    with workspace.cache.lease("reader", used), contextlib.suppress(KeyboardInterrupt):
        serve(library, host, port, lambda address: print(f"{len(library.entries):,} images: {address}", flush=True))
