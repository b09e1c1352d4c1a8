"""What a matrix of experiments costs, before it begins: trainings, tables, bytes and hours of a GPU, each with its formula.

Everything is arithmetic on the configurations of its arms. Neither the images nor a checkpoint need be there. What no formula
gives is said to be unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hoi_distill.pipeline.config.schema import (
    Config,
    CrowdDataset,
    Dataset,
    HicoDetDataset,
    PicoDataset,
    TableSection,
    VCocoDataset,
)
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.graph.registry import stage_class
from hoi_distill.pipeline.inputs import load_dataset
from hoi_distill.pipeline.planning.model_arithmetic import MATCHERS, PEAK, TOWERS, PyramidTower, VisionTower
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.quantities import size
from hoi_distill.storage.files.address import ObjectPath

PUBLISHED_IMAGES = {"hico-det": {"train": 38_118, "test": 9_658}, "v-coco": {"train": 5_400, "test": 4_946}}
"""Images of each split, where the dataset is not here to be counted."""
BOX_BYTES, BOXES = 22, 100
"""Of a detection (four coordinates, score, label), and detections of an image."""
PAIR_STAGES = ("link_pairs", "link_maps")
MAPS = ("vision_features", "blip_features", "blip2_features")
NO_MODEL = ("detections_file", "ground_truth_boxes")
"""Stages that look at no image."""


@dataclass(frozen=True)
class Amount:
    """A number and how it came about.

    Attributes:
        value: bytes or floating-point operations; None where it is unknown.
        formula: its factors, or why it is unknown.
    """

    value: float | None
    formula: str


@dataclass
class TableCost:
    """A table that arms of a matrix read.

    Attributes:
        name: the configuration's, of the first arm that has it.
        stage: its stage.
        teacher: the checkpoint or pair teacher that fills it; "" where there is none.
        looks: whether that looks at the images themselves.
        stored: bytes of its cells.
        flop: operations that fill it.
        hours: of an H200 at the peak of its dtype; None where unknown.
        first: the first arm and seed that reads it.
        runs: how many (arm, seed) read it.
    """

    name: str
    stage: str
    teacher: str
    looks: bool
    stored: Amount
    flop: Amount
    hours: float | None
    first: str
    runs: int = 0


@dataclass
class MatrixCosts:
    """What a matrix needs, cached tables and finished trainings left out of account.

    Attributes:
        runs: number of (arm, seed).
        students: distinct trainings, ``{their length: how many}``.
        pair_teachers: the same of pair teachers.
        tables: distinct tables by identity.
        images: how many images of each split; None where unknown.
    """

    runs: int = 0
    students: Counter[str] = field(default_factory=Counter)
    pair_teachers: Counter[str] = field(default_factory=Counter)
    tables: dict[str, TableCost] = field(default_factory=dict)
    images: Mapping[str, int] | None = None

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.runs} arms x seeds: {_counted(self.students, 'student')}, {_counted(self.pair_teachers, 'pair teacher')}."
        told = "unknown, the dataset is not here" if self.images is None else self.images
        yield f"Images: {told if isinstance(told, str) else ', '.join(f'{n:,} {split}' for split, n in told.items())}."
        tables = list(self.tables.values())
        looking = sum(table.looks for table in tables)
        taught = sum(table.stage in PAIR_STAGES for table in tables)
        passes = f"{looking} a pass of a teacher over the images, {taught} of a pair teacher over cached maps"
        yield f"{len(tables)} tables, {passes}:"
        alike = Counter((table.name, table.stage, table.teacher) for table in tables)
        for table in tables:
            who = f" of {table.teacher}" if table.teacher else ""
            first = f", first by {table.first}" if alike[table.name, table.stage, table.teacher] > 1 else ""
            yield f"  {table.name} ({table.stage}{who}), read by {table.runs} of {self.runs}{first}"
            known = f"{size(table.stored.value)} = " if table.stored.value is not None else ""
            yield f"    bytes: {known}{table.stored.formula}"
            if table.teacher:
                hours = f"{table.hours:.3f} h = " if table.hours is not None else ""
                yield f"    GPU: {hours}{table.flop.formula}"
        hours_of = [table.hours for table in tables if table.teacher]
        yield self._total("Cache", "size", [table.stored.value for table in tables], size)
        yield self._total("Teachers", "time", hours_of, lambda hours: f"{hours:.3f} GPU-hours of an H200")
        yield (
            "At the peak of the vendor's data sheet, which no kernel reaches: that is the least. Trainings: GPU-hours unknown, "
            "because a student's FLOP depend on the pairs that its detector gives; the first one's seconds tell."
        )
        yield "What the cache or the records have already is not subtracted: hoi-distill plan says what a table still lacks."

    @staticmethod
    def _total(what: str, lacking: str, values: Sequence[float | None], shown: Callable[[float], str]) -> str:
        known = [value for value in values if value is not None]
        unknown = len(values) - len(known)
        tables = f"{unknown} table{'' if unknown == 1 else 's'} of unknown {lacking}"
        parts = [shown(sum(known))] * bool(known) + [tables] * bool(unknown)
        return f"{what}: {', and '.join(parts) or 'nothing'}."


def matrix_costs(configs: Mapping[str, Config]) -> MatrixCosts:
    """Count.

    Args:
        configs: of every arm and seed, by what people call these: ``A7, seed 0``.
    """
    costs = MatrixCosts(runs=len(configs), images=images_of(next(iter(configs.values())).dataset))
    students: set[str] = set()
    teachers: set[str] = set()
    for run, config in configs.items():
        identities = _Identities(config)
        for name, table in config.tables.items():
            key = identities.of(name)
            if key not in costs.tables:
                costs.tables[key] = _Counting(config, table, costs.images).cost(name, run)
            costs.tables[key].runs += 1
        used = {table.parameters().get("teacher") for table in config.tables.values() if table.stage in PAIR_STAGES}
        for teacher in map(str, used & config.pair_teachers.keys()):
            if (key := identities.of_teacher(teacher)) not in teachers:
                teachers.add(key)
                costs.pair_teachers[_length(config.pair_teachers[teacher])] += 1
        key = json.dumps([config.student, sorted(map(identities.of, config.tables))], sort_keys=True)
        if key not in students:
            students.add(key)
            costs.students[_length(config.student or {"labelled": None})] += 1
    return costs


def images_of(dataset: Dataset) -> Mapping[str, int] | None:
    """How many images each split has: counted where the dataset is here, else as published; None where nobody knows."""
    if isinstance(dataset, PicoDataset | CrowdDataset):
        return {"train": dataset.train, "test": dataset.test}
    if not isinstance(dataset.root, ObjectPath) and dataset.root.exists():
        return {split: len(annotations) for split, annotations in load_dataset(dataset).items()}
    return PUBLISHED_IMAGES.get(dataset.kind)


def _counted(trainings: Counter[str], what: str) -> str:
    lengths = "; ".join(f"{count} of {length}" for length, count in trainings.items())
    number = trainings.total()
    return f"{number} {what}{'' if number == 1 else 's'} to train" + (f" ({lengths})" if lengths else "")


def _length(section: Mapping[str, Any]) -> str:
    """``47,040 steps of 16 images``, or ``100 epochs``."""
    config = read_section(section, "student.").config
    if getattr(config, "steps", None) is None:
        return f"{config.epochs:g} epochs"
    kind = "unlabelled" if section.get("labelled") == 0 else "labelled"
    return f"{config.steps:,} steps of {getattr(config, f'{kind}_per_step')} {kind} images"


class _Identities:
    """What tells the tables of a configuration from those of another: parameters, and all that stands above them."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def of(self, name: str, above: tuple[str, ...] = ()) -> str:
        """The identity of a table: JSON."""
        table = self.config.tables[name]
        given = table.parameters()
        defaults = {key: info.default for key, info in stage_class(table.stage).Config.model_fields.items()}
        named = {text for text in _texts({**defaults, **given}) if text in self.config.tables} - {name, *above}
        read = {up: self.of(up, (*above, name)) for up in sorted(named)}
        own = {key: value for key, value in given.items() if key not in ("batch_size", "gpus", "memory_mib", "compile")}
        taught = self.of_teacher(given["teacher"]) if table.stage in PAIR_STAGES else None
        return json.dumps([table.stage, sorted(table.splits), own, list(read.values()), taught], sort_keys=True)

    def of_teacher(self, name: str) -> str:
        """The identity of a pair teacher: its section and the tables that it reads."""
        section = self.config.pair_teachers[name]
        roles = read_section(section, f"pair_teachers.{name}.").data.tables
        read = [self.of(table) for table in (roles.detections, roles.features) if table in self.config.tables]
        return json.dumps([section, read], sort_keys=True)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


