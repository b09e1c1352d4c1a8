"""Wrong calls and hostile files end in one line that a user can act on, never in a traceback."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hoi_distill.pipeline.cli import main
from tests.fixtures.toy_stages import Album

BOXES = [{"image_id": "000.png", "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}]
PAIR = {"human_box": [0, 0, 8, 8], "object_box": [2, 2, 9, 9], "object": "bicycle", "verbs": ["ride"]}
LISTED = {"pictures": [{"file_name": "pictures/000.png", "split": "test", "pairs": [PAIR]}]}


def said(capsys, monkeypatch, *arguments: str | Path) -> tuple[int, str]:
    """Exit code and standard error of a call in this process; anything but SystemExit would be a traceback."""
    monkeypatch.setattr(sys, "argv", ["hoi-distill", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def refused(capsys, monkeypatch, *arguments: str | Path) -> str:
    code, error = said(capsys, monkeypatch, *arguments)
    assert code in (1, 2), error
    lines = [line for line in error.splitlines() if not line.startswith(("Relative paths of", "Drawing"))]
    assert len(lines) == 1, error
    assert lines[0].startswith("hoi-distill")
    assert "Traceback" not in error
    return lines[0]


CALLS: list[tuple[str, str]] = [
    ("plan", "missing argument"),
    ("plan nowhere.yaml", "no such configuration"),
    ("plan .", "a folder, not a configuration"),
    ("plan album.yml", "did you mean album.yaml?"),
    ("plan pictures/000.png", "not YAML"),
    ("plan /dev/null", "expected keys such as"),
    ("plan " + "x" * 300, "File name too long"),
    ("plan loop", "symbolic links"),
    ("plan album.yaml/inside", "Not a directory"),
    ("plan album.yaml --set", "requires an argument"),
    ("plan album.yaml --set tables", "expected key.path=value"),
    ("plan album.yaml --set =", "expected key.path=value"),
    ("plan album.yaml --set tables..x=1", "expected key.path=value"),
    ("plan album.yaml --set name.first=x", "name is a value, not a section"),
    ("plan album.yaml --set tables.scores.columns=[", "the value is not YAML"),
    ("plan album.yaml --set tables.scores.columns=" + "[" * 600, "nested too deeply"),
    ("plan album.yaml --set name=2024-13-45", "the value is not YAML"),
    ("plan album.yaml --set cache=album.yaml", "Not a directory"),
    ("plan album.yaml --set cache=/proc/cache", "cache /proc/cache"),
    ("plan album.yaml --set dataset.root=album.yaml", "album.yaml"),
    ("plan album.yaml --set dataset.root=nowhere", "nowhere"),
    ("plan album.yaml --set dataset.root=~nobody-of-this-name/x", "nobody-of-this-name"),
    ("plan album.yaml --set dataset=folder", "dataset: expected a section of keys"),
    ("plan album.yaml --set dataset.vocabulary=nowhere.json", "nowhere.json"),
    ("plan album.yaml --limit -1", "invalid value for '--limit'"),
    ("plan album.yaml --limit 1e3", "invalid value for '--limit'"),
    ("run album.yaml --executor spark", "there are ray and inline"),
    ("run album.yaml --workers 0", "invalid value for '--workers'"),
    ("run album.yaml --set workers.device=tpu", "workers.device"),
    ("train album.yaml", "student"),
    ("train matrix.yaml", "run: hoi-distill experiments"),
    ("experiments album.yaml", "run: hoi-distill train"),
    ("experiments nowhere.yaml", "no such matrix"),
    ("page album.yaml --out pictures", "a folder; name the file"),
    ("page album.yaml --out album.yaml/page.html", "Not a directory"),
    ("page album.yaml --out new/page.html", "no captions or matching scores yet"),
    ("verify album.yaml", "missing argument"),
    ("verify album.yaml scors", "there is no 'scors'"),
    ("verify album.yaml scores", "no filled cell to verify"),
    ("verify album.yaml scores --sample 0", "invalid value for '--sample'"),
    ("labels album.yaml", "no table of stage image_labels"),
    ("triplets album.yaml --log pictures", "a folder; name the file"),
    ("triplets album.yaml", "no table of stage triplets"),
    ("check --cache album.yaml", "no such folder"),
    ("check --cache pictures", "not a cache"),
    ("check --cache " + "x" * 300, "File name too long"),
    ("gc --cache nowhere", "no such folder"),
    ("gc --grace-days -1", "invalid value for '--grace-days'"),
    ("gc --grace-days soon", "invalid value for '--grace-days'"),
    ("teachers blip", "no such stage here"),
    ("detectors blip_itm", "hoi-distill teachers blip_itm knows it"),
    ("dataset describe", "missing option '--annotations'"),
    ("dataset describe --annotations nowhere", "nowhere"),
    ("dataset describe --annotations pictures --dataset coco", "dataset coco"),
    ("dataset describe --annotations album.yaml --dataset folder", "album.yaml"),
    ("dataset describe --annotations listed.json --dataset folder --split dev", "dev"),
    ("evaluate --annotations listed.json", "missing option '--detections'"),
    ("evaluate --annotations listed.json --detections nowhere.parquet --dataset folder", "nowhere.parquet"),
    ("evaluate --annotations listed.json --detections pictures --dataset folder", "pictures"),
    ("evaluate --annotations listed.json --detections album.yaml --dataset folder", "album.yaml"),
    ("evaluate --annotations listed.json --detections boxes.json --dataset fodler", "fodler"),
    ("evaluate --annotations listed.json --detections boxes.json --format csv --dataset folder", "csv"),
    ("evaluate --annotations listed.json --detections boxes.json --dataset folder --export all", "--export all"),
    ("predict nowhere pictures/000.png --out found", "nowhere"),
    ("predict pictures pictures/000.png --out found", "pictures"),
    ("predict ~nobody-of-this-name/x pictures/000.png --out found", "nobody-of-this-name"),
    ("predict album.yaml pictures/000.png --out found", "album.yaml"),
    ("predict pictures --out found", "missing argument"),
    ("predict pictures pictures/000.png", "missing option '--out'"),
    ("predict pictures --webcam 0 --seconds 0 --out found", "invalid value for '--seconds'"),
    ("predict pictures pictures/000.png --threshold 2 --out found", "invalid value for '--threshold'"),
    ("predict pictures pictures/000.png --device tpu --out found", "--device: tpu"),
    ("predict pictures pictures/*.webp --out found", "no file has such a name"),
    ("predict pictures gone.mp4 --out found", "gone.mp4: cannot be read"),
    ("predict pictures empty.txt --out found", "lists no names"),
    ("predict pictures clip.mp4 --detections boxes.json --out found", "--detections knows images by their names"),
    ("predict pictures pictures/000.png pictures --out found", "two images of this name"),
    ("export pictures --out found", "pictures"),
    ("export nowhere --out found", "nowhere"),
    ("export pictures", "missing option '--out'"),
    ("export pictures --format torchscript --out found", "--format torchscript: there is onnx"),
    ("export pictures --out album.yaml", "a file; name a folder"),
    ("push pictures people/student", "missing option '--license'"),
    ("push pictures student --license mit", "no name of a repository"),
    ("push pictures people/student --license mit", "config.json"),
    ("push nowhere people/student --license mit", "nowhere"),
    ("\x1b[31mplan", "no such command"),
    ("--exekutor", "no such option"),
]


@pytest.fixture
def place(album: Album, tmp_path: Path, monkeypatch) -> Path:
    """A folder with a configuration, images, a matrix, annotations and boxes; the working directory."""
    (tmp_path / "matrix.yaml").write_text("name: m\nsetup: album.yaml\narms: {a: {text: x}}\n")
    (tmp_path / "listed.json").write_text(json.dumps(LISTED))
    (tmp_path / "boxes.json").write_text(json.dumps(BOXES))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_a_wrong_call(place, capsys, monkeypatch, call, words):
    assert words in refused(capsys, monkeypatch, *call.split(" "))


DEEP = "[" * 200_000
HOSTILE: dict[str, Any] = {
    "empty": b"",
    "nul": b"\0" * 100,
    "no utf-8": b'{"images": ["\xff\xfe"]}',
    "utf-16": json.dumps(LISTED).encode("utf-16"),
    "cut": json.dumps(LISTED).encode()[:-5],
    "deep": DEEP.encode(),
    "number": b"5",
    "null": b"null",
    "huge number": b"1" * 5000,
    "nan": b"NaN",
    "list of lists": b"[[[]]]",
    "list of null": b"[null, null]",
    "surrogate": json.dumps({"pictures": [{"file_name": "\ud800.png"}]}).encode(),
    "escape codes": json.dumps([{**BOXES[0], "image_id": "\x1b[2J\x1b]0;x\x07"}]).encode(),
    "infinite box": b'[{"image_id": "000.png", "category_id": 1, "bbox": [0, 0, Infinity, 1e999], "score": 0.5}]',
    "texts for numbers": b'[{"image_id": "000.png", "category_id": "1", "bbox": ["a", 0, 1, 1], "score": "x"}]',
    "boxes of three": b'[{"image_id": "000.png", "category_id": 1, "bbox": [0, 1, 1], "score": 0.5}]',
    "box is null": b'[{"image_id": "000.png", "category_id": 1, "bbox": null, "score": 0.5}]',
    "huge category": b'[{"image_id": "000.png", "category_id": 1180591620717411303424, "bbox": [0,0,1,1], "score": 0.5}]',
    "image is a list": b'[{"image_id": ["000.png"], "category_id": 1, "bbox": [0,0,1,1], "score": 0.5}]',
    "pictures is a number": b'{"pictures": 5}',
    "pairs is a text": b'{"pictures": [{"file_name": "000.png", "pairs": "many"}]}',
    "pair is a list": b'{"pictures": [{"file_name": "000.png", "pairs": [[1, 2]]}]}',
    "name is a number": b'{"pictures": [{"file_name": 5, "pairs": []}]}',
    "name climbs out": b'{"pictures": [{"file_name": "../../../../etc/passwd", "pairs": []}]}',
    "vocabulary is a list": b'{"vocabulary": [], "pictures": []}',
    "verbs is a list": b'{"verbs": ["ride"], "interactions": ["ride bicycle"]}',
    "interactions of one word": b'{"verbs": {"ride": "riding"}, "interactions": ["ride"]}',
    "interactions is a number": b'{"verbs": {"ride": "riding"}, "interactions": 5}',
    "parquet by name": b"PAR1" + b"\0" * 50 + b"PAR1",
    "matlab by name": b"MATLAB 5.0 MAT-file" + b"\0" * 109 + b"\x0e\0\0\0\xff\xff\xff\x7f",
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    "pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
}  # fmt: skip
READERS = {
    "configuration": ("hostile.yaml", "plan hostile.yaml"),
    "matrix": ("hostile.yaml", "experiments hostile.yaml"),
    "boxes": ("hostile.json", "plan boxes.yaml"),
    "vocabulary": ("hostile.json", "plan album.yaml --set dataset.vocabulary=hostile.json"),
    "annotations": ("hostile.json", "plan album.yaml --set dataset.annotations=hostile.json"),
    "described": ("hostile.json", "dataset describe --dataset folder --annotations hostile.json"),
    "hico": ("anno_bbox.mat", "dataset describe --annotations anno_bbox.mat"),
    "hico json": ("trainval_hico.json", "dataset describe --annotations trainval_hico.json"),
    "v-coco": ("vcoco_test.json", "dataset describe --dataset v-coco --annotations vcoco_test.json"),
    "swig-hoi": ("swig_test_1000.json", "dataset describe --dataset swig-hoi --annotations swig_test_1000.json"),
    "parquet": ("d.parquet", "evaluate --dataset folder --annotations listed.json --detections d.parquet --bootstrap 0"),
    "qpic": ("d.json", "evaluate --dataset folder --annotations listed.json --detections d.json --format qpic --bootstrap 0"),
    "found": ("d.json", "evaluate --dataset folder --annotations listed.json --detections d.json --bootstrap 0"),
    "teacher": ("teacher/config.json", "plan teacher.yaml"),
    "few-shot list": ("few.json", "plan pico.yaml"),
    "pictures": ("pictures/000.png", "plan album.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_a_hostile_file(place, album, capsys, monkeypatch, reader):
    name, call = READERS[reader]
    plain = album.path.read_text()
    for table, keys in (
        ("boxes", {"stage": "detections_file", "path": "hostile.json"}),
        ("teacher", {"stage": "blip_itm", "checkpoint": "./teacher", "columns": ["a"]}),
    ):
        album.config["tables"] = {"own": keys}
        (place / f"{table}.yaml").write_text(album.write().read_text())
    album.config["dataset"] = {"kind": "pico", "root": "world", "train": 3, "test": 2}
    album.config["student"] = {"labelled": 2, "few_shot": {"shots": 1, "file": "few.json"}}
    album.config["tables"] = {
        role: {"stage": "toy_scores", "columns": ["a"]} for role in ("detections", "features", "itm", "text")
    }
    (place / "pico.yaml").write_text(album.write().read_text())
    album.path.write_text(plain)
    file = place / name
    file.parent.mkdir(exist_ok=True)
    for what, data in HOSTILE.items():
        file.write_bytes(data)
        try:
            code, error = said(capsys, monkeypatch, *call.split(" "))
        except Exception as traceback:
            raise AssertionError(f"{what}: {type(traceback).__name__}: {traceback}") from traceback
        assert code in (0, 1, 2), what
        assert code == 0 or error.splitlines()[-1].startswith("hoi-distill: "), what
        assert "\x1b" not in error, what
    assert not os.path.exists("owned")
