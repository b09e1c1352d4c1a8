"""The card of a student on a model hub: what it is, what it learned from, what it reached, what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hoi_distill.storage.errors import UserError

RESAMPLES = 1000
"""Draws of test images for the intervals."""
LIMITS = (
    "Scores rank pairs. They are no calibrated probabilities.",
    "Classes that are rare in the training images are found less often. `evaluation.json` of the run has each class.",
    "It repeats errors of its detector, its encoder and its teacher.",
    "It was evaluated on the test images named above, and on nothing else. Test it on your own before you rely on it.",
    "It must not be used to judge or to identify people.",
)
DRAWN_KINDS = ("pico", "crowd")
"""Kinds of datasets that are drawn, in HICO-DET's layout."""
DRAWN = "It was trained on drawn images. What it says of photographs means nothing."


def model_card(checkpoint: Path, record: Mapping[str, Any], repository: str, *, license_name: str, run: Path) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        checkpoint: the folder of the student's checkpoint.
        record: its ``config.json``.
        repository: ``organisation/name`` on the hub.
        license_name: the hub's key of the license.
        run: the folder of the run that trained it. Without ``student.json`` and ``evaluation.json`` the card says that there
            are no figures.
    """
    trained, evaluation = _json(run / "student.json"), _json(run / "evaluation.json")
    intervals = intervals_of(run, trained, evaluation) if evaluation else {}
    vocabulary = _json(checkpoint / "vocabulary.json")
    parts = [
        f"# {repository.split('/')[1]}",
        "A student for human-object interaction (HOI) detection, trained by hoi-distill from the cached answers of a "
        f"vision-language teacher. Method `{record.get('method')}`, {len(vocabulary.get('interactions', ()))} interactions.",
        "## Use\n\n```python\nfrom hoi_distill import HOIDetector\n\n"
        f'result = HOIDetector.from_pretrained("{repository}")("photo.jpg")\nresult.show()\n```',
        "## Data\n\n" + _data(trained),
        "## Teacher, detector, encoder\n\n" + _tables(record, trained),
        "## Figures\n\n" + _figures(evaluation, intervals),
        "## Limits\n\n" + "\n".join(f"* {line}" for line in (*_drawn(trained), *LIMITS)),
    ]
    return _front_matter(repository, license_name, evaluation) + "\n\n".join(parts) + "\n"


def _front_matter(repository: str, license_name: str, evaluation: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    full = (evaluation.get("default") or {}).get("full")
    dataset = str(evaluation.get("dataset", ""))
    results = [EvalResult("object-detection", dataset, dataset, "mAP", full, task_name="HOI detection")]
    data = ModelCardData(
        license=license_name,
        library_name="hoi-distill",
        pipeline_tag="object-detection",
        tags=["human-object-interaction", "hoi-detection", "distillation"],
        model_name=repository.split("/")[1],
        eval_results=results if full is not None else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _data(trained: Mapping[str, Any]) -> str:
    """What it was trained on."""
    counts, dataset = trained.get("pictures"), trained.get("dataset", {})
    if not counts:
        return "Unknown: it was uploaded without its run."
    return (
        f"Dataset `{dataset.get('kind')}`: {counts.get('labelled', 0):,} labelled and {counts.get('unlabelled', 0):,} "
        f"unlabelled training images, {counts.get('test', 0):,} test images."
    )


def _drawn(trained: Mapping[str, Any]) -> tuple[str, ...]:
    return (DRAWN,) if trained.get("dataset", {}).get("kind") in DRAWN_KINDS else ()


def _tables(record: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """The tables that the training read; those that prediction needs are marked."""
    identities = record.get("identities") or {}
    lines = [
        f"* `{role}`, needed to predict: stage `{identity.get('stage')}`, {_source(identity)}, fingerprint "
        f"`{str(identity.get('fingerprint'))[:16]}`"
        for role, identity in identities.items()
    ]
    lines += [
        f"* `{role}`, read in training: stage `{table['record'].get('stage')}`, fingerprint `{table['fingerprint'][:16]}`"
        for role, table in (trained.get("provenance") or {}).items()
        if role not in identities
    ]
    return "\n".join(lines) or "None: the student reads images alone, or it was uploaded without its run."


def _source(identity: Mapping[str, Any]) -> str:
    """Which checkpoint or file a table came from, without the folder that it lay in."""
    if above := identity.get("inputs"):
        return " and ".join(map(_source, above.values()))
    given = (identity.get("parameters") or {}).get("checkpoint")
    name = given.get("id") if isinstance(given, Mapping) else given
    return (
        f"checkpoint `{Path(str(name)).name if Path(str(name)).is_absolute() else name}`" if name else "boxes of a file"
    )


def _figures(evaluation: Mapping[str, Any], intervals: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """A table of mAP in percent, with intervals where they could be computed."""
    if not evaluation:
        return "None: it was uploaded without its run, or the run was not evaluated."
    sets = [name for name, value in evaluation["default"].items() if value is not None]
    lines = [
        "| mAP (%) | " + " | ".join(name.replace("_", "-") for name in sets) + " |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for key, title in (("default", "default"), ("known_object", "known object")):
        cells = []
        for name in sets:
            bounds = intervals.get(key, {}).get(name)
            value = evaluation[key].get(name)
            cells.append(
                "" if value is None else f"{value:.2f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")
            )
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    counts = evaluation.get("counts", {})
    said = (
        f"In brackets: 95 % intervals of {RESAMPLES:,} draws of the test images; they say nothing of other seeds."
        if intervals
        else "Without intervals: they could not be computed from the dataset that is at hand."
    )
    return "\n".join(lines) + (
        f"\n\n{evaluation.get('dataset')}, {evaluation.get('split')} split, {counts.get('pictures', 0):,} images, convention "
        f"{evaluation.get('convention')}. One training. {said}"
    )


def intervals_of(
    run: Path, trained: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Intervals of a run's means, ``{setting: {set of classes: (low, high)}}``; empty where its dataset is not at hand, or gives
    other means than the run had."""
    from hoi_distill.stages.evaluate.pages.evaluation_page import measure_intervals
    from hoi_distill.stages.evaluate.protocols.evaluate_files import evaluate_files
    from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest

    dataset = trained.get("dataset") or {}
    kind = "hico-det" if dataset.get("kind") in DRAWN_KINDS else dataset.get("kind")
    if kind not in ("hico-det", "folder"):
        return {}
    annotations, counts = dataset.get("annotations") or dataset.get("root"), trained.get("pictures") or {}
    request = EvaluationRequest(
        dataset=kind,
        annotations=Path(str(annotations)),
        detections=run / "detections.parquet",
        labelled=None if "labelled" not in counts else counts["labelled"] + counts.get("validation", 0),
    )
    try:
        result = evaluate_files(request)
    except UserError:
        return {}
    for setting, measured in result.settings.items():
        for name, value in (evaluation.get(setting) or {}).items():
            if abs((measured.means.get(name) or 0.0) - (value or 0.0)) > 1e-3:
                return {}
    return {
        setting: {name: (each.low, each.high) for name, each in bounds.items() if each is not None}
        for setting, bounds in measure_intervals(result, RESAMPLES, 0).items()
    }


def _json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
