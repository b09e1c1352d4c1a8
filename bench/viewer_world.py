"""A dataset, a filled cache and two runs for the viewer, at any size, without a teacher: small drawn images, made-up answers.

What is written is what a run writes: commits of the tables, ``detections.parquet``, ``evaluation.json``. Nothing in it was
computed by a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.cell_block import CellBlock

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 96, 72
SHARD = 1000
QUESTIONS = ("a photo of", "list the interactions:")


@dataclass(frozen=True)
class Plot:
    """What a world is made of.

    Attributes:
        images: how many; four fifths are for training.
        vocabulary: the classes.
        captions: texts that take turns; none: made of the annotated classes.
        names: file names, from the first test image on; the others are numbered. One that is not UTF-8, which JSON cannot
            say, is not annotated.
        teachers: how many tables of scores, 1 or 2.
        fails: every so many-th image's caption is a recorded failure. 0: none.
        seed: draws everything.
    """

    images: int
    vocabulary: Vocabulary
    captions: Sequence[str] = ()
    names: Sequence[str] = ()
    teachers: int = 1
    fails: int = 0
    seed: int = 0


def write_world(folder: Path, plot: Plot) -> Path:
    """Write images, annotations, a configuration, its cache and two runs; returns the configuration's file."""
    folder.mkdir(parents=True, exist_ok=True)
    words, rng = plot.vocabulary, np.random.default_rng(plot.seed)
    train = plot.images * 4 // 5
    names = [f"{i:06d}.png" for i in range(plot.images)]
    names[train : train + len(plot.names)] = plot.names
    (folder / "images").mkdir(exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.full((HEIGHT, WIDTH, 3), rng.integers(60, 220, 3), np.uint8)
        pixels[20:60, 10 + i % 40 : 30 + i % 40] = rng.integers(0, 255, 3)
        pixels[0, :4] = np.frombuffer(i.to_bytes(12, "little"), np.uint8).reshape(4, 3)  # no two files are equal
        Image.fromarray(pixels).save(folder / "images" / name, compress_level=1)
    pictures = []
    for i, name in enumerate(names):
        pairs = []
        for hoi in rng.integers(0, len(words), 1 + i % 3).tolist():
            verb, thing = words.hoi_name(hoi)
            left = int(rng.integers(2, 30))
            human, obj = [left, 8, left + 24, 66], [left + 20, 30, left + 54, 64]
            pairs.append({"human_box": human, "object_box": obj, "object": thing, "verbs": [verb]})
        split = "train" if i < train else "test"
        if name.isascii() or name.encode("utf-8", "replace").decode() == name:
            pictures.append({"file_name": name, "split": split, "width": WIDTH, "height": HEIGHT, "pairs": pairs})
    words.save(folder / "vocabulary.json", "made up")
    (folder / "annotations.json").write_text(json.dumps({"vocabulary": "vocabulary.json", "pictures": pictures}))
    teachers = ROOT / "stages/teacher/pico"
    config: dict[str, Any] = {
        "name": "viewed",
        "cache": str(folder / "cache"),
        "runs": str(folder / "runs"),
        "dataset": {"kind": "folder", "root": str(folder / "images"), "annotations": str(folder / "annotations.json")},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "itm": {"stage": "blip_itm", "checkpoint": str(teachers / "itm"), "columns": "prompts"},
            "captions": {
                "stage": "blip_captions",
                "checkpoint": str(teachers / "caption"),
                "columns": list(QUESTIONS),
            },
        },
    }
    if plot.teachers == 2:
        config["tables"]["other_itm"] = {**config["tables"]["itm"], "token_mode": "enc"}
    path = folder / "viewed.yaml"
    path.write_text(yaml.safe_dump(config))
    workspace = prepare(path)
    for table_plan in plan_all(workspace).values():
        _fill(workspace, table_plan, plot, rng)
    for number in range(2):
        _write_run(workspace, folder / "runs" / "viewed" / f"{number:012x}", number, rng)
    return path


