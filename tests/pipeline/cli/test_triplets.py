"""The command that counts what the parser took and dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoi_distill.pipeline.cli.triplets import triplets
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import run

CAPTIONER = Path(__file__).parents[3] / "stages" / "teacher" / "pico" / "caption"


def test_counts_by_question_and_reason(album, capsys):
    with pytest.raises(UserError, match="no table of stage triplets"):
        triplets(album.path)
    question = "is there anybody riding a pizza or riding a bicycle?"
    tables = {
        "captions": {"stage": "blip_captions", "checkpoint": str(CAPTIONER), "columns": [question]},
        "triplets": {"stage": "triplets", "columns": [question]},
    }
    album.config["tables"] = tables
    album.write()
    with pytest.raises(UserError, match="hoi-distill run"):
        triplets(album.path)
    run(album.workspace())
    triplets(album.path, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "triplets": {question: {"taken": 6, "no such interaction": 6}},
    }
    triplets(album.path)
    assert "6  no such interaction" in capsys.readouterr().out


def test_the_log_has_every_dropped_phrase_with_its_picture_and_reason(album, tmp_path, capsys):
    question = "is there anybody riding a pizza or riding a bicycle?"
    boxes = tmp_path / "none.json"
    boxes.write_text(json.dumps([{"image_id": "000.png", "category_id": 80, "bbox": [1, 1, 8, 8], "score": 0.01}]))
    album.config["tables"] = {
        "detections": {"stage": "detections_file", "path": str(boxes), "lenient": True},
        "captions": {"stage": "blip_captions", "checkpoint": str(CAPTIONER), "columns": [question]},
        "triplets": {"stage": "triplets", "columns": [question]},
        "labels": {"stage": "image_labels", "texts": [question]},
    }
    album.write()
    run(album.workspace())
    log = tmp_path / "dropped.jsonl"
    triplets(album.path, log=log)
    drops = [json.loads(line) for line in log.read_text().splitlines()]
    pictures = {drop["picture"] for drop in drops}
    assert len(pictures) == 6
    own = {"table": "triplets", "question": question, "reason": "no such interaction"}
    later = {"table": "labels", "question": None, "reason": "object or person not detected"}
    for expected in (own, later):
        found = [drop for drop in drops if drop["table"] == expected["table"]]
        assert {drop["picture"] for drop in found} == pictures
        assert all(expected.items() <= drop.items() for drop in found)
        assert all(("pizza" in drop["phrase"]) == (expected is own) for drop in found)
    before = log.read_bytes()
    triplets(album.path, log=log)
    assert log.read_bytes() == before
    triplets(album.path, log=tmp_path / "new" / "dropped.jsonl")
    with pytest.raises(UserError, match=r"--log .*dropped.jsonl/x: cannot be written: "):
        triplets(album.path, log=log / "x")
