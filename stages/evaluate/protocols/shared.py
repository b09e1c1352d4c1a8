"""What the protocols share: the format of a file, its reader, and tied detections."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import parquet_parts, read_detections
from hoi_distill.stages.evaluate.protocols.types import LABELS, EvaluationRequest, Setting
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary


def detections_format(request: EvaluationRequest) -> str:
    """The requested format; with "auto" the format that the file looks like.

    QPIC's and V-COCO's files are JSON (QPIC's own file is a JSON string that holds JSON). Pocket's are .mat files. A folder
    is pocket's unless Parquet files lie in it.
    """
    if request.format != "auto":
        return request.format
    path = request.detections
    if path.is_dir():
        return "parquet" if parquet_parts(path) else "pocket"
    if path.suffix == ".mat":
        return "pocket"
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    except OSError:
        return "parquet"  # whose reader says what is wrong
    if start in (b"[", b"{", b'"'):
        return "v-coco" if request.dataset == "v-coco" else "qpic"
    return "parquet"


def refuse_format(request: EvaluationRequest, form: str) -> UserError:
    """The error for a format that the dataset does not have."""
    return UserError(f"{request.detections}: {request.dataset} has no detections in the format {form}; use --format")


def read_triplets(request: EvaluationRequest, split: Annotations, every_row_classed: bool = True) -> HoiDetections:
    """Read detections of a split's images in our Parquet format."""
    return read_detections(
        request.detections, split.image_id, vocabulary_of(split), every_row_classed=every_row_classed
    )


def vocabulary_of(annotations: Annotations) -> Vocabulary:
    """The classes of a split.

    Raises:
        UserError: it has none.
    """
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: images without annotated classes cannot be evaluated")
    return annotations.vocabulary


Ties = Mapping[str, Mapping[str, int]]
"""By setting and set of classes: detections of equal class and score, true and false positives among them."""


def ties_of(settings: Mapping[str, Setting]) -> Ties:
    """The ties of every setting that has a ranking."""
    return {
        key: setting.ranking.ties({name: setting.sets[name] for name in setting.means})
        for key, setting in settings.items()
        if setting.ranking is not None
    }


def ties_note(ties: Ties, settings: Mapping[str, Setting], rule: str) -> list[str]:
    """A line about the ties that may move a metric, if there are any.

    Args:
        ties: counts from :func:`ties_of`.
        settings: for their titles.
        rule: how equal scores rank here.
    """
    said = [
        f"{settings[key].title} "
        + ", ".join(f"{LABELS.get(name, name)} {count:,}" for name, count in sets.items() if count)
        for key, sets in ties.items()
        if any(sets.values())
    ]
    if not said:
        return []
    return [
        f"Tied detections, of a class and a score, some of them right and some wrong: {'; '.join(said)}. Published code sorts "
        f"equals as it comes, and another order may move the figure; here {rule}."
    ]
