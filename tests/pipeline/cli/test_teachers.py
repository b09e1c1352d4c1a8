"""The catalogue is what the stage classes say, and its snippets are configurations."""

from __future__ import annotations

import json

import yaml

from hoi_distill.pipeline.graph.catalogue import catalogue
from hoi_distill.pipeline.graph.registry import STAGES
from tests.fixtures.command import hoi_distill


def test_every_stage_is_in_one_of_the_lists():
    listed = {}
    for command in ("teachers", "detectors"):
        done = hoi_distill(command, "--json")
        assert done.returncode == 0, done.stderr
        listed[command] = {entry["stage"] for entry in json.loads(done.stdout)}
    assert listed["teachers"].isdisjoint(listed["detectors"])
    assert listed["teachers"] | listed["detectors"] == set(STAGES)
    assert "detections_file" in listed["detectors"]
    assert "blip_itm" in listed["teachers"]


def test_an_entry_says_what_a_user_has_to_know():
    entries = {entry["stage"]: entry for entry in catalogue()}
    for entry in entries.values():
        assert entry["says"], entry["stage"]
        assert yaml.safe_load(entry["snippet"])["tables"][entry["table"]]["stage"] == entry["stage"]
    itm = entries["blip_itm"]
    assert "BlipForImageTextRetrieval" in itm["architectures"]
    keys = {key["name"]: key for key in itm["keys"]}
    assert keys["token_mode"]["default"] is None
    assert keys["checkpoint"]["required"]
    assert "verbs" not in {key["name"] for key in entries["triplets"]["keys"]}
    assert {"CLIPModel", "SiglipModel", "Dinov2Model"} <= set(entries["vision_features"]["architectures"])


def test_the_list_for_people_and_one_stage_in_full():
    listing = hoi_distill("teachers").stdout
    assert "vision_features" in listing
    assert "CLIPModel" in listing
    full = hoi_distill("teachers", "answers").stdout
    assert "max_new_tokens: int = 128" in full
    assert "stage: answers" in full
    wrong = hoi_distill("detectors", "answers")
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
