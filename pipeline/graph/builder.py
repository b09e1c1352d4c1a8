"""The stage graph: a configuration's tables as stage objects, upstream first."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, create_model

from hoi_distill.pipeline.config.documents import hint, shown, validate
from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.stage import Stage
from hoi_distill.storage.errors import UserError, did_you_mean, placed

if TYPE_CHECKING:
    from hoi_distill.stages.data.annotations import Annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary

STAGES: dict[str, str] = {
    "detections_file": "hoi_distill.stages.teacher.detectors.given:DetectionsFromFile",
    "ground_truth_boxes": "hoi_distill.stages.teacher.detectors.given:DetectionsFromAnnotations",
    "blip_features": "hoi_distill.stages.teacher.blip.stages:BlipFeatures",
    "blip_itm": "hoi_distill.stages.teacher.blip.stages:BlipItm",
    "blip_itc": "hoi_distill.stages.teacher.blip.itc:BlipItc",
    "blip_captions": "hoi_distill.stages.teacher.blip.stages:BlipCaptions",
    "blip2_features": "hoi_distill.stages.teacher.blip.blip2:Blip2Features",
    "blip2_itm": "hoi_distill.stages.teacher.blip.blip2:Blip2Itm",
    "blip2_itc": "hoi_distill.stages.teacher.blip.itc:Blip2Itc",
    "vision_features": "hoi_distill.stages.teacher.vision_features:VisionFeatures",
    "answers": "hoi_distill.stages.teacher.answers:Answers",
    "triplets": "hoi_distill.stages.derived.triplets:Triplets",
    "image_labels": "hoi_distill.stages.derived.image_labels:ImageLabels",
    "sentence_embeddings": "hoi_distill.stages.teacher.sentence_embeddings:SentenceEmbeddings",
    "text_embeddings": "hoi_distill.stages.teacher.text_embeddings:TextEmbeddings",
    "detector": "hoi_distill.stages.teacher.detectors.transformers:Detector",
    "detectron2": "hoi_distill.stages.teacher.detectors.detectron2:Detectron2Detector",
    "link_pairs": "hoi_distill.stages.student.methods.link.teacher_stages:LinkPairs",
    "link_maps": "hoi_distill.stages.student.methods.link.teacher_stages:LinkMaps",
}
"""What may stand under ``stage:``. A stage's constructor arguments are its keys in the configuration; the arguments that
:meth:`Context.given` names are filled in by the graph unless the configuration gives them."""


@dataclass(frozen=True)
class Context:
    """What a stage's constructor may ask for by name beside the keys of the configuration.

    Attributes:
        prompts: the vocabulary's prompts.
        annotations: the dataset, by split.
        digests: remembers the digests of weight files; ``derived``: those of the tensors in them.
    """

    vocabulary: Vocabulary
    prompts: tuple[str, ...]
    annotations: Mapping[str, Annotations]
    digests: Callable[[Sequence[Path]], np.ndarray]
    derived: Callable[[Path, str, Callable[[], str]], str] | None = None

    def written_out(self, columns: Any) -> Any:
        """A configuration's columns, with the sentences in place of ``prompts``, ``verb_prompts``, ``object_prompts``
        and ``verification_questions``, which may stand alone or in a list, each sentence once.

        Raises:
            UserError: a text that is none of these.
        """
        words = self.vocabulary
        named: dict[str, Callable[[], Iterable[str]]] = {
            "prompts": lambda: self.prompts,
            "verb_prompts": words.verb_prompts,
            "object_prompts": words.object_prompts,
            "verification_questions": words.questions,
        }
        if isinstance(columns, str) and columns not in named:
            raise UserError(
                f"expected a list, or {', '.join(named)}; got {shown(columns)}{did_you_mean(columns, named)}"
            )
        listed = [columns] if isinstance(columns, str) else columns
        if not isinstance(listed, list) or not any(isinstance(each, str) and each in named for each in listed):
            return columns
        found: dict[Any, None] = {}
        for each in listed:
            found |= dict.fromkeys(named[each]() if each in named else [each])
        return tuple(found)

    def given(self) -> dict[str, Any]:
        words = self.vocabulary
        hois = [(int(verb), int(thing)) for verb, thing in words.hois]
        return {
            "annotations": joined(list(self.annotations.values())),
            "verbs": words.verbs,
            "objects": words.objects,
            "hois": hois,
            "questions": words.questions(),
        }


def joined(splits: Sequence[Annotations]) -> Annotations:
    """All splits as one, for stages that look up a picture's record by its name."""
    first = splits[0]
    if len(splits) == 1:
        return first
    ends = np.cumsum([0, *(len(part.human_box) for part in splits)])
    offsets = [part.pair_offsets[1:] + end for part, end in zip(splits, ends, strict=False)]
    columns = ("image_id", "width", "height", "human_box", "object_box", "object", "verb", "hoi")
    stacked: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in splits]) for name in columns}
    return replace(
        first,
        split="+".join(part.split for part in splits),
        path=[path for part in splits for path in part.path],
        pair_offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        image_hois=None,
        **stacked,
    )


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


