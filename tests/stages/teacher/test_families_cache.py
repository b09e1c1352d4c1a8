"""One cache, every family: images of all sizes, modes and rotations, and what is stored is what a teacher says live.

``HOI_DISTILL_REFERENCE_DATA``, where set, adds the photographs of its ``data/photos``.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.filling.verify import difference
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.stage import Batch, TensorOutput
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.tiny_blip2 import save_blip2
from tests.fixtures.tiny_detectors import FAMILIES, tiny_detector

VOCABULARY = Path(__file__).parents[3] / "stages/data/vocabularies/pico.json"
PHOTOS = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere")) / "data/photos"
PROMPTS = ["a photo of a person riding a bicycle", "a person sitting on a chair"]
QUESTIONS = ["what is the person holding", "is there anybody riding a bicycle?"]
VIEWS = {"columns": ["original", "flip"], "batch_size": 4}
TABLES = {
    "clip": {"stage": "vision_features", **VIEWS},
    "clip_projected": {"stage": "vision_features", "width": "projected", "layer": -2, "codec": "bf16", **VIEWS},
    "siglip": {"stage": "vision_features", **VIEWS, "batch_size": "auto"},
    "dinov2": {"stage": "vision_features", "image_size": 48, "codec": "int8", **VIEWS},
    "instructblip": {"stage": "answers", "columns": QUESTIONS, "max_new_tokens": 5, "batch_size": 4},
    "llava": {"stage": "answers", "columns": QUESTIONS, "max_new_tokens": 5, "batch_size": 4},
    "qwen": {"stage": "answers", "columns": QUESTIONS, "max_new_tokens": 5, "batch_size": 4},
    "florence2": {"stage": "vision_features", **VIEWS},
    "florence2_captions": {"stage": "florence_captions", "columns": ["<CAPTION>", "<OCR>"], "max_new_tokens": 5},
    "blip_features": {"stage": "blip_features", **VIEWS},
    "blip_itm": {"stage": "blip_itm", "columns": PROMPTS, "batch_size": 4, "token_mode": "cls"},
    "blip_itc": {"stage": "blip_itc", "columns": PROMPTS, "batch_size": 4},
    "blip_captions": {"stage": "blip_captions", "columns": ["a photo of", QUESTIONS[1]], "batch_size": 4},
    "blip2_features": {"stage": "blip2_features", **VIEWS},
    "blip2_itm": {"stage": "blip2_itm", "columns": PROMPTS, "batch_size": 4},
    "blip2_itc": {"stage": "blip2_itc", "columns": PROMPTS, "batch_size": 4},
    **{family: {"stage": "detector", "states": True, "batch_size": 4} for family in FAMILIES},
    "clip_text": {"stage": "text_embeddings", "batch_size": 8},
    "siglip_text": {"stage": "text_embeddings", "batch_size": 8},
    "sentences": {"stage": "text_embeddings", "batch_size": 8},
}
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2, "int8": 3e-2}
"""Of a stored value relative to the larger of 1 and its cell's largest; ITM stores halves, the rest float32."""


