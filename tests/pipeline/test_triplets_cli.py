"""The command that counts what the parser took and dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.triplets_cli import triplets
from storage.errors import UserError
from tests.pipeline.toys import run

CAPTIONER = Path(__file__).parents[2] / "stages" / "teacher" / "pico" / "caption"


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
    run(album.setup())
    triplets(album.path, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "triplets": {question: {"taken": 6, "no such interaction": 6}},
    }
    triplets(album.path)
    assert "6  no such interaction" in capsys.readouterr().out
