"""Two sides, each of one or several trained students: does one differ from the other, and by how much?"""

from __future__ import annotations

import functools
import glob
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic
from typing_extensions import override

from hoi_distill.pipeline.config.schema import Dataset
from hoi_distill.pipeline.inputs import load_dataset
from hoi_distill.pipeline.records import Place, read_json, read_record, record_of, run_of
from hoi_distill.pipeline.reports.arms import group_title
from hoi_distill.stages.evaluate.metrics.differences import Difference
from hoi_distill.stages.evaluate.pages.report import PAIR_SETS, ZERO_SHOT_SETS, Arm, Run, Spread, differences_of
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Two sides and their differences, in points of mAP, HICO-DET's default setting.

    Attributes:
        ours: one side.
        theirs: the other.
        differences: ours less theirs by set of classes: (title, difference).
    """

    ours: Arm
    theirs: Arm
    differences: dict[str, tuple[str, Difference]]

    def as_json(self) -> dict[str, Any]:
        """For machines: by set of classes the difference, its bounds and whether the two differ."""
        return {
            "ours": self.ours.text,
            "theirs": self.theirs.text,
            "differences": {
                key: {**asdict(found), "differs": found.differs} for key, (_, found) in self.differences.items()
            },
        }

    @override
    def __str__(self) -> str:
        lines = [f"{'mAP (%)':<14}{'ours':>8}{'theirs':>8}   difference (95 % interval)"]
        for key, (title, found) in self.differences.items():
            means = (_mean(arm, key) for arm in (self.ours, self.theirs))
            name = group_title(key) if key in dict(PAIR_SETS) else title.lower()
            lines.append(f"{name:<14}" + "".join(f"{mean:>8.2f}" for mean in means) + f"   {found}")
        ours, theirs = (len(arm.runs) for arm in (self.ours, self.theirs))
        says = (
            "other test images and another training"
            if min(ours, theirs) > 1
            else "other test images, not another training,"
        )
        return "\n".join([*lines, f"{ours} against {theirs} trainings. The intervals say what {says} would change."])


def _mean(arm: Arm, key: str) -> float:
    setting = "pair_means" if key in dict(PAIR_SETS) else "zero_shot" if key in dict(ZERO_SHOT_SETS) else "default"
    return Spread.of(arm, setting, key).mean


def compare(ours: str, theirs: str) -> Comparison:
    """Compare two sides that were evaluated on the same test images.

    Args:
        ours: a run's folder, a record, or a pattern of these (``runs/a/*``): several trainings of one arm.
        theirs: the same of the other side.

    Raises:
        UserError: nothing is there, something is no run or record, or the two are of other test images.
    """
    one, other = Arm("ours", ours, runs_of(ours), "theirs"), Arm("theirs", theirs, runs_of(theirs))
    if len({each.test for arm in (one, other) for each in arm.outcomes()}) > 1:
        raise UserError(
            f"{ours} and {theirs}: evaluated on other test images or annotations, so nothing is paired; compare runs of one "
            "test set"
        )
    sets, rows = differences_of([one, other])
    found = zip(sets, rows[0][1], strict=True)
    return Comparison(one, other, {key: (title, value) for (key, title), value in found if value is not None})


def runs_of(pattern: str) -> list[Run]:
    """The trainings that a path or a pattern names, each once, also where a link (``latest``) names it again.

    Raises:
        UserError: there are none, or one is no run and no record.
    """
    named = {Path(path).resolve(): Path(path) for path in sorted(glob.glob(pattern))}
    return [_run(path) for path in named.values() or (Path(pattern),)]


def _run(path: Path) -> Run:
    if path.is_dir():
        return run_of(record_of(path, Place(path, "", path.name, _seed(path), ""), _test_of(path)), str(path))
    record = read_record(path)
    if record is None:
        raise UserError(f"{path}: not there; name a run's folder (runs/pico/latest) or the record of a training")
    return run_of(record, str(path))


def _seed(run_dir: Path) -> int:
    return int(read_json(run_dir / "student.json")["student"].get("seed", 0))


def _test_of(run_dir: Path) -> Any:
    """The annotated test images of the dataset that a run's ``student.json`` names."""
    section = read_json(run_dir / "student.json")["dataset"]
    try:
        return _loaded(canonical_json(section))
    except UserError as error:
        raise UserError(f"{run_dir / 'student.json'}: dataset: {error}") from None


@functools.cache
def _loaded(section: bytes) -> Any:
    """The test split of a dataset's section (JSON), read once for all trainings that are compared."""
    dataset: Any = pydantic.TypeAdapter(Dataset).validate_python(json.loads(section))
    return load_dataset(dataset)["test"]
