"""Phase-1 teachers: trained while the cache is filled, named by what they learnt from, and rerun by just what changes them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from hoi_distill.pipeline.experiments import run_matrix
from hoi_distill.pipeline.filling.garbage import collect, register, registered
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.annotations import labels_of
from hoi_distill.pipeline.training.binding import plan_all, trained_folders
from hoi_distill.pipeline.training.checks import check_student
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.lock import alone
from tests.fixtures.object_stores import upload, use

PICO = Path(__file__).parents[3] / "stages/teacher/pico"
TAUGHT = {"taught_pairs", "taught_maps"}
NETWORK = {
    "width": 32, "pair_width": 32, "heads": 4, "ffn": 32, "pair_ffn": 32, "encoder_layers": 1, "decoder_layers": 1, "roi_size": 1,
}  # fmt: skip
CLIP = {"stage": "vision_features", "checkpoint": str(PICO / "clip"), "columns": ["original", "flip"]}


def taught(teacher: str) -> dict:
    return {
        kind: {"stage": f"link_{kind}", "teacher": teacher, "columns": ["original", "flip"], "splits": ["train"]}
        for kind in ("pairs", "maps")
    }


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A line of 16 + 4 images, its cache filled and its student trained."""
    root = tmp_path_factory.mktemp("pair_teachers")
    write_world(root / "world", seed=0, train=16, test=4)
    learner = {"method": "link", "labelled": 12, "network": NETWORK, "steps": 4, "labelled_per_step": 4}
    tables = taught("phase_1")
    document = {
        "name": "line",
        "cache": str(root / "cache"),
        "runs": str(root / "runs"),
        "dataset": {"kind": "pico", "root": str(root / "world"), "seed": 0, "train": 16, "test": 4},
        "workers": {"executor": "inline", "count": 1},
        "tables": {
            "taught_pairs": tables["pairs"],  # before what it reads: the order in the file does not count
            "taught_maps": tables["maps"],
            "detections": {"stage": "detector", "checkpoint": str(PICO / "detector")},
            "features": {
                "stage": "blip_features",
                "checkpoint": str(PICO / "itm"),
                "columns": ["original", "flip"],
            },
            "text": {"stage": "text_embeddings", "checkpoint": str(PICO / "itm")},
        },
        "pair_teachers": {"phase_1": learner},
        "student": {
            **learner,
            "kd": {"pairs": ["taught_pairs"], "maps": ["taught_maps"], "logit": 1, "query": 1, "map": 1},
        },
    }
    path = root / "line.yaml"
    path.write_text(yaml.safe_dump(document))
    run(prepare(path))
    train_student(prepare(path))
    return path


@pytest.fixture
def line(filled, tmp_path) -> Path:
    """A copy of it to change."""
    shutil.copytree(filled.parent, tmp_path / "line", symlinks=True)
    document = yaml.safe_load(filled.read_text())
    document |= {"cache": str(tmp_path / "line/cache"), "runs": str(tmp_path / "line/runs")}
    document["dataset"]["root"] = str(tmp_path / "line/world")
    path = tmp_path / "line/line.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(workspace: Workspace, stop: threading.Event | None = None):
    with choose_executor("inline", "cpu", 1) as execute:
        return fill(workspace, execute, stop or threading.Event())


def to_compute(workspace: Workspace) -> set[str]:
    """Tables with cells that are, or may be, still to come."""
    return {name for name, table_plan in plan_all(workspace).items() if not table_plan.complete()}


def trained(workspace: Workspace) -> list[Path]:
    return sorted((workspace.cache.root / "trained").glob("link-*"))


def test_until_its_tables_are_filled_a_teacher_is_unknown_then_one_run_trains_it_and_fills_all(line):
    workspace = prepare(line, [f"cache={line.parent / 'other'}"])
    plans = plan_all(workspace)
    for name in TAUGHT:
        made = plans[name].as_json()
        assert (made["unknown"], made["empty"], made["fingerprint"]) == (32, 0, None)
        assert made["reasons"][0]["reason"] == "unknown until detections, features"
    with pytest.raises(UserError, match="table detections: no cell is filled; fill it with: hoi-distill run"):
        resolve(workspace, plans)
    summary = run(workspace)
    assert {name: summary.cells[name] for name in TAUGHT} == dict.fromkeys(TAUGHT, 32)
    (teacher,) = trained(workspace)
    assert json.loads((teacher / "done.json").read_text())["fingerprint"].startswith(teacher.name.removeprefix("link-"))
    assert (teacher / "checkpoint/model.safetensors").exists()
    assert to_compute(workspace) == set()
    assert run(workspace).cells == {}


