"""``compare`` and ``evidence``: what records say of two arms, and no figure where there is no record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from hoi_distill.pipeline import evidence
from hoi_distill.pipeline.comparison import compare
from hoi_distill.pipeline.evidence import load_evidence, write_evidence
from hoi_distill.stages.evaluate.metrics.outcomes import RESAMPLES, Outcomes
from hoi_distill.storage.errors import UserError


def outcomes(metric: float, sd: float = 1.0, test: str = "pico") -> Outcomes:
    drawn = metric + sd * np.random.default_rng(0).normal(size=RESAMPLES)
    return Outcomes(
        test, 1000, {"full": "c", "rare": "r"}, {"full": metric, "rare": metric}, {"full": drawn, "rare": drawn}
    )


def record(path: Path, metric: float, **changes: object) -> Path:
    """A record of a student whose classes all have this average precision."""
    figures = {"full": metric, "rare": metric, "non_rare": metric}
    made = {
        "arm": "a", "seed": 0, "declaration": "d", "default": figures, "known_object": figures,
        "classes": {"training_pairs": [0, 3], "pairs": [4, 5], "ap": [metric, metric]},
        "outcomes": outcomes(metric).as_json(), **changes,
    }  # fmt: skip
    path.write_text(json.dumps(made))
    return path


def test_two_records_are_compared_draw_by_draw(tmp_path):
    found = compare(str(record(tmp_path / "a.json", 82.0)), str(record(tmp_path / "b.json", 80.0)))
    assert found.as_json()["differences"]["full"]["value"] == pytest.approx(2.0)
    assert found.as_json()["differences"]["full"]["differs"] is True, "the draws move both alike"
    assert "full             82.00   80.00   +2.0 (+2.0 to +2.0) differs" in str(found)
    assert "1 against 1 trainings" in str(found)
    assert "not another training" in str(found)


def test_a_pattern_names_the_trainings_of_an_arm(tmp_path):
    for seed, (ours, theirs) in enumerate([(82.0, 80.0), (84.0, 79.0), (83.0, 81.0)]):
        record(tmp_path / f"ours-{seed}.json", ours)
        record(tmp_path / f"theirs-{seed}.json", theirs)
    found = compare(f"{tmp_path}/ours-*.json", f"{tmp_path}/theirs-*.json")
    _, full = found.differences["full"]
    assert full.value == pytest.approx(3.0)
    assert full.trainings == (3, 3)
    assert full.low < 1.0 < 3.0 < 5.0 < full.high, "seeds that differ by two make it wide"


def test_a_link_to_a_training_is_no_second_training(tmp_path):
    record(tmp_path / "ours-0.json", 82.0)
    (tmp_path / "ours-latest.json").symlink_to("ours-0.json")
    found = compare(f"{tmp_path}/ours-*.json", str(record(tmp_path / "theirs.json", 80.0)))
    assert found.differences["full"][1].trainings == (1, 1)


def test_other_test_images_are_refused(tmp_path):
    ours = record(tmp_path / "a.json", 82.0)
    theirs = record(tmp_path / "b.json", 80.0, outcomes=outcomes(80.0, test="crowd").as_json())
    with pytest.raises(UserError, match=r"a\.json and .*b\.json: evaluated on other test images"):
        compare(str(ours), str(theirs))


@pytest.mark.parametrize("there", [False, True], ids=["not there", "an empty folder"])
def test_what_is_no_run_and_no_record_is_refused_by_name(tmp_path, there):
    path = tmp_path / "run"
    if there:
        path.mkdir()
    with pytest.raises(UserError, match=r"run.*(not there; name a run's folder|missing or damaged)"):
        compare(str(path), str(record(tmp_path / "a.json", 80.0)))


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    arms = {"plain": {"text": "x"}, "better": {"text": "y"}, "new": {"text": "z"}}
    matrix = {"name": "m", "setup": "nowhere.yaml", "records": str(tmp_path / "records"), "arms": arms}
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    told = {"world": "small", "matrix": str(tmp_path / "matrix.yaml"), "less": "plain", "groups": ["full"]}
    document = {
        "name": "Evidence",
        "table": str(tmp_path / "evidence.md"),
        "papers": [
            {
                "name": "P",
                "claims": [
                    {"text": "It helps.", "source": "table 1", "figure": "+3", "measured": [{**told, "arm": "better"}]},
                    {
                        "text": "It harms.",
                        "source": "table 2",
                        "expects": "less",
                        "measured": [{**told, "arm": "better"}],
                    },
                    {"text": "News.", "source": "table 3", "measured": [{**told, "arm": "new"}], "open": "much."},
                ],
            }
        ],
    }
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_claim_is_set_beside_what_the_records_say(claims, tmp_path, monkeypatch):
    kept = {"plain": [80.0, 80.2, 80.1], "better": [84.0, 84.3, 84.1], "new": []}
    monkeypatch.setattr(evidence, "_outcomes", lambda path, arm: [outcomes(metric) for metric in kept[arm]])
    page = write_evidence(claims).read_text()
    assert "| It helps. | table 1: +3 | small | *better* less *plain*; 3 trainings | full | +4.0 (" in page
    rows = {row.split(" | ")[0]: row for row in page.splitlines()}
    assert rows["| It helps."].endswith("| **as claimed** |")
    assert rows["| It harms."].endswith("| **the contrary** |")
    assert rows["| News."].endswith(f"| – | no record yet: `hoi-distill experiments {tmp_path / 'matrix.yaml'}` |")
    assert "* News: much." in page


def test_one_training_is_no_evidence_for_a_claim(claims, monkeypatch):
    kept = {"plain": [80.0], "better": [84.0], "new": []}
    monkeypatch.setattr(evidence, "_outcomes", lambda path, arm: [outcomes(metric) for metric in kept[arm]])
    page = write_evidence(claims).read_text()
    assert "+4.0 (+4.0 to +4.0) | not judged: one training |" in page
    assert "as claimed** |" not in page


def test_a_claim_about_an_arm_that_is_not_there_is_refused(claims):
    claims.write_text(claims.read_text().replace("arm: new", "arm: knew"))
    with pytest.raises(
        UserError, match=r"papers\.0\.claims\.2\.measured\.arm: .*matrix\.yaml has no arm 'knew'; did you mean new"
    ):
        load_evidence(claims)


def test_the_shipped_claims_are_about_arms_that_are_there():
    papers = load_evidence(Path("configs/evidence.yaml")).papers
    assert {"LINK", "VLM-HOI", "CL-HOI"} <= {paper.name for paper in papers}
