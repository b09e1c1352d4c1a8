"""``hoi-distill pair-report``: whether a teacher's answers about pairs know which pair it is."""

from __future__ import annotations

import json
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Json, Overrides
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.reports.pair_quality import PairReport

CHANCE = 0.6
"""Below this localisation AUC the marks say nearly nothing."""


@in_every_folder("config", names_of_configuration)
def pair_report(
    config: ConfigFile,
    overrides: Overrides = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="So many random images of the training split; all that are filled by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare answers about human-object pairs with the annotations, on the images that are filled so far.

    Fill a thousand images first (run --limit 1000), look at the localisation AUC, then pay for the rest.
    """
    from hoi_distill.pipeline.reports import pair_quality
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.workspace import prepare
    from hoi_distill.stages.teacher.pair_questions import AsksAboutPairs

    workspace = prepare(config, overrides or ())
    plans = plan_all(workspace)
    tables = [name for name in workspace.config.tables if isinstance(plans[name].node.stage, AsksAboutPairs)]
    if not tables:
        raise UserError(f"{config}: no table of answers about pairs; add one of stage pair_answers under tables")
    if "train" not in workspace.dataset or not len(workspace.dataset["train"].hoi):
        raise UserError(f"{config}: the training split has no annotations to compare with")
    found: dict[str, Any] = {}
    read = {}
    for name in tables:
        records = pair_quality.annotated_records(workspace, plans[name], sample)
        answers = pair_quality.read_pair_answers(workspace, plans, name, records)
        stage = plans[name].node.stage
        assert isinstance(stage, AsksAboutPairs)
        found[name] = pair_quality.pair_report(answers, len(records), stage.columns, stage.form)
        read[name] = answers, (stage.columns, stage.inputs[0], records.tolist())
    alike = {
        f"{one} and {other}": pair_quality.agreement(read[one][0], read[other][0])
        for one, other in combinations(tables, 2)
        if read[one][1] == read[other][1]
    }
    if as_json:
        print(json.dumps({**found, **({"agreement": alike} if alike else {})}, indent=1))
        return
    for name, report in found.items():
        show(name, report)
    for names, each in alike.items():
        print(
            f"{names}: log-odds correlate by {_shown(each['correlation'])}, {_shown(each['same_side'])} on the same side"
        )


def show(name: str, report: PairReport) -> None:
    """Print one table's report for people, with a warning where the answers do not tell pairs apart."""
    print(f"{name}: {report['answers']:,} answers about {report['pairs']:,} pairs of {report['images']:,} images")
    lines = (
        (
            "localisation AUC",
            report["localisation"],
            f"{report['comparisons']:,} comparisons; 0.5: as if asked about the image",
        ),
        ("AUC by verb", report["verb_area"], "mean over verbs"),
        ("annotated", report["positives"], "answers about a pair that is annotated with the verb"),
        ("missed", report["missed"], "share of the annotated pairs that no asked pair matches"),
        ("said", report["said"], "mean probability that the answer is yes or no at all"),
        ("yes", report["yes"], "share of answers that are rather yes"),
        ("several", report["several"], "share of pairs with two or more of them"),
        ("calibration error", report["error"], "of the teacher's own probabilities"),
        ("  by verb", report["calibrated"], "calibrated on other images"),
    )
    for label, value, says in lines:
        print(f"  {label:<18}{_shown(value):>10}  {says}")
    if report["spared"] is not None:
        print(f"  {'spared, audited':<18}{report['spared']:>10,}  cells; share of yes: {_shown(report['spared_yes'])}")
    if report["weak"]:
        print("  lowest AUC: " + ", ".join(f"{verb} {value:.2f}" for verb, value in report["weak"].items()))
    if report["localisation"] is not None and report["localisation"] < CHANCE:
        print(
            f"WARNING: localisation AUC {report['localisation']:.2f} is below {CHANCE}: the answers hardly know which pair is "
            "meant; try other marks or another teacher before filling the rest"
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