def draw_images(folder: Path) -> None:
    """Noise upon a gradient, in the sizes, modes and rotations that cameras and scanners leave behind."""
    random = np.random.default_rng(0)
    shapes = [(40, 60), (97, 31), (64, 64), (8, 120), (150, 200), (33, 47)]
    for number, (height, width) in enumerate(shapes):
        slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        pixels = (slope + random.integers(0, 36, (height, width, 3))).astype(np.uint8)
        image = Image.fromarray(pixels)
        image.save(folder / f"rgb{number}.png")
        exif = Image.Exif()
        exif[0x0112] = 3 + number
        image.save(folder / f"turned{number}.jpg", exif=exif, quality=95)
    image.convert("L").save(folder / "grey.png")
    image.quantize(16).save(folder / "palette.png")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    clear = image.convert("RGBA")
    clear.putalpha(128)
    clear.save(folder / "clear.png")
    Image.fromarray(random.integers(0, 65535, (30, 50), np.uint16)).save(folder / "deep.png")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, families, checkpoints, processor):
    """The cache of every table, filled in this process."""
    root = tmp_path_factory.mktemp("line")
    (root / "pictures").mkdir()
    draw_images(root / "pictures")
    if PHOTOS.is_dir():
        for photo in sorted([*PHOTOS.glob("*.jpg"), *PHOTOS.glob("*.png")]):
            shutil.copy(photo, root / "pictures")
    where = {
        "clip": families("clip"),
        "siglip": families("siglip"),
        "dinov2": families("dinov2"),
        "sentences": families("sentence_encoder"),
        "blip_captions": checkpoints.caption,
        "blip": checkpoints.itm,
        "blip2": save_blip2(root / "blip2", processor.tokenizer),
        **{family: tiny_detector(family, root / family) for family in FAMILIES},
        **{name: families(name) for name in ("instructblip", "llava", "qwen", "florence2")},
    }
    own = {name: where.get(name) or where[name.split("_")[0]] for name in TABLES}
    config = {
        "name": "families",
        "cache": str(root / "cache"),
        "dataset": {"kind": "folder", "root": str(root / "pictures"), "vocabulary": str(VOCABULARY)},
        "tables": {name: {**table, "checkpoint": str(own[name])} for name, table in TABLES.items()},
    }
    config["tables"]["triplets"] = {"stage": "triplets", "captions": "llava", "columns": QUESTIONS[:1]}
    path = root / "families.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    made = prepare(path)
    with choose_executor("inline", "cpu", 1) as execute:
        summary = fill(made, execute, threading.Event())
    assert not summary.failures or not sum(summary.failures.values()), summary.reasons
    return prepare(path)


def test_every_cell_is_filled_and_nothing_is_left_to_do(workspace):
    plans = plan(workspace.nodes, workspace.sources, workspace.cache)
    images = len(workspace.sources["images"].ids)
    assert images >= 17
    for name, made in plans.items():
        assert made.complete(), name
        if workspace.nodes[name].stage.source == "images":
            assert made.counts["filled"] == images * len(workspace.nodes[name].stage.columns)


@pytest.mark.parametrize("name", TABLES)
def test_stored_is_live_for_every_row(workspace, name):
    """Each row alone in its batch, in a freshly opened teacher, against the cell that it left among others."""
    made = plan(workspace.nodes, workspace.sources, workspace.cache)[name]
    stage, source = made.node.stage, workspace.sources[made.node.stage.source]
    stage.open("cpu", {})
    rows = source.ids[made.rows]
    tolerance = TOLERANCE[stage.output.codec] if isinstance(stage.output, TensorOutput) else 2e-3
    stored = made.table.read(CellSelection(rows, stage.columns, made.cells.inputs))
    for index, member in enumerate(made.rows.tolist()):
        key, uri = source.keys[member], source.uris[member]
        if stage.source == "texts":
            batch = Batch(rows[[index]], [key], 1, texts=[uri.removeprefix("text:")])
        else:
            batch = Batch(rows[[index]], [key], 1, images=[decode(Path(uri).read_bytes())])
        live = stage.compute(batch, stage.columns, {})
        for column in stage.columns:
            apart = difference(stored[column][index], live[column][0])
            assert apart <= tolerance, f"{key} / {column}: {apart}"


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ(workspace, name):
    """Else anything stored would equal anything live."""
    made = plan(workspace.nodes, workspace.sources, workspace.cache)[name]
    column = made.node.stage.columns[-1]
    source = workspace.sources[made.node.stage.source]
    stored = made.table.read(CellSelection(source.ids[made.rows], [column], made.cells.inputs))[column]
    assert max(difference(stored[0], cell) for cell in stored) > 1e-4
