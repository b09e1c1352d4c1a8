"""Records: a matrix goes on where its runs and its cache are gone, and no record stands for another training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.evidence import write_evidence
from hoi_distill.pipeline.experiments import load_matrix, run_matrix
from hoi_distill.pipeline.records import Place, file_name, read_recorded
from hoi_distill.pipeline.training.declaration import declaration
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from tests.fixtures.pico_run import ROOT


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms and two seeds on 20 images, from tables that take a second to fill."""
    monkeypatch.chdir(ROOT)
    teacher = "stages/teacher/pico/itm"
    setup = {
        "name": "try",
        "cache": str(tmp_path / "cache"),
        "runs": str(tmp_path / "runs"),
        "dataset": {"kind": "pico", "root": str(tmp_path / "world"), "train": 16, "test": 8},
        "workers": {"executor": "inline"},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "features": {"stage": "blip_features", "checkpoint": teacher, "columns": ["original", "flip"]},
            "text": {"stage": "text_embeddings", "checkpoint": teacher},
        },
        "student": {"labelled": 12, "steps": 3, "itm_on": "none", "width": 32, "labelled_per_step": 4},
    }
    (tmp_path / "try.yaml").write_text(yaml.safe_dump(setup))
    made = {
        "name": "small",
        "setup": str(tmp_path / "try.yaml"),
        "table": str(tmp_path / "table.md"),
        "records": str(tmp_path / "records"),
        "baseline": "plain",
        "seeds": [0, 1],
        "arms": {"plain": {"text": "As it is."}, "slow": {"text": "At a tenth.", "student": {"learning_rate": 1e-4}}},
    }
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def change(path: Path, **keys: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))


@pytest.mark.slow
def test_a_matrix_goes_on_from_its_records_where_runs_and_cache_are_gone(matrix, tmp_path, capsys):
    run_matrix(matrix)
    table, records = (tmp_path / "table.md").read_text(), sorted((tmp_path / "records").iterdir())
    assert [path.name for path in records] == [
        "plain-seed-0.json", "plain-seed-1.json", "slow-seed-0.json", "slow-seed-1.json",
    ]  # fmt: skip
    kept = json.loads(records[0].read_text())
    assert kept["threads"] >= 1
    assert kept["cpu_seconds"] > 0
    assert all(path.stat().st_size < 12_000 for path in records), "200 of them are no burden for a repository"
    assert "| slow | plain |" in table
    assert "does not" in table

    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    run_matrix(matrix)
    said = capsys.readouterr().out
    assert said.count("Taken from its record") == 4
    assert "Training" not in said
    assert (tmp_path / "table.md").read_text() == table
    page = (tmp_path / "runs/small/experiments.html").read_text()
    assert page.count("from records: 0, 1") == 2 * page.count("<th>Arm</th>") - 2 * page.count("<th>Less</th>")

    told = {"world": "try", "matrix": str(matrix), "arm": "slow", "less": "plain", "groups": ["full"]}
    claim = {"text": "It is slower.", "source": "table 1", "measured": [told]}
    papers = [{"name": "P", "claims": [claim]}]
    claims = tmp_path / "claims.yaml"
    claims.write_text(yaml.safe_dump({"name": "E", "table": str(tmp_path / "evidence.md"), "papers": papers}))
    assert "*slow* less *plain*; 2 trainings | full | " in write_evidence(claims).read_text()

    arms = yaml.safe_load(matrix.read_text())["arms"]
    change(
        matrix,
        arms={"plain": arms["plain"], "renamed": arms["slow"], "new": {"text": "Four.", "student": {"steps": 4}}},
    )
    capsys.readouterr()
    run_matrix(matrix, train=False)
    said = capsys.readouterr().out
    assert said.count("Taken from its record") == 4, "an arm that was renamed is the same training"
    assert said.count("Not trained yet") == 2
    assert (tmp_path / "table.md").read_text() == table, "a table needs every arm and seed"

    records[0].unlink()
    change(matrix, arms={"plain": arms["plain"]}, seeds=[0])
    run_matrix(matrix)
    again = json.loads(records[0].read_text())
    for key in ("cpu_seconds", "wall_seconds"):
        kept.pop(key), again.pop(key)
    assert again == kept, "the same training has the same record"
    shutil.rmtree(tmp_path / "records")
    run_matrix(matrix, train=False)
    assert json.loads(records[0].read_text())["declaration"] == kept["declaration"], (
        "a run here needs no training either"
    )


def test_a_record_is_of_one_training_wherever_it_ran(matrix, tmp_path):
    setup = tmp_path / "try.yaml"

    def same(override: str) -> bool:
        return declaration(prepare(setup, [override])) == declared

    declared = declaration(prepare(setup))
    for override in (f"cache={tmp_path / 'elsewhere'}", "name=other", "workers.executor=ray", "student.log_every=3"):
        assert same(override), override
    for override in (
        "student.seed=1",
        "student.labelled=11",
        "student.steps=4",
        "student.validation=0.2",
        "student.rare_below=5",
        "tables.features.codec=int8",
        "tables.features.checkpoint=stages/teacher/pico/long_tailed/itm",
    ):
        assert not same(override), override


def test_how_held_out_images_choose_is_part_of_a_record(matrix, tmp_path):
    setup, held_out = tmp_path / "try.yaml", "student.validation=0.2"
    ways = [[held_out], [held_out, "student.patience=2"], [held_out, "student.validate_every=1"]]
    assert len({declaration(prepare(setup, way)) for way in ways}) == len(ways)


def test_another_line_of_a_detections_file_is_another_training(matrix, tmp_path):
    setup, world = tmp_path / "try.yaml", tmp_path / "world"
    files = [f"{world}/detections_{split}2015.json" for split in ("train", "test")]
    document = yaml.safe_load(setup.read_text())
    document["tables"]["detections"] = {"stage": "detections_file", "path": files}
    setup.write_text(yaml.safe_dump(document))
    before = declaration(prepare(setup))
    found = json.loads(Path(files[0]).read_text())
    found[0]["score"] /= 2
    Path(files[0]).write_text(json.dumps(found))
    assert declaration(prepare(setup)) != before, "it decides cells, and stands in no key"


def test_what_is_no_record_is_refused_by_name(tmp_path):
    place = Place(tmp_path, "m", "A1, plain", 0, "abc")
    assert read_recorded(place) is None
    assert place.path.name == "a1-plain-seed-0.json"
    place.path.write_text('{"declaration": "abc"}')
    with pytest.raises(UserError, match=r"a1-plain-seed-0\.json: not a record of a training; remove it"):
        read_recorded(place)
    assert file_name("+ ITM, unlabelled, on final probabilities") == "itm-unlabelled-on-final-probabilities"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"baseline": "plane"}, r"baseline: there is no arm 'plane'; did you mean plain\?"),
        (
            {"arms": {"a": {"text": "x", "against": "b"}}, "baseline": None},
            r"arms\.a\.against: there is no arm 'b'; .*a",
        ),
        (
            {"arms": {"plain": {"text": "x"}, "Plain!": {"text": "x"}}},
            r"arms\.plain: its record has the name of that of 'Plain!'; rename it",
        ),
    ],
)
def test_a_mistake_in_what_is_compared_or_recorded(matrix, keys, said):
    change(matrix, **keys)
    with pytest.raises(UserError, match=said):
        load_matrix(matrix)


def test_a_matrix_of_which_nothing_is_there_says_what_trains_it(matrix):
    with pytest.raises(UserError, match=r"nothing of it is trained or recorded yet; run: hoi-distill experiments"):
        run_matrix(matrix, train=False)
