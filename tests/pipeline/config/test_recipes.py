"""Every YAML block that a reader may copy parses, and builds stages: with tiny checkpoints of the classes it names."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.graph.nodes import build_graph
from hoi_distill.pipeline.graph.registry import STAGES
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.teacher import weights
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.synthetic import empty_annotations

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "stages").rglob("README.md"))]
VOCABULARIES = ROOT / "stages/data/vocabularies"
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("text", BLOCKS)
def test_every_block_builds(text, tiny_of, tmp_path, monkeypatch):
    document = yaml.safe_load(text)
    assert document.keys() <= Config.model_fields.keys()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))
    tables = document.get("tables", {})
    tables = {name: table for name, table in tables.items() if table["stage"] != "tags"}  # see test_teachers_page.py
    for table in tables.values():
        assert table["stage"] in STAGES
        paths = table.get("path", ())
        for path in [paths] if isinstance(paths, str) else paths:
            Path(path).write_text("[]")
    document = {"name": "fragment", "dataset": {"kind": "pico", "root": "data"}, **document, "tables": tables}
    config = Config.model_validate(document)
    words = Vocabulary.load(VOCABULARIES / ("hico.json" if config.dataset.kind == "hico-det" else "pico.json"))
    context = StageContext(
        words, {"train": empty_annotations(words)}, DigestMemory(tmp_path / "digests.sqlite").digests
    )
    if any(table["stage"] == "detectron2" for table in tables.values()):  # told after its keys were found right
        with pytest.raises(UserError, match=r"detectron2 cannot be imported|no such weights file"):
            build_graph(config, context, Path("page"))
        return
    nodes = build_graph(config, context, Path("page"))
    assert nodes.keys() == tables.keys()
    if config.student is not None:
        read_section(config.student, "page: student.")


def test_blocks_are_there():
    assert len(BLOCKS) >= 10
    full = [block for param in BLOCKS if "dataset" in (block := yaml.safe_load(param.values[0]))]
    assert len(full) >= 4


def test_the_disk_table_is_its_arithmetic():
    page = (ROOT / "docs/recipes.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (47,776 x [0-9x, ]+) \| ([0-9.]+) GB \|$", page, re.MULTILINE)
    assert len(rows) >= 8
    for product, size in rows:
        exact = math.prod(int(factor) for factor in product.replace(",", "").split(" x ")) / 1e9
        assert float(size) == float(f"{exact:.3g}"), product