def build_graph(config: Config, context: Context, where: Path) -> dict[str, Node]:
    """Nodes in topological order.

    Raises:
        UserError: unknown stage, unknown or wrong parameter, missing or cyclic input, an input that lacks a split.
    """
    nodes: dict[str, Node] = {}
    teachers: dict[str, Any] = {}
    later = [name for name, table in config.tables.items() if "teacher" in table.parameters()]
    for name in [*(name for name in config.tables if name not in later), *later]:
        table = config.tables[name]
        if later and name == later[0]:
            teachers = pair_teachers(config, nodes, where)
        stage = build_stage(table.stage, table.parameters(), context, f"{where}: tables.{name}", teachers)
        splits = tuple(split for split in table.splits if split in config.splits())
        nodes[name] = Node(name, stage, splits, table.shard_rows)
    for name, node in nodes.items():
        for up in node.stage.inputs:
            if up not in nodes:
                raise UserError(f"{where}: tables.{name}: reads table {up!r}; there are {', '.join(sorted(nodes))}")
            if nodes[up].stage.source != node.stage.source:
                raise UserError(f"{where}: tables.{name}: has rows of {node.stage.source}, {up} of another source")
            for column in node.stage.columns:
                asked = {
                    "computed from": node.stage.dependencies(column) or {},
                    "chosen by": node.stage.selection_inputs(column),
                }
                for how, above in asked.items():
                    if lacking := [other for other in above.get(up, ()) if other not in nodes[up].stage.columns]:
                        raise UserError(
                            f"{where}: tables.{name}.columns: {column!r} is {how} column {lacking[0]!r} of {up}; "
                            f"add it to tables.{up}.columns"
                        )
            if missing := [split for split in node.splits if split not in nodes[up].splits]:
                raise UserError(f"{where}: tables.{name}.splits: {missing[0]} is not among the splits of {up}")
    try:
        order = list(TopologicalSorter({name: node.stage.inputs for name, node in nodes.items()}).static_order())
    except CycleError as error:
        raise UserError(f"{where}: tables: {' -> '.join(error.args[1])} is a circle") from None
    return {name: nodes[name] for name in order}


def pair_teachers(config: Config, nodes: Mapping[str, Node], where: Path) -> dict[str, Any]:
    """The networks of ``pair_teachers:`` by name, as stages take them, not bound to a training yet.

    Raises:
        UserError: a section that is wrong, of a method that gives no such answers, or of tables that are not there.
    """
    found = {}
    for name, section in config.pair_teachers.items():
        place = f"{where}: pair_teachers.{name}."
        method, student, pictures = read_section(section, place)
        tables = pictures.tables
        for role in ("detections", "features"):
            if getattr(tables, role) not in nodes:
                raise UserError(f"{place}tables.{role}: there is no table {getattr(tables, role)!r}")
        shape: tuple[int, ...] = getattr(nodes[tables.features].stage.output, "shape", ())
        if len(shape) != 3:
            raise UserError(f"{place}tables.features: {tables.features!r} holds no feature maps")
        with placed(place):
            found[name] = method.pair_teacher(name, student, tables.detections, tables.features, shape)
    return found


def build_stage(
    kind: str, parameters: dict[str, Any], context: Context, where: str, teachers: Mapping[str, Any] | None = None
) -> Stage:
    """Construct one stage from the configuration's keys, checked against its constructor's signature.

    Args:
        teachers: what a stage's ``teacher`` may name.
    """
    if kind not in STAGES:
        raise UserError(f"{where}.stage: unknown stage {kind!r}; {hint(kind, STAGES)}")
    module, _, attribute = STAGES[kind].partition(":")
    make = getattr(importlib.import_module(module), attribute)
    arguments = constructor_arguments(make)
    given = context.given()
    injected = {name: given[name] for name in arguments if name in given and name not in parameters}
    fields = {name: field for name, field in arguments.items() if name not in injected}
    weights = [name for name in ("checkpoint", "embeddings") if name in fields]
    for name in weights:
        default = fields[name][1]
        fields[name] = (str | CheckpointName | None if default is None else str | CheckpointName, default)
    if "teacher" in fields:
        fields["teacher"] = (str, ...)
    if "columns" in parameters and "columns" in fields:
        try:
            parameters = {**parameters, "columns": context.written_out(parameters["columns"])}
        except UserError as error:
            raise UserError(f"{where}.columns: {error}") from None
    rules = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    checked = validate(create_model("Parameters", __config__=rules, **fields), parameters, f"{where}.")
    chosen = {name: getattr(checked, name) for name in fields}
    if "teacher" in chosen:
        known = teachers or {}
        if chosen["teacher"] not in known:
            raise UserError(
                f"{where}.teacher: no pair teacher {chosen['teacher']!r}; "
                + (f"there are {', '.join(known)}" if known else "name one under pair_teachers")
            )
        chosen["teacher"] = known[chosen["teacher"]]
    for name in weights:
        if chosen[name] is None:
            continue
        from hoi_distill.stages.teacher.weights import Checkpoint

        hub = CheckpointName(id=chosen[name]) if isinstance(chosen[name], str) else chosen[name]
        try:
            chosen[name] = Checkpoint.find(hub.id, hub.revision, context.digests, context.derived)
        except UserError as error:
            raise UserError(f"{where}.{name}: {error}") from None
    try:
        stage: Stage = make(**chosen, **injected)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not stage.columns or len(set(stage.columns)) != len(stage.columns):
        raise UserError(f"{where}.columns: expected at least one column, each once")
    return stage


class CheckpointName(BaseModel):
    """A local folder or a hub id, with the hub's revision."""

    model_config = ConfigDict(extra="forbid")

    id: str
    revision: str | None = None


def constructor_arguments(make: type[Stage]) -> dict[str, Any]:
    """``{name: (type, default)}`` of a stage's constructor; ``**options`` stands for the base class's keyword arguments."""
    found: dict[str, Any] = {}
    for cls in make.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        passed_on = False
        for name, parameter in list(inspect.signature(vars(cls)["__init__"], eval_str=True).parameters.items())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                passed_on = True
            elif name not in found:
                annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
                found[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
        if not passed_on:
            break
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
