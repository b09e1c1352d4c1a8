"""Experiment trackers by name: what a run tells them, and that a run that goes on is the same run there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.train import refuse_unrecorded
from hoi_distill.pipeline.training import trackers
from hoi_distill.pipeline.training.trackers import flat, open_trackers, refuse_missing
from hoi_distill.storage.errors import UserError

TOLD = {"method": "link", "student": {"seed": 0, "kd": {"on": True}, "views": ("original", "flip")}}


def test_parameters_go_by_their_dotted_keys():
    assert dict(flat(TOLD)) == {
        "method": "link", "student.seed": 0, "student.kd.on": True, "student.views": "('original', 'flip')",
    }  # fmt: skip


def test_tensorboard_alone_opens_nothing(tmp_path):
    opened = open_trackers(("tensorboard",), tmp_path, "first", TOLD, identity="0a")
    opened.log({"loss": 1.0}, 1)
    opened.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"trackers: wandb is not installed here; run: pip install 'hoi-distill\[wandb\]'"
    ):
        refuse_missing(("tensorboard", "wandb"))


@pytest.mark.slow
def test_wandb_gets_parameters_losses_and_the_name(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "mine" / "0a1b"
    folder.mkdir(parents=True)
    for step in (1, 2):  # the second goes on
        opened = open_trackers(("wandb",), folder, "first", TOLD, identity="0a1b")
        assert (wandb.run.project, wandb.run.name, wandb.run.id) == ("mine", "first", "0a1b")
        assert wandb.config["student.seed"] == 0
        opened.log({"loss": 0.5, "test/mAP full": 40.0}, step)
        opened.close()
    assert len(list((folder / "wandb").glob("offline-run-*"))) >= 1


@pytest.mark.slow
def test_mlflow_gets_parameters_losses_and_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    folder = tmp_path / "mine" / "0a1b"
    folder.mkdir(parents=True)
    for step in (1, 2):
        opened = open_trackers(("mlflow",), folder, "first", TOLD, identity="0a1b")
        opened.log({"loss": 0.5, "test/mAP full": 40.0}, step)
        opened.close()
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_id == json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert run.info.run_name == "first"
    assert run.data.params["student.kd.on"] == "True"
    assert run.data.metrics["test/mAP full"] == 40.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b", "a run's name has letters"),
        ("latest", "and is not latest"),
        ("../x", "has letters"),
        ("taken", "no link to a run"),
    ],
)
def test_a_name_that_cannot_be_a_link_is_one_line(tmp_path, name, said):
    config = load_config(Path("configs/pico.yaml"), [f"runs={tmp_path}"])
    (tmp_path / "pico/taken").mkdir(parents=True)
    with pytest.raises(UserError, match=said):
        refuse_unrecorded(SimpleNamespace(path=Path("pico.yaml"), config=config), name)