class _Counting:
    """The arithmetic of one table."""

    def __init__(self, config: Config, table: TableSection, images: Mapping[str, int] | None) -> None:
        self.config, self.table, self.given = config, table, table.parameters()
        self.rows = None if images is None else sum(images.get(split, 0) for split in table.splits)
        source = self.given.get("checkpoint", self.given.get("weights", ""))
        self.checkpoint = str(source.get("id", "") if isinstance(source, Mapping) else source)

    def cost(self, name: str, first: str) -> TableCost:
        """Bytes and operations."""
        stage, flop = self.table.stage, self._flop()
        looks = stage_class(stage).source == "images" and stage_class(stage).decodes and stage not in NO_MODEL
        teacher = str(self.given.get("teacher", self.checkpoint))
        dtype = str(self.given.get("dtype", "float32"))
        hours = None if flop.value is None else flop.value / PEAK[dtype] / 3600
        if flop.value is not None:
            flop = Amount(flop.value, f"{flop.formula} / {PEAK[dtype] / 1e12:.0f} TFLOP/s ({dtype})")
        return TableCost(name, stage, teacher, looks, self._stored(), flop, hours, first)

    def _stored(self) -> Amount:
        if self.table.stage == "text_embeddings":
            return Amount(None, "unknown, but small: a vector of each sentence")
        if self.rows is None:
            return Amount(None, "unknown number of images")
        if self.table.stage == "link_pairs":
            return Amount(None, self._most_of_pairs(self.rows))
        found = self._of_cell()
        if found is None:
            return Amount(None, "unknown: the length of a cell depends on the image")
        number, formula = found
        return Amount(self.rows * number, f"{self.rows:,} images x {formula}")

    def _of_cell(self) -> tuple[float, str] | None:
        """Bytes of an image, and their factors."""
        stage = self.table.stage
        if stage in MAPS and (tower := self._tower()) is not None:
            projected = self.given.get("width") == "projected" and tower.projected is not None
            channels = tower.projected if projected and tower.projected else tower.width
            return self._map(channels, tower.grid)
        if stage == "link_maps" and (tower := self._teachers_tower()) is not None:
            network = read_section(self.config.pair_teachers[self.given["teacher"]], "").config.network
            return self._map(network.width, tower.grid)
        if stage in ("detector", "detectron2", "detections_file") and not self.given.get("states"):
            return BOXES * BOX_BYTES, f"up to {BOXES} boxes x {BOX_BYTES} bytes"
        if stage in ("blip_itm", "blip2_itm") and (sentences := self._sentences()) is not None:
            return len(sentences) * 12, f"{len(sentences):,} sentences x (2 logits x 2 bytes + 8 bytes of digest)"
        return None

    def _most_of_pairs(self, rows: int) -> str:
        """The bound of the largest part of a pair teacher's answers."""
        config = read_section(self.config.pair_teachers[self.given["teacher"]], "").config
        network, most = config.network, config.max_instances * (2 * config.max_instances - 1)
        views, layers, width = len(self._columns()), network.decoder_layers, network.pair_width
        bound = rows * views * most * layers * width * 2
        factors = f"{rows:,} images x {views} views x {most} pairs x {layers} layers x {width} x 2 bytes"
        return f"unknown number of pairs; its queries are at most {size(bound)} = {factors}"

    def _map(self, channels: int, grid: int) -> tuple[float, str]:
        views = len(self._columns())
        if self.given.get("codec") == "int8":
            cell, factors = channels * (grid**2 + 4), f"{channels} x ({grid} x {grid} + 4) bytes"
        else:
            cell, factors = channels * grid**2 * 2, f"{channels} x {grid} x {grid} x 2 bytes"
        return views * cell, f"{views} views x {factors}"

    def _flop(self) -> Amount:
        stage, tower = self.table.stage, self._tower()
        if self.rows is None:
            return Amount(None, "unknown number of images")
        if stage in MAPS and tower is not None:
            views = len(self._columns())
            per_image = views * tower.flop()
            formula = f"{views} views x {tower.flop() / 1e12:.4f} TFLOP {tower.formula}"
        elif stage == "blip_itm" and tower is not None and (sentences := self._sentences()) is not None:
            matching = 2 * MATCHERS[self.checkpoint].macs_ours([len(each.split()) + 2 for each in sentences])
            per_image = tower.flop() + matching
            asked = f"{matching / 1e12:.4f} of {len(sentences):,} sentences"
            formula = f"({tower.flop() / 1e12:.4f} TFLOP of the vision tower + {asked})"
        else:
            why = "boxes and answers" if stage in ("detector", "detectron2", "answers") else "this network"
            return Amount(
                None, f"unknown: no formula here for {why}; hoi-distill run ... --limit 256, then plan, measures it"
            )
        return Amount(self.rows * per_image, f"{self.rows:,} images x {formula}")

    def _tower(self) -> VisionTower | PyramidTower | None:
        """The checkpoint's; None where it is unknown, or where a pyramid's last map is not the one that is stored."""
        tower = TOWERS.get(self.checkpoint)
        return None if isinstance(tower, PyramidTower) and self.given.get("layer", -1) != -1 else tower

    def _columns(self) -> tuple[str, ...]:
        default = stage_class(self.table.stage).Config.model_fields["columns"].default
        columns = self.given.get("columns", default)
        return (columns,) if isinstance(columns, str) else tuple(columns)

    def _sentences(self) -> list[str] | None:
        """The prompts of a matching table; None where its vocabulary is not one of the published ones."""
        words = self._vocabulary()
        if words is None:
            return None
        found: dict[str, None] = {}
        for column in self._columns():
            made = getattr(words, column, None)
            found.update(dict.fromkeys(made() if callable(made) else [column]))
        return list(found)

    def _vocabulary(self) -> Vocabulary | None:
        if isinstance(self.config.dataset, HicoDetDataset):
            return hico_vocabulary()
        if isinstance(self.config.dataset, VCocoDataset):
            return v_coco_vocabulary(self.config.dataset.combinations)
        return None

    def _teachers_tower(self) -> Any:
        """The tower whose map a pair teacher reads."""
        section = self.config.pair_teachers[self.given["teacher"]]
        features = self.config.tables.get(read_section(section, "").data.tables.features)
        return None if features is None else TOWERS.get(str(features.parameters().get("checkpoint")))
