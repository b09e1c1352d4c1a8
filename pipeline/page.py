"""The page of a folder of pictures: what the teacher said, and which prompts matched best."""

from __future__ import annotations

from pathlib import Path

from pipeline.pair_teachers import plan_all
from pipeline.reporting import captions_of, matches_of, readable
from pipeline.setup import Setup
from stages.evaluate.gallery import GalleryItem
from stages.evaluate.report import FolderPage, TableRead, write_folder_page
from storage.errors import UserError


def write_page(setup: Setup, out: Path) -> None:
    """Write one self-contained HTML file with every picture of the setup's tables ``captions`` and ``itm``.

    Raises:
        UserError: nothing is filled yet.
    """
    plans = plan_all(setup)
    source = setup.sources["images"]
    by_stage = {made.node.stage.name: made for made in plans.values()}
    captions, itm = by_stage.get("captions"), by_stage.get("itm")
    rows = source.rows(setup.config.splits())
    answers, matches = captions_of(setup, captions, rows), matches_of(setup, itm, rows)
    answered = readable(setup, captions, rows) | readable(setup, itm, rows)
    if not answered.any():
        raise UserError(f"{setup.path}: the cache holds no captions or matching scores yet; {setup.mending_command()}")
    failed: dict[str, str] = {}
    for made in (captions, itm):
        if made is not None and made.table is not None:
            for (row, _), reason in made.table.failures(source.ids[made.rows], made.columns, made.inputs).items():
                failed.setdefault(source.keys[made.rows[row]], reason)
    items = [
        GalleryItem(source.keys[row], Path(source.uris[row]), captions=answers[i], matches=matches[i])
        for i, row in enumerate(rows)
        if answered[i]
    ]
    tables = [
        TableRead(name, made.table.fingerprint, made.table.record, len(made.columns))
        for name, made in plans.items()
        if made.table is not None
    ]
    teachers = {made.node.stage.provenance().get("checkpoint") for made in (captions, itm) if made is not None}
    about = (
        f"{len(items)} pictures of {setup.config.dataset.root}, as the teacher sees them "
        f"({', '.join(sorted(str(teacher) for teacher in teachers if teacher))})."
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder_page(out, FolderPage(setup.config.name, about, items, failed, tables))
    print(f"{out}: {len(items)} pictures" + (f", {len(failed)} failed" if failed else ""))
