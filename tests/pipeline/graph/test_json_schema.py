"""The schema for editors is the one that the code has; it takes what is shipped and refuses a misspelt key."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.graph.json_schema import configuration_schema

CONFIGS = Path(__file__).parents[3] / "configs"
DOCUMENTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))}
DOCUMENTS = {name: document for name, document in DOCUMENTS.items() if "dataset" in document}


@pytest.fixture(scope="module")
def schema():
    return configuration_schema()


def test_the_shipped_schema_is_what_the_command_prints(schema):
    shipped = (CONFIGS / "schema.json").read_text()
    assert shipped == json.dumps(schema, indent=1) + "\n", "hoi-distill schema > configs/schema.json"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_shipped_configuration_names_the_schema_and_keeps_to_it(schema, name):
    assert (CONFIGS / name).read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    assert not [error.message for error in validator.iter_errors(DOCUMENTS[name])]


@pytest.mark.parametrize("section", [(), ("student",), ("tables", "itm")])
def test_a_misspelt_key_is_refused(schema, section):
    document = copy.deepcopy(DOCUMENTS["pico.yaml"])
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    inner = document
    for key in section:
        inner = inner[key]
    inner["misspelt"] = 1
    assert list(validator.iter_errors(document))