@pytest.mark.parametrize(
    ("change", "tables", "student"),
    [
        ([], set(), False),
        (["student.kd.logit=2"], set(), True),
        (["student.kd.map=0", "student.kd.maps=[]"], set(), True),
        (["student.seed=1"], set(), True),
        (["student.score_threshold=0.3"], set(), True),
        (["pair_teachers.phase_1.seed=1"], TAUGHT, True),
        (["pair_teachers.phase_1.score_threshold=0.3"], TAUGHT, True),
        (["pair_teachers.phase_1.labelled=11"], TAUGHT, True),
        (["pair_teachers.phase_1.network.width=64"], TAUGHT, True),
        (["pair_teachers.phase_1.log_every=3"], set(), False),
        (["tables.taught_maps.codec=bf16"], {"taught_maps"}, True),
        (["tables.detections.dtype=bfloat16"], {"detections", *TAUGHT}, True),
        ([f"tables.clip={json.dumps(CLIP)}"], {"clip"}, False),
        (
            [
                f"tables.clip={json.dumps(CLIP)}",
                "pair_teachers.second={method: link, labelled: 12, tables: {features: clip}}",
                f"tables.second_pairs={json.dumps(taught('second')['pairs'])}",
                "student.kd={pairs: [taught_pairs, second_pairs], logit: 1}",
            ],
            {"clip", "second_pairs"},
            True,
        ),
    ],
    ids=str,
)
def test_a_change_reruns_exactly_what_lies_below_it(line, change, tables, student):
    before = prepare(line)
    was = resolve(before, plan_all(before)).fingerprint
    workspace = prepare(line, change)
    assert to_compute(workspace) == tables
    if not tables:
        assert (resolve(workspace, plan_all(workspace)).fingerprint != was) == student


def test_a_changed_image_or_annotation_reruns_what_was_learnt_from_it(line):
    labelled, later = (sorted((line.parent / "world").rglob("*train2015_*.jpg"))[i] for i in (0, 15))
    later.write_bytes(labelled.read_bytes())  # beyond the 12 labelled ones: no new bytes, and nothing learnt from it
    assert to_compute(prepare(line)) == set()
    labelled.write_bytes(sorted((line.parent / "world").rglob("*test2015_*.jpg"))[0].read_bytes())
    assert to_compute(prepare(line)) == TAUGHT  # the teacher has learnt from that image


def test_the_plan_says_why_and_that_a_teacher_is_trained_first(line):
    plans = plan_all(prepare(line, ["pair_teachers.phase_1.seed=1"]))
    (reason,) = plans["taught_pairs"].reasons
    assert "fingerprint differs from link_pairs-" in reason.text
    assert reason.text.endswith("; pair teacher phase_1 is trained first")
    assert reason.cells == 32


def test_an_interrupted_teacher_goes_on_where_it_was(line):
    workspace = prepare(line, ["pair_teachers.phase_1.seed=1"])
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        run(workspace, stop)
    new = max(trained(workspace), key=lambda folder: folder.stat().st_mtime)
    assert not (new / "done.json").exists()
    assert (new / "state/latest.safetensors").exists()
    assert to_compute(workspace) == TAUGHT
    run(workspace)
    assert (new / "done.json").exists()
    assert [json.loads(each)["step"] for each in (new / "metrics.jsonl").read_text().splitlines()] == [4]
    assert to_compute(workspace) == set()