def _fill(workspace: Workspace, table_plan: TablePlan, plot: Plot, rng: np.random.Generator) -> None:
    """Commit every cell of one table."""
    stage, cells = table_plan.node.stage, table_plan.cells
    kind = getattr(stage.output, "type", None)
    assert kind is not None
    table = workspace.cache.table(stage.name, fingerprint_record(stage), stage.output.describe(), kind)
    truth: dict[int, list[int]] = {row: [] for row in range(len(cells.row_ids))}
    for split, annotated in workspace.dataset.items():
        for i, row in enumerate(table_plan.positions(workspace.images.splits[split]).tolist()):
            truth[row] += annotated.hoi[annotated.pairs(i)].tolist()
    for start in range(0, len(cells.row_ids), SHARD):
        part = cells.take(slice(start, start + SHARD))
        rows = range(start, start + len(part.row_ids))
        valid, failures = np.ones(part.shape, bool), {}
        if stage.name == "captions" and plot.fails:
            failures = {
                (i, 0): "the image <b>could not</b> be decoded" for i, row in enumerate(rows) if row % plot.fails == 0
            }
            for cell in failures:
                valid[cell] = False
        block = CellBlock(part.row_ids, part.columns, valid, failures, part.inputs)
        values = {
            column: _values(stage.name, column, [truth[r] for r in rows], (plot, rng, start), kind)
            for column in part.columns
        }
        table.commit(block, values, {"device": "none", "seconds": 0.1, "task": f"{stage.name}:{start // SHARD}"})


def _values(
    stage: str,
    column: str,
    truth: Sequence[Sequence[int]],
    made: tuple[Plot, np.random.Generator, int],
    kind: pa.DataType,
) -> pa.Array:
    """Made-up cells of one column, of images with these annotated classes."""
    plot, rng, start = made
    words, count = plot.vocabulary, len(truth)
    if stage == "itm":
        hoi = words.prompts().index(column)
        there = np.array([hoi in classes for classes in truth])
        half = np.where(there, 2.0, -2.0) + rng.normal(0, 1.5, count)
        logits = np.stack([-half, half], axis=1).astype(np.float16)
        return pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), 2).cast(kind)
    if stage == "captions":
        texts = [_caption(plot, start + i, classes) for i, classes in enumerate(truth)]
        return pa.StructArray.from_arrays([pa.array(texts), pa.nulls(count, pa.float32())], fields=list(kind))
    boxes = [[[4.0, 8.0, 40.0, 66.0], *([[30.0, 30.0, 80.0, 64.0]] * len(classes))] for classes in truth]
    cells = [
        {
            "boxes": each,
            "scores": [0.9] * len(each),
            "labels": [0, *(int(words.hois[hoi, 1]) for hoi in classes)],
            "width": WIDTH,
            "height": HEIGHT,
        }
        for each, classes in zip(boxes, truth, strict=True)
    ]
    return pa.array(cells, kind)


def _caption(plot: Plot, row: int, classes: Sequence[int]) -> str:
    if plot.captions:
        return plot.captions[row % len(plot.captions)]
    said = ("a person {} a {}".format(*plot.vocabulary.hoi_name(hoi)) for hoi in classes)
    return " and ".join(said).replace("_", " ")


def _write_run(workspace: Workspace, folder: Path, seed: int, rng: np.random.Generator) -> None:
    """The folder of a student that finds three pairs in four, and errs in its verb or boxes in others."""
    folder.mkdir(parents=True)
    test, words = workspace.dataset["test"], workspace.vocabulary
    image = np.repeat(test.pair_image(), 2).astype(np.int32)
    hoi = np.repeat(test.hoi, 2).astype(np.int32)
    wrong = (np.arange(len(hoi)) % 2 == 1) | (rng.random(len(hoi)) < 0.25)
    hoi[wrong] = rng.integers(0, len(words), int(wrong.sum()))
    human, obj = (np.repeat(boxes, 2, axis=0) for boxes in (test.human_box, test.object_box))
    human = human + (rng.random(len(hoi)) < 0.1)[:, None] * np.float32([20, 0, 20, 0])
    score = np.where(wrong, rng.uniform(0, 0.6, len(hoi)), rng.uniform(0.4, 1, len(hoi))).astype(np.float32)
    verb, thing = words.hois[hoi].astype(np.int32).T
    found = HoiDetections(image, human.astype(np.float32), obj, thing, verb, hoi, score)
    write_detections(folder / "detections.parquet", found, test.image_id)
    training = np.bincount(workspace.dataset["train"].hoi, minlength=len(words))
    evaluation = evaluate_hico_det(test, found, training < 10, training=training)
    (folder / "evaluation.json").write_text(json.dumps(evaluation.as_json()))
    dataset = workspace.config.dataset.model_dump(mode="json")
    (folder / "student.json").write_text(
        json.dumps({"method": "made up", "student": {"seed": seed}, "dataset": dataset})
    )
    (folder / "report.html").write_text("<!doctype html><title>made up</title><p>made up</p>")


def default_plot(images: int) -> Plot:
    """The pico world's classes, and captions of what is annotated."""
    return replace(Plot(images, pico_vocabulary()), fails=97)
