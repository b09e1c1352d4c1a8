"""What is wrong with a configuration is said in one line: key path, what was given, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hoi_distill.pipeline.config.documents import read_yaml
from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.experiments import load_matrix, run_matrix
from hoi_distill.pipeline.filling.run import refuse_absent
from hoi_distill.pipeline.graph.nodes import levels
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import plan_of


def refused(album, **options) -> str:
    with pytest.raises(UserError) as caught:
        prepare(album.write(), **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(album.path) in line
    return line


def put(document: dict, dotted: str, value) -> None:
    *above, last = dotted.split(".")
    for key in above:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dateset", {}, ["dateset", "did you mean dataset?"]),
        ("workers.cuont", 2, ["workers.cuont", "did you mean count?"]),
        ("dataset.roott", "x", ["dataset.roott", "did you mean root?"]),
        ("tables.scores.weigths", "b", ["tables.scores.weigths", "did you mean weights?"]),
        ("tables.scores.zzz", "b", ["tables.scores.zzz", "valid keys: batch_size, columns, log, seconds, weights"]),
        ("workers.count", "many", ["workers.count", "'many'"]),
        ("workers.count", 0, ["workers.count", "expected at least 1; got 0"]),
        ("workers.executor", "spark", ["workers.executor: expected ray or inline; got 'spark'"]),
        ("tables.scores.shard_rows", 1.5, ["tables.scores.shard_rows: expected a whole number; got 1.5"]),
        ("tables.scores.columns", 3, ["tables.scores.columns: expected a list; got 3"]),
        ("tables.scores.splits", ["training"], ["tables.scores.splits.0: expected train or test; got 'training'"]),
        ("dataset.kind", "imagenet", ["dataset.kind: unknown kind 'imagenet'; there are crowd, folder, hico-det, pico, "]),
        ("dataset.kind", "picco", ["dataset.kind: unknown kind 'picco'; did you mean pico?"]),
        ("dataset", {"root": "x"}, ["dataset.kind: missing; there are pico, crowd, hico-det, v-coco, swig-hoi, folder"]),
        ("dataset", 5, ["dataset: expected a section of keys; got 5"]),
        ("workers.executor", "rey", ["workers.executor: expected ray or inline; got 'rey' (did you mean ray?)"]),
        ("workers.count", True, ["workers.count: expected a number; got true"]),
        ("workers.count", 1.5, ["workers.count: expected a whole number; got 1.5"]),
        ("tables.scores.batch_size", True, ["tables.scores.batch_size: expected a number; got true"]),
        ("tables.scores.batch_size", float("nan"), ["tables.scores.batch_size: expected a "]),
        ("tables", None, ["tables: expected a section of keys; got nothing"]),
        ("tables.scores", ["a"], ["tables.scores: expected a section of keys; got ['a']"]),
        ("tables", {1: {"stage": "toy_scores"}}, ["tables.1: expected a text; got 1 (a text stands in quotes)"]),
        ("name", True, ["name: expected a text; got true (a text stands in quotes)"]),
        ("dataset.root", 5, ["dataset.root: expected a path; got 5"]),
        ("dataset.lenient", "perhaps", ["dataset.lenient: expected true or false; got 'perhaps'"]),
        ("student", "x" * 500, ["student: expected a section of keys; got 'xxx", "..."]),
        ("tables.scores.columns", "promts", ["columns: expected a list, or prompts, verb_prompts", "mean prompts?"]),
        ("tables.scores.columns", [False], ["tables.scores.columns.0: expected a text; got false (a text stands"]),
        ("name", "a b", ["name", "'a b'"]),
        ("tables.scores.columns", [], ["tables.scores.columns", "at least one column"]),
        ("tables.scores.columns", ["a", "a"], ["tables.scores.columns", "each once"]),
        ("tables.scores.stage", "toy_score", ["tables.scores.stage", "'toy_score'", "did you mean toy_scores?"]),
        ("tables.scores.stage", "xyzzy", ["tables.scores.stage", "there are ", "blip_captions, "]),
        ("tables.signs", {"stage": "toy_ring", "columns": ["a"], "reads": "itm"}, ["tables.signs", "'itm'", "scores"]),
        ("tables.signs", {"stage": "toy_ring", "columns": ["a"], "reads": "signs"}, ["signs -> signs is a circle"]),
        ("tables.scores", {"stage": "toy_scores"}, ["tables.scores.columns", "missing"]),
        ("tables.signs", {"stage": "blip_itm", "checkpoint": "no/such", "columns": ["a"]}, ["tables.signs.checkpoint"]),
    ],
)  # fmt: skip
def test_bad_key(album, key, value, said):
    put(album.config, key, value)
    line = refused(album)
    for words in said:
        assert words in line, line


def test_ring_of_two(album):
    album.config["tables"]["signs"]["stage"] = "toy_ring"
    album.config["tables"]["signs"]["reads"] = "back"
    album.config["tables"]["back"] = {"stage": "toy_ring", "columns": ["a"], "reads": "signs"}
    line = refused(album)
    assert "is a circle" in line
    assert "back -> signs" in line or "signs -> back" in line


def test_missing_key_and_missing_file(album, tmp_path):
    del album.config["dataset"]["root"]
    assert "dataset.root: missing" in refused(album)
    with pytest.raises(UserError, match=r"albun\.yaml: no such configuration; did you mean album\.yaml\?"):
        load_config(tmp_path / "albun.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "not YAML"),
        ("- a\n- b\n", "expected keys"),
        ("", "expected keys such as name, dataset, tables; got nothing"),
        ("\x00", "album.yaml: "),
        ("name: 2024-13-45", "not YAML: month must be in 1..12"),
        ("name: !!int x", "not YAML: invalid literal"),
        ("name: !!timestamp x", "not YAML: a value is not what its tag says"),
        ("[" * 5000, "not YAML: nested too deeply"),
        ("name: !!python/object:os.system x", "not YAML: could not determine a constructor"),
        ("name: &a [*a]", "name: expected a text"),
        ("student: &a {b: *a}\nname: x\ndataset: {kind: folder, root: x}\ntables: {a: *a}", "tables.a.stage: missing"),
        ('"\\ud800": 1', "expected a text"),
    ],
)
def test_not_a_configuration(album, text, said):
    album.path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(album.path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_config, load_matrix])
def test_a_folder_is_no_file_and_its_files_are_named(tmp_path, read):
    with pytest.raises(UserError, match=r"a folder, not a \w+; it holds no \*\.yaml$"):
        read(tmp_path)
    (tmp_path / "pico.yaml").write_text("")
    with pytest.raises(UserError, match=r"a folder, not a \w+; name one of its files: pico\.yaml$"):
        read(tmp_path)
    for name, data, said in (("/dev/zero", None, "larger than 16 MB"), ("a.npy", b"\x93NUMPY", "byte 0 is no UTF-8")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=said):
            read(tmp_path / name)


def test_every_wrong_key_is_named(album):
    album.config |= {"nme": "x", "cahce": "y", "zzz": 1, "workers": {"count": "two"}}
    assert refused(album).endswith("nme: unknown key; did you mean name?; wrong, too: workers.count, cahce, zzz")
    album.config |= {"yyy": 1, "xxx": 2}
    assert refused(album).endswith("wrong, too: workers.count, cahce, zzz and 2 more")


def test_a_matrix_is_no_setup_and_a_setup_no_matrix(album, tmp_path):
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text("name: m\nsetup: album.yaml\narms: {a: {text: x}}\n")
    assert load_matrix(matrix).seeds == (0, 1, 2)
    with pytest.raises(UserError, match=r"a matrix of experiments, not a configuration; run: hoi-distill experiments "):
        load_config(matrix)
    with pytest.raises(UserError, match=r"a configuration, not a matrix of experiments; run: hoi-distill train "):
        load_matrix(album.path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("arms: {}", "arms: expected at least 1 in it"),
        ("arms: {a: {}}", r"arms\.a\.text: missing"),
        ("arms: {a: {text: x, studnt: {}}}", r"arms\.a\.studnt: unknown key; did you mean student"),
        ("arms: {a: {text: x}}\nseeds: []", "seeds: expected at least 1 in it"),
        ("arms: {a: {text: x}}\nseeds: [fünf]", r"seeds\.0: expected a whole number; got 'fünf'"),
        ("arms: {a: {text: x}}\nseeds: 3", "seeds: expected a list; got 3"),
        ("arms: [a]", "arms: expected a section of keys"),
        ("arms: {a: {text: x}}\nname: ../../elsewhere", "not YAML: name stands here twice"),
    ],
)
def test_a_mistake_in_a_matrix(tmp_path, keys, said):
    path = tmp_path / "matrix.yaml"
    path.write_text(f"name: m\nsetup: album.yaml\n{keys}\n")
    with pytest.raises(UserError, match=said) as caught:
        load_matrix(path)
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_written_is_told_before_a_training(album, tmp_path):
    path = tmp_path / "matrix.yaml"
    path.write_text(
        f"name: m\nsetup: {tmp_path}/nowhere.yaml\narms: {{a: {{text: x}}}}\ntable: {album.path}/table.md\n"
    )
    with pytest.raises(UserError, match=r"matrix\.yaml: table: .*table\.md: cannot be written: Not a directory"):
        run_matrix(path)


def test_missing_folder_and_empty_folder(album, tmp_path):
    (tmp_path / "none").mkdir()
    for root in ("nowhere", "none"):
        album.config["dataset"]["root"] = str(tmp_path / root)
        with pytest.raises(UserError, match=root):
            prepare(album.write())


def test_an_override_changes_one_of_the_sections_that_share_an_anchor(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "name: anchors\ndataset: {kind: folder, root: images}\ntables: {}\n"
        "pair_teachers: {first: {network: &network {width: 32}}}\nstudent: {network: *network}\n"
    )
    config = load_config(path, ["student.network.width=64"])
    assert config.student == {"network": {"width": 64}}
    assert config.pair_teachers["first"] == {"network": {"width": 32}}


def test_overrides(album):
    config = load_config(album.path, ["workers.count=5", "tables.scores.weights=b", "student.seed=3"])
    assert config.workers.count == 5
    assert config.tables["scores"].parameters()["weights"] == "b"
    assert config.student == {"seed": 3}
    for wrong in ("workers", "=3", "name.x=1", "workers.count=["):
        with pytest.raises(UserError, match=r"--set") as caught:
            load_config(album.path, [wrong])
        assert "\n" not in str(caught.value)
    assert "workers.cuont" in refused_override(album, "workers.cuont=1")


def refused_override(album, override: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(album.path, [override])
    return str(caught.value)


def test_order_of_tables_in_the_file_does_not_matter(album):
    album.config["tables"] = dict(reversed(album.config["tables"].items()))
    workspace = prepare(album.write())
    assert list(workspace.nodes) == ["scores", "signs"]
    assert levels(workspace.nodes) == [["scores"], ["signs"]]


def test_a_folder_trains_no_student(album):
    album.config["student"] = {"labelled": 2}
    workspace = prepare(album.write())
    with pytest.raises(UserError, match="no annotations"):
        resolve(workspace, plan_of(workspace))


def test_student_section(tmp_path, album):
    album.config["dataset"] = {"kind": "pico", "root": str(tmp_path / "world"), "train": 3, "test": 2}
    for student, said in (
        ({"labelled": 2, "learning_rat": 1}, "student.learning_rat: unknown key; did you mean learning_rate?"),
        ({"labelled": 0}, "student.labelled"),
        ({"labelled": "fünf"}, "student.labelled: expected a whole number or annotated; got 'fünf'"),
        ({"labelled": True}, "student.labelled: expected a number; got true"),
        ({"labelled": 2, "itm_on": "all"}, "student.itm_on"),
        ({"labelled": 2, "tables": {"itn": "itm"}}, "did you mean itm?"),
        ({}, "student.labelled: missing"),
    ):
        album.config["student"] = student
        with pytest.raises(UserError) as caught:
            student_section(prepare(album.write()))
        assert said in str(caught.value)


def test_a_key_that_stands_twice_is_refused_and_merged_ones_are_not(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: x\nstudent: {labelled: 5, labelled: 6}\n")
    with pytest.raises(UserError, match=r"twice\.yaml: not YAML: labelled stands here twice .*line 2"):
        load_config(path)
    assert read_yaml("a: &base {x: 1}\nb: {<<: *base, x: 2}\n") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(UserError, match=r"workers\.device: .*cpu\|cuda"):
        load_config(Path("configs/pico.yaml"), [f"workers.device={device!r}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"^workers\.device: cuda: torch cannot use it here \(.*\); write cpu$"):
        refuse_absent("cuda")