def test_of_two_runs_at_once_one_trains_and_both_end_with_everything(line, capsys):
    workspace = prepare(line, ["pair_teachers.phase_1.seed=1", "pair_teachers.phase_1.log_every=1"])
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, workspace) for _ in range(2)]
        assert [set(each.result().cells) for each in both] == [TAUGHT, TAUGHT]
    new = max(trained(workspace), key=lambda folder: folder.stat().st_mtime)
    assert [json.loads(each)["step"] for each in (new / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    said = capsys.readouterr().out
    assert said.count("Training pair teacher phase_1") == 1
    assert said.count("Another run is training pair teacher phase_1") == 1
    assert to_compute(workspace) == set()


def test_a_run_that_waits_for_anothers_training_can_be_interrupted(line):
    workspace = prepare(line, ["pair_teachers.phase_1.seed=1"])
    stop, waiting = threading.Event(), threading.Event()
    (table_plan, *_) = (plan for plan in plan_all(workspace).values() if plan.node.name in TAUGHT)
    lock = workspace.cache.root / "leases" / f"{table_plan.node.stage.teacher.checkpoint.parent.name}.lock"
    with alone(lock, stop, waiting.set), ThreadPoolExecutor(1) as pool:
        other = pool.submit(run, workspace, stop)
        time.sleep(0.1)
        stop.set()
        with pytest.raises(KeyboardInterrupt):
            other.result()
    assert len(trained(workspace)) == 1


def test_a_teacher_that_is_gone_is_not_missed_where_all_it_said_is_there(line):
    workspace = prepare(line)
    shutil.rmtree(workspace.cache.root / "trained")
    assert to_compute(workspace) == set()


@pytest.mark.slow
def test_another_machine_gets_a_teacher_from_the_object_store_and_trains_none(
    line, bucket_of, endpoint, tmp_path, monkeypatch, capsys
):
    upload(line.parent / "cache/tables", f"{bucket_of}/tables")
    given = [f"cache={bucket_of}", "pair_teachers.phase_1.seed=1"]
    first = prepare(line, given)
    assert set(run(first).cells) == TAUGHT
    assert capsys.readouterr().out.count("Training pair teacher phase_1") == 1
    table = plan_all(first)["taught_pairs"].table
    assert table is not None
    answers = table.store.names(table.dir / "shards")
    table.store.delete_folder(table.dir)

    use(monkeypatch, endpoint, tmp_path / "second machine")
    second = prepare(line, given)
    assert "is trained first" not in plan_all(second)["taught_pairs"].reasons[0].text
    assert run(second).cells == {"taught_pairs": 32}
    assert table.store.names(table.dir / "shards") == answers  # names hold checksums
    train_student(prepare(line, given))
    assert "Training pair teacher" not in capsys.readouterr().out
    assert not (second.cache.local / "trained").exists()

    (folder,) = trained_folders(plan_all(second))
    outcome = collect(second.cache, True, 0, [])  # nothing is registered
    assert folder.name in {each["table"] for each in outcome["unwanted"]}
    assert not table.store.is_used(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["tables.taught_pairs.teacher=phase1"], r"tables\.taught_pairs\.teacher: no pair teacher 'phase1'; there are phase_1"),
        (["pair_teachers.phase_1={method: vlm_hoi, labelled: 9}"], r"1\.method: 'vlm_hoi'; a pair teacher is of method link"),
        (["pair_teachers.phase_1.networks={}"], r"pair_teachers\.phase_1\.networks: unknown key; did you mean network\?"),
        (
            ["pair_teachers.phase_1.kd={pairs: [taught_pairs], logit: 1}"],
            r"pair_teachers\.phase_1\.kd: a pair teacher learns from annotations alone",
        ),
        (["pair_teachers.phase_1.tables.features=clip"], r"pair_teachers\.phase_1\.tables\.features: there is no table 'clip'"),
        (["pair_teachers.phase_1.tables.features=text"], r"tables\.features: 'text' holds no feature maps"),
        (["pair_teachers.phase_1.steps=0"], r"line\.yaml: pair_teachers\.phase_1\.steps: expected at least 1; got 0"),
        (
            ["pair_teachers.phase_1.network={width: 20, pair_width: 20, heads: 5}"],
            r"line\.yaml: pair_teachers\.phase_1\.network\.heads: 5; .* channels, choose a divisor",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_in_its_section_is_one_line_before_any_work(filled, change, message):
    with pytest.raises(UserError, match=message) as refused:
        prepare(filled, change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["student.kd.pairs=[nope]"], r"student\.kd\.pairs: 'nope' is no table of stage link_pairs; there are taught_pairs"),
        (["student.kd.pairs=[features]"], r"student\.kd\.pairs: 'features' is no table of stage link_pairs"),
        (["student.kd.maps=[taught_pairs]"], r"student\.kd\.maps: 'taught_pairs' is no table of stage link_maps"),
        (["student.kd.temperature=0"], r"line\.yaml: student\.kd\.temperature: expected more than 0; got 0"),
        (["student.views=[flip, original]"], r"student\.views: flip, original; the first is evaluated"),
        (["student.zero_shot=RF-UC"], r"pair_teachers\.phase_1\.zero_shot: None, but its student has RF-UC"),
        (["pair_teachers.phase_1.zero_shot=RF-UC"], r"pair_teachers\.phase_1\.zero_shot: RF-UC, but its student has None"),
        (["student.score_threshold=0.3"], r"pair_teachers\.phase_1\.score_threshold: 0.2, but its student has 0.3; write"),
        (["pair_teachers.phase_1.max_instances=9"], r"pair_teachers\.phase_1\.max_instances: 9, but its student has 15"),
        (["student.min_instances=2"], r"pair_teachers\.phase_1\.min_instances: 3, but its student has 2"),
        (["student.nms_iou=0.6"], r"pair_teachers\.phase_1\.nms_iou: 0.5, but its student has 0.6"),
        (["tables.others={stage: ground_truth_boxes}", "student.tables.detections=others"],
         r"pair_teachers\.phase_1\.tables\.detections: detections, but its student has others"),
        (["student.any_object=true"], r"pair_teachers\.phase_1\.any_object: False, but its student has True"),
        (["pair_teachers.phase_1.labelled=17"], r"pair_teachers\.phase_1\.labelled: 17 of only 16 training images"),
    ],
    ids=str,
)  # fmt: skip
def test_a_student_that_does_not_go_with_its_teachers_is_one_line_before_any_work(filled, change, message):
    with pytest.raises(UserError, match=message) as refused:
        check_student(prepare(filled, change))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labelled=99", r"line\.yaml: pair_teachers\.phase_1\.labelled: 99 of only 16 training images"),
        ("labelled=0", r"line\.yaml: pair_teachers\.phase_1\.labelled: 0; link learns from annotated images"),
        ("views=[nope]", r"line\.yaml: tables\.features\.columns: the student needs 'nope'"),
    ],
)
def test_what_only_filled_tables_tell_of_a_teachers_section_names_that_section(line, change, message):
    with pytest.raises(UserError, match=message):
        plan_all(prepare(line, [f"pair_teachers.phase_1.{change}"]))


