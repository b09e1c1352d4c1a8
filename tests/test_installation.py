"""One name is installed: hoi_distill, with every module and data file of the four rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "stages", "storage", "workers")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.mark.slow
def test_a_wheel_holds_hoi_distill_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    names = ["hoi_distill", *ROOMS, "pyproject.toml", "README.md", "LICENSE"]  # a build writes beside what it builds
    source.mkdir()
    subprocess.run(["cp", "-a", *names, source], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    (wheel,) = out.iterdir()
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in held} == {"hoi_distill"}
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*"))
    there = {f"hoi_distill/{p.relative_to(ROOT)}" for p in files if p.is_file() and "__pycache__" not in p.parts}
    left_out = (".jsonl", ".gitignore")  # curves of the pico teachers' trainings
    assert {name for name in there - held if not name.endswith(left_out)} == set()


def test_rooms_are_imported_by_the_one_name_alone() -> None:
    """Twice imported is two classes of one name."""
    bare = re.compile(rf"({'|'.join(ROOMS)})(\.|$)")
    for path in (
        path for room in (*ROOMS, "hoi_distill", "bench", "tests", "docs") for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(map(bare.match, names)), f"{path}: {names}"


def test_python_m_hoi_distill_is_the_command() -> None:
    command = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["hoi-distill"]
    assert command == "hoi_distill.pipeline.cli:main"
    done = subprocess.run(
        [sys.executable, "-m", "hoi_distill", "no-such"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("hoi-distill: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "call",
    [("-m", "pipeline.cli", "--version"), ("-c", "from pipeline.cli import main"), ("-c", "import pipeline.run")],
)
def test_an_environment_of_an_older_checkout_is_told_to_install_again(call: tuple[str, ...]) -> None:
    """Its command imports pipeline.cli, which its finder still finds."""
    done = subprocess.run([sys.executable, *call], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "make setup" in done.stderr
