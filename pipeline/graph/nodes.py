"""The stage graph: a configuration's tables as stage objects, upstream first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.graph.builder import build_stage
from hoi_distill.pipeline.graph.registry import STAGES, stage_class
from hoi_distill.stages.keys import PAIR_TEACHER, StageContext
from hoi_distill.stages.stage import Stage
from hoi_distill.storage.errors import UserError, placed


@dataclass(frozen=True)
class Node:
    """One table of the configuration.

    Attributes:
        name: the configuration's name for it.
        splits: the dataset splits whose rows it covers.
        shard_rows: rows of one task.
    """

    name: str
    stage: Stage
    splits: tuple[str, ...]
    shard_rows: int


def build_graph(config: Config, context: StageContext, where: Path) -> dict[str, Node]:
    """Nodes in topological order.

    Raises:
        UserError: unknown stage, unknown or wrong parameter, missing or cyclic input, an input that lacks a split.
    """
    nodes: dict[str, Node] = {}
    later = [name for name, table in config.tables.items() if _takes_pair_teacher(table.stage)]
    for name in [*(name for name in config.tables if name not in later), *later]:
        table = config.tables[name]
        if later and name == later[0]:
            context = replace(context, pair_teachers=pair_teachers(config, nodes, where))
        stage = build_stage(table.stage, table.parameters(), context, f"{where}: tables.{name}")
        splits = tuple(split for split in table.splits if split in config.splits())
        nodes[name] = Node(name, stage, splits, table.shard_rows)
    for node in nodes.values():
        for up in node.stage.inputs:
            _check_input(node, up, nodes, where)
    try:
        order = list(TopologicalSorter({name: node.stage.inputs for name, node in nodes.items()}).static_order())
    except CycleError as error:
        raise UserError(f"{where}: tables: {' -> '.join(error.args[1])} is a circle") from None
    return {name: nodes[name] for name in order}


def _takes_pair_teacher(kind: str) -> bool:
    fields = stage_class(kind).Config.model_fields.values() if kind in STAGES else ()
    return any(PAIR_TEACHER in field.metadata for field in fields)


def _check_input(node: Node, up: str, nodes: Mapping[str, Node], where: Path) -> None:
    """Raises UserError where a table cannot read the table ``up``."""
    place = f"{where}: tables.{node.name}"
    if up not in nodes:
        raise UserError(f"{place}: reads table {up!r}; there are {', '.join(sorted(nodes))}")
    above = nodes[up]
    if above.stage.source != node.stage.source:
        raise UserError(f"{place}: has rows of {node.stage.source}, {up} of another source")
    for column in node.stage.columns:
        read = {
            "computed from": node.stage.dependencies(column) or {},
            "chosen by": node.stage.selection_inputs(column),
        }
        for how, columns in read.items():
            if lacking := [other for other in columns.get(up, ()) if other not in above.stage.columns]:
                raise UserError(
                    f"{place}.columns: {column!r} is {how} column {lacking[0]!r} of {up}; add it to tables.{up}.columns"
                )
    if missing := [split for split in node.splits if split not in above.splits]:
        raise UserError(f"{place}.splits: {missing[0]} is not among the splits of {up}")


def pair_teachers(config: Config, nodes: Mapping[str, Node], where: Path) -> dict[str, Any]:
    """The networks of ``pair_teachers:`` by name, as stages take them, not bound to a training yet.

    Raises:
        UserError: a section that is wrong, of a method that gives no such answers, or of tables that are not there.
    """
    found = {}
    for name, section in config.pair_teachers.items():
        place = f"{where}: pair_teachers.{name}."
        method, student, data = read_section(section, place)
        tables = data.tables
        for role in ("detections", "features"):
            if getattr(tables, role) not in nodes:
                raise UserError(f"{place}tables.{role}: there is no table {getattr(tables, role)!r}")
        shape: tuple[int, ...] = getattr(nodes[tables.features].stage.output, "shape", ())
        if len(shape) != 3:
            raise UserError(f"{place}tables.features: {tables.features!r} holds no feature maps")
        with placed(place):
            found[name] = method.pair_teacher(name, student, tables.detections, tables.features, shape)
    return found


def levels(nodes: Mapping[str, Node]) -> list[list[str]]:
    """Table names by depth: what stands in one level needs nothing of the same level."""
    depth: dict[str, int] = {}
    for name, node in nodes.items():
        depth[name] = 1 + max((depth[up] for up in node.stage.inputs), default=-1)
    return [[name for name in nodes if depth[name] == d] for d in range(max(depth.values(), default=-1) + 1)]


def passes(names: Sequence[str], nodes: Mapping[str, Node]) -> list[list[str]]:
    """Group the tables of one level that share a pass: equal ``vision_key``, source, decoding, batch and shard size."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        node = nodes[name]
        stage = node.stage
        key = (
            (stage.vision_key, stage.source, stage.batch_size, node.splits, node.shard_rows)
            if stage.vision_key
            else name
        )
        groups.setdefault(key, []).append(name)
    return list(groups.values())
