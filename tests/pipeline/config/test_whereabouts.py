"""Commands do the same in every folder: relative paths are read where they lie, and what was typed means what it meant."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from hoi_distill.pipeline import cli
from hoi_distill.pipeline.cli.triplets import triplets
from hoi_distill.pipeline.config.whereabouts import (
    home_of,
    in_every_folder,
    names_of_checkpoint,
    names_of_configuration,
    names_of_matrix,
)
from hoi_distill.pipeline.filling.garbage import registered
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.errors import UserError


@pytest.fixture
def project(album):
    """A project: images, a folder of configurations, and every path in them relative to the project."""
    (album.root / "configs").mkdir()
    album.path = album.root / "configs" / "album.yaml"
    album.config |= {"cache": "cache", "runs": "runs"}
    album.config["dataset"]["root"] = "pictures"
    album.write()
    return album


def told(capsys) -> tuple[dict[str, int], str]:
    out, error = capsys.readouterr()
    return {table["table"]: (table["fingerprint"], table["empty"]) for table in json.loads(out)["tables"]}, error


def test_a_command_does_the_same_in_every_folder(project, tmp_path_factory, monkeypatch, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(project.root)
    cli.run(Path("configs/album.yaml"), executor="inline")
    capsys.readouterr()
    cli.plan(Path("configs/album.yaml"), as_json=True)
    here, said = told(capsys)
    assert said == ""
    assert [empty for _, empty in here.values()] == [0, 0]
    for folder in (project.root / "configs", elsewhere, project.folder):
        monkeypatch.chdir(folder)
        cli.plan(Path(os.path.relpath(project.path)), as_json=True)
        there, said = told(capsys)
        assert there == here
        assert f"are read in {project.root}; {folder} has none of them" in said
        assert Path.cwd() == folder
    cli.run(project.path, executor="inline")
    assert "Nothing to do" in capsys.readouterr().out
    assert len(registered(Cache(project.root / "cache"))[0]) == 1
    assert os.listdir(elsewhere) == []


def test_the_working_directory_comes_first_and_then_the_nearest_folder(tmp_path):
    file = tmp_path / "project" / "configs" / "mine" / "a.yaml"
    file.parent.mkdir(parents=True)
    (tmp_path / "project" / "pictures").mkdir()
    (tmp_path / "pictures").mkdir()
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert home_of(file, ["pictures"]) == tmp_path
        os.chdir(file.parent)
        assert home_of(file, ["nowhere", "pictures"]) == tmp_path / "project"
        assert home_of(file, ["tmp", "usr"]) == file.parent, "the root of the file system is nobody's home"
        assert home_of(file, ["x" * 300, "\0"]) == file.parent
    finally:
        os.chdir(before)


def test_what_was_typed_means_what_it_meant(project, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    seen = {}

    @in_every_folder("config", names_of_configuration)
    def command(config, out=None, images=(), overrides=(), limit=None):
        seen.update(cwd=Path.cwd(), config=config, out=out, images=images, limit=limit)

    command(project.path, out=Path("page.html"), images=[Path("a.jpg"), Path("/b.jpg")], limit=3)
    assert seen == {
        "cwd": project.root,
        "config": project.path,
        "out": elsewhere / "page.html",
        "images": [elsewhere / "a.jpg", Path("/b.jpg")],
        "limit": 3,
    }
    command(project.path, overrides=["dataset.root=/nowhere", "cache=nothing"])
    assert seen["cwd"] == elsewhere


def test_a_path_that_is_nowhere_is_told_with_the_folder(project, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(elsewhere := tmp_path_factory.mktemp("elsewhere"))
    project.config["dataset"]["root"] = "pictured"
    project.write()
    with pytest.raises(UserError, match=rf"pictured: no such folder.*; relative paths are read in {elsewhere}$"):
        cli.plan(project.path)
    with pytest.raises(UserError, match=rf"pictured: .*; relative paths are read in {elsewhere}$"):
        triplets(project.path)
    project.config["wrokers"] = {}
    project.write()
    with pytest.raises(UserError, match=r"did you mean workers\?$"):
        cli.plan(project.path)


def test_a_pipe_is_read_once(project, monkeypatch, capsys):
    monkeypatch.chdir(project.root)
    pipe = project.root / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(project.path.read_text()))
    writer.start()
    cli.plan(pipe, as_json=True)
    writer.join()
    assert set(told(capsys)[0]) == {"scores", "signs"}


def test_what_a_file_names(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text(
        "cache: store\ndataset: {kind: folder, root: photos, vocabulary: words.json, lenient: true}\n"
        "tables: {itm: {stage: blip_itm, checkpoint: teachers/itm}, boxes: {path: [a/b.json, c.json]}}\n"
        "student: {start: weights/a.pth}\n"
    )
    assert set(names_of_configuration(config)) == {
        "photos", "words.json", "store/tables", "teachers/itm", "a/b.json", "weights/a.pth"
    }  # fmt: skip
    assert "other" in names_of_configuration(config, ["dataset.root=other"])
    config.write_text("setup: configs/pico.yaml\n")
    assert names_of_matrix(config) == ["configs/pico.yaml"]
    for text in ("[", "5", "dataset: 5\ncache: 3\ntables: &a {b: *a}"):
        config.write_text(text)
        assert names_of_configuration(config) in ([], ["cache/tables"])
        assert names_of_matrix(config) == []
    assert names_of_checkpoint(tmp_path) == []
    (tmp_path / "config.json").write_text(json.dumps({"identities": {"detections": {"parameters": {"path": "a/b"}}}}))
    assert names_of_checkpoint(tmp_path) == ["a/b"]
