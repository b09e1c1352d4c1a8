"""A GPU that is asked for and is not there ends a run in one line, unless CPUs are allowed."""

from __future__ import annotations

import sys

import pytest
import torch
import yaml

from hoi_distill.pipeline.cli import main
from hoi_distill.pipeline.filling.run import GpuAsked, choose_executor, fill_cache, gpu_asked
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.stage import Resources
from hoi_distill.storage.errors import UserError
from hoi_distill.workers.executors import ray as ray_executor
from tests.fixtures.toy_stages import TOYS, Album, Signs

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def album(tmp_path, monkeypatch) -> Album:
    """The table of signs reserves a GPU."""
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)
    monkeypatch.setattr(Signs, "resources", Resources(gpus=0.5))
    return Album(tmp_path)


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["hoi-distill", "run", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_table_that_reserves_a_gpu_is_not_computed_on_a_cpu_unasked(album, monkeypatch, capsys):
    assert run(monkeypatch, album.path) != 0
    assert (
        "tables.signs.gpus: a GPU is asked for, and workers.device is cpu; write gpus: 0, "
        "or allow CPUs: workers.allow_cpu: true (of run: --allow-cpu)" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"tables\.signs\.gpus"):  # what train --fill does
        fill_cache(album.workspace())
    assert not any(each.counts["filled"] for each in plan_all(album.workspace()).values())  # nothing was begun
    assert run(monkeypatch, album.path, "--allow-cpu") == 0
    assert all(each.complete() for each in plan_all(album.workspace()).values())


def test_the_configuration_may_allow_cpus_and_a_filled_table_asks_for_nothing(album):
    album.config["workers"]["allow_cpu"] = True
    album.write()
    fill_cache(album.workspace())
    album.config["workers"]["allow_cpu"] = False
    workspace = prepare(album.write())
    assert gpu_asked(workspace.config, plan_all(workspace)) == GpuAsked()
    fill_cache(workspace)


@NO_GPU
def test_a_device_that_is_not_there_is_an_error_or_the_cpu_with_a_warning(caplog):
    said = r"^workers\.device: cuda: torch cannot use it here .*, or allow CPUs: workers\.allow_cpu: true"
    with pytest.raises(UserError, match=said), choose_executor("inline", "cuda", 1):
        pass
    with choose_executor("inline", "cuda", 1, gpu=GpuAsked("itm", allow_cpu=True)) as execute:
        assert execute.keywords == {"device": "cpu"}
    assert "computing on the CPU" in caplog.text


@pytest.mark.parametrize(("device", "table"), [("cuda", None), ("cpu", "itm")])
def test_rays_cluster_without_a_gpu_is_refused_alike(device, table, monkeypatch):
    """The cluster is stood in for: starting one takes longer than what is asked here."""

    class Cluster:
        def __init__(self, workers: int) -> None:
            self.execute = workers

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def gpus(self) -> float:
            return 0.0

    monkeypatch.setattr(ray_executor, "RayExecutor", Cluster)
    place = "workers.device" if table is None else "tables.itm.gpus"
    said = rf"^{place}: .*Ray finds no GPU here.*--allow-cpu"
    with pytest.raises(UserError, match=said), choose_executor("ray", device, 1, gpu=GpuAsked(table)):
        pass
    with choose_executor("ray", device, 1, gpu=GpuAsked(table, allow_cpu=True)) as execute:
        assert execute == 1


def test_allowing_cpus_changes_no_fingerprint(album):
    before = {name: each.as_json()["fingerprint"] for name, each in plan_all(album.workspace()).items()}
    document = yaml.safe_load(album.path.read_text())
    document["workers"]["allow_cpu"] = True
    album.path.write_text(yaml.safe_dump(document))
    after = {name: each.as_json()["fingerprint"] for name, each in plan_all(album.workspace()).items()}
    assert before == after
