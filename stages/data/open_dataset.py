"""One door to every dataset: its annotations by name, from wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, Unpack

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.elsewhere import ImagesElsewhere
from hoi_distill.storage.errors import UserError

DATASETS = ("hico-det", "v-coco", "swig-hoi", "folder")


class ReadOptions(TypedDict, total=False):
    """How a dataset is read, whichever it is.

    Attributes:
        limit: Read only the first so many images.
        lenient: Drop bad entries, count them and warn, instead of refusing them.
        images: Whether the images must be there; they must, by default. Or where they are, if not beside the annotations.
    """

    limit: int | None
    lenient: bool
    images: bool | ImagesElsewhere


def open_annotations(
    dataset: str,
    path: str | Path,
    split: str | None,
    *,
    image_labels: str | Path | None = None,
    combinations: str | Path = "trainval",
    **options: Unpack[ReadOptions],
) -> Annotations:
    """Annotations of one split of "hico-det", "v-coco", "swig-hoi" or a plain "folder".

    Args:
        dataset: One of :data:`DATASETS`.
        path: The dataset's folder, or its annotation file; the form is found by itself. Of a plain folder it is the JSON
            file of :mod:`hoi_distill.stages.data.folder`, or the folder with that as ``annotations.json``.
        split: None is the test split, of V-COCO and SWiG-HOI the one in a file's name, of a plain folder all if none is
            test.
        image_labels: HICO-DET's ``anno.mat``, where it does not lie beside the annotations.
        combinations: V-COCO's, see :func:`hoi_distill.stages.data.v_coco.loader.v_coco_vocabulary`.
        **options: See :class:`ReadOptions`.

    Raises:
        UserError: For an unknown dataset or split, and for whatever the loader finds wrong.
    """
    if image_labels is not None and dataset != "hico-det":
        raise UserError(f"{image_labels}: image-level labels belong to hico-det, not to {dataset}")
    if dataset == "hico-det":
        from hoi_distill.stages.data.hico_det.loader import load_hico_det

        return load_hico_det(path, split or "test", image_labels=image_labels, **options)
    if dataset == "v-coco":
        from hoi_distill.stages.data.v_coco.loader import load_v_coco

        return load_v_coco(Path(path), split, combinations=combinations, **options)
    if dataset == "swig-hoi":
        from hoi_distill.stages.data.swig_hoi import load_swig_hoi

        return load_swig_hoi(Path(path), split, **options)
    if dataset == "folder":
        from hoi_distill.stages.data.folder import load_annotated_folder

        file = Path(path) / "annotations.json" if Path(path).is_dir() else Path(path)
        return load_annotated_folder(file, split, **options)
    raise UserError(f"dataset {dataset}: there are {', '.join(DATASETS)}")