def test_a_teacher_in_training_or_interrupted_is_wanted_from_its_first_run_on(line):
    workspace = prepare(line, ["pair_teachers.phase_1.seed=1", "pair_teachers.phase_1.steps=2"])
    stop, noted = threading.Event(), []

    def note(plans):
        register(workspace, plans)
        noted.extend(trained_folders(plans))

    stop.set()
    with choose_executor("inline", "cpu", 1) as execute, pytest.raises(KeyboardInterrupt):
        fill(workspace, execute, stop, note)
    (new,) = set(noted)
    assert (new / "state/latest.safetensors").exists()
    wanted = {each["table"] for each in collect(workspace.cache, False, 0, [])["unwanted"]}
    assert new.name not in wanted
    (workspace.cache.root / "registered" / next(iter(registered(workspace.cache)[0]))).with_suffix(".json").unlink()
    with workspace.cache.lease("reader", [new]):
        outcome = collect(workspace.cache, True, 0, [])
    assert new.name in {each["table"] for each in outcome["in_use"]}
    assert new.exists()


def test_collecting_garbage_keeps_the_teachers_that_a_setup_wants(line):
    workspace = prepare(line)
    register(workspace, plan_all(workspace))
    other = prepare(line, ["pair_teachers.phase_1.seed=1"])
    run(other)
    wanted, unwanted = sorted(trained(workspace), key=lambda folder: folder.stat().st_mtime)
    found = {each["table"] for each in collect(workspace.cache, False, 0, [])["unwanted"]}
    assert unwanted.name in found
    assert wanted.name not in found
    assert {name.split("-")[0] for name in found - {unwanted.name}} == {"link_pairs", "link_maps"}
    collect(workspace.cache, True, 0, [])
    assert trained(workspace) == [wanted]
    fresh = prepare(line, ["pair_teachers.phase_1.seed=1"])
    assert to_compute(fresh) == TAUGHT


def test_the_tables_and_teachers_of_a_matrix_are_no_garbage(line):
    arms = {"as it is": {"text": "a"}, "other teacher": {"text": "b", "pair_teachers": {"phase_1": {"seed": 1}}}}
    matrix = line.parent / "matrix.yaml"
    matrix.write_text(yaml.safe_dump({"name": "two", "setup": str(line), "seeds": [0], "arms": arms}))
    run_matrix(matrix)
    workspace = prepare(line)
    assert len(trained(workspace)) == 2
    assert collect(workspace.cache, False, 0, [])["unwanted"] == []


def test_a_trial_run_takes_as_many_labelled_images_as_there_are(filled):
    workspace = prepare(filled, limit=6)
    check_student(workspace)
    assert plan_all(workspace)["taught_pairs"].counts["wanted"] == 12
    assert workspace.mending_command().endswith("line.yaml --limit 6")
    method, _, images = student_section(workspace)
    labels = labels_of(workspace, images, method, Needs({}, {}), np.arange(6))
    assert labels.labelled.all()
