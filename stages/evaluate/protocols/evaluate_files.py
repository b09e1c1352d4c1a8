"""``hoi-distill evaluate``: evaluate files by the protocol of their benchmark."""

from __future__ import annotations

from pathlib import Path

from hoi_distill.stages.evaluate.protocols.types import DATASETS, FORMATS, EvaluationRequest, EvaluationResult
from hoi_distill.storage.errors import UserError


def default_folder(request: EvaluationRequest) -> Path:
    """The folder for an evaluation by default: beside the detections; its name ends with an unofficial convention's name.

    Raises:
        UserError: an unknown convention or switch.
    """
    from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL, convention

    used = convention(request.convention, request.switches) if request.dataset in ("hico-det", "folder") else OFFICIAL
    name = "evaluation" if used.name == OFFICIAL.name else f"evaluation-{used.name}"
    found = request.detections
    return found.with_name(f"{found.stem}-{name}") if found.name else found / name  # a folder such as . has none


def evaluate_files(request: EvaluationRequest) -> EvaluationResult:
    """Read the files, check them and evaluate.

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
        from hoi_distill.stages.evaluate.protocols.hico_det import evaluate_hico_det_files

        return evaluate_hico_det_files(request)
    if request.dataset == "v-coco":
        from hoi_distill.stages.evaluate.protocols.v_coco import evaluate_v_coco_files

        return evaluate_v_coco_files(request)
    from hoi_distill.stages.evaluate.protocols.swig_hoi import evaluate_swig_hoi_files

    return evaluate_swig_hoi_files(request)
