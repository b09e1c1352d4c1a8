"""The pages of a folder of photographs: small images, what the teachers say of each, and the boxes and pairs that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hoi_distill.stages.evaluate.pages.gallery import GalleryItem
from hoi_distill.stages.evaluate.pages.images import data_uri, draw_boxes, draw_pairs, load_image, numbered
from hoi_distill.stages.evaluate.pages.report import TableRead, environment, write_page

LONGEST, QUALITY = 320, 75
"""Pixels of an image's longer side, about as wide as it is shown, and its JPEG quality."""


@dataclass(frozen=True)
class FolderPage:
    """One of the pages of a folder.

    Attributes:
        name: of the configuration.
        about: a sentence: which images, which teachers.
        items: the images of this page.
        failed: of the whole folder: images without an answer, and why. The first page shows them.
        tables: the tables that were read. The first page shows them.
        number: of this page, from 1.
        pages: the file name of every page.
        total: images on all pages; None: those of this one.
        teachers: (tables, what their teacher was trained on) of the teachers that are quoted.
    """

    name: str
    about: str
    items: Sequence[GalleryItem]
    failed: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[TableRead] = ()
    number: int = 1
    pages: Sequence[str] = ()
    total: int | None = None
    teachers: Sequence[tuple[str, str]] = ()


def page_file(path: Path, number: int) -> Path:
    """The file of a page: ``page.html``, ``page-2.html``, ``page-3.html`` ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def write_folder_page(path: Path, data: FolderPage) -> None:
    """Write one of the pages of a folder of photographs."""
    page = environment().get_template("folder.html.j2").render(
        data=data, gallery=[_card(item, number) for number, item in enumerate(data.items)]
    )  # fmt: skip
    write_page(path, page)


def _card(item: GalleryItem, number: int) -> dict[str, Any]:
    """An item with its drawings: of its pairs, of its boxes; of neither where it has none."""
    image = load_image(item.image, item.frame)
    uri, lines, drawings = data_uri(image, LONGEST, QUALITY, lossless=0), numbered(item.annotated), []
    if lines:
        drawn = draw_pairs(uri, image.size, lines, f"{item.title} with its annotated pairs", name=f"p{number}")
        drawings.append(("Annotated pairs", drawn))
    if item.boxes:
        shown = f"#p{number}" if drawings else uri
        drawings.append((
            "Detected boxes, the best",
            draw_boxes(shown, image.size, item.boxes, f"{item.title} with its detected boxes"),
        ))  # fmt: skip
    return {"item": item, "uri": uri, "lines": lines, "drawings": drawings}
