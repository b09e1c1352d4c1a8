"""The recipes of deploy/ fit what they are written for, as far as that can be told without a cloud."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("name", ["ray-cloud.yaml", "ray-machines.yaml"])
def test_launcher_files_fit_rays_own_schema(name):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((DEPLOY / name).read_text()), schema)


@pytest.mark.parametrize("script", ["deploy/slurm.sh", "tests/slurm.sh"])
def test_shell_scripts_are_whole(script):
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_the_image_is_made_of_files_that_are_here():
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line


def test_every_recipe_runs_both_commands_with_the_cache_in_an_object_store():
    for name in ("slurm.sh", "ray-cloud.yaml", "ray-machines.yaml", "rayjob.yaml"):
        text = (DEPLOY / name).read_text()
        assert all(re.search(rf"hoi-distill {command}\b", text) for command in ("run", "train")), name
        assert "cache=s3://" in text, name
        assert re.search("gpu", text, re.IGNORECASE) or name == "ray-machines.yaml", name


def test_the_page_lists_every_recipe():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert all(f"`{path.name}`" in page for path in DEPLOY.iterdir() if path.suffix != ".dockerignore")
