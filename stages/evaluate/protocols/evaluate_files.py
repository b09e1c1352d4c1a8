"""``hoi-distill evaluate``: from files to figures, each benchmark by its own protocol behind one function.

:func:`evaluate_files` gives a :class:`Judged`, whatever the benchmark: the record that ``--json`` prints, and what the
tables, the page and the exports are made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hoi_distill.stages.evaluate.protocols.types import DATASETS, FORMATS, Judged, Request
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    pass


def default_folder(request: Request) -> Path:
    """Where an evaluation is written by default: beside the detections, by the name of a convention other than the official.

    Raises:
        UserError: an unknown convention or switch.
    """
    from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL, convention

    used = convention(request.convention, request.switches) if request.dataset in ("hico-det", "folder") else OFFICIAL
    name = "evaluation" if used.name == OFFICIAL.name else f"evaluation-{used.name}"
    found = request.detections
    return found.with_name(f"{found.stem}-{name}") if found.name else found / name  # a folder such as . has none


def evaluate_files(request: Request) -> Judged:
    """Read, check and evaluate.

    Raises:
        UserError: an unknown dataset, format or convention, an option of another dataset, or a bad file; one line.
    """
    if request.dataset not in DATASETS:
        raise UserError(f"--dataset {request.dataset}: there are {', '.join(DATASETS)}")
    if request.format not in FORMATS:
        raise UserError(f"--format {request.format}: there are {', '.join(FORMATS)}")
    if request.dataset not in ("hico-det", "folder"):
        for option in ("image_labels", "zero_shot", "labelled", "switches", "frame"):
            if getattr(request, option):
                name = {"switches": "switch"}.get(option, option).replace("_", "-")
                raise UserError(f"--{name} belongs to hico-det, not to {request.dataset}")
        if request.convention != "official":
            raise UserError(f"--convention {request.convention}: {request.dataset} has its official one only")
    if request.dataset in ("hico-det", "folder"):
        from hoi_distill.stages.evaluate.protocols.hico_det import judge_hico_det

        return judge_hico_det(request)
    if request.dataset == "v-coco":
        from hoi_distill.stages.evaluate.protocols.v_coco import judge_v_coco

        return judge_v_coco(request)
    from hoi_distill.stages.evaluate.protocols.swig_hoi import judge_swig_hoi

    return judge_swig_hoi(request)
