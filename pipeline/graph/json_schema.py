"""The JSON schema of a configuration, by which an editor completes and checks its keys."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from hoi_distill.pipeline.config.schema import Config
from hoi_distill.pipeline.config.student import section_model
from hoi_distill.pipeline.graph.registry import STAGES, stage_class
from hoi_distill.stages.student.method import METHODS, method_named

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def configuration_schema() -> dict[str, Any]:
    """The schema of :class:`Config`, with the keys of a table by its ``stage`` and those of a student by its ``method``."""
    schema = TypeAdapter(Config).json_schema()
    definitions = schema.setdefault("$defs", {})
    table = definitions.pop("TableSection")
    common = {key: value for key, value in table["properties"].items() if key != "stage"}
    tables = {stage: _definition(f"stage:{stage}", stage_class(stage).Config, definitions) for stage in STAGES}
    for stage, own in tables.items():
        own["properties"] = {"stage": {"const": stage}, **common, **own["properties"]}
        own["required"] = ["stage", *own.get("required", [])]
    methods = {name: _definition(f"method:{name}", section_model(method_named(name)), definitions) for name in METHODS}
    for name, own in methods.items():
        own["properties"]["method"] = {"const": name}
    first = next(iter(METHODS))
    definitions["table"] = _chosen("stage", list(tables), {name: f"stage:{name}" for name in tables}, None)
    definitions["student"] = _chosen("method", list(methods), {name: f"method:{name}" for name in methods}, first)
    properties = schema["properties"]
    properties["tables"]["additionalProperties"] = {"$ref": "#/$defs/table"}
    properties["pair_teachers"]["additionalProperties"] = {"$ref": "#/$defs/student"}
    properties["student"] = {"$ref": "#/$defs/student"}
    return {"$schema": DIALECT, **schema}


def _definition(name: str, model: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Add a model's schema to the definitions under this name. Definitions that it needs get the name as a prefix, as
    methods have classes of one name."""
    own = TypeAdapter(model).json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    for inner, definition in own.pop("$defs", {}).items():
        definitions[f"{name}.{inner}"] = definition
    definitions[name] = own
    return own


def _chosen(key: str, names: list[str], definitions: dict[str, str], default: str | None) -> dict[str, Any]:
    """A section whose keys are those of the definition that ``key`` names."""
    rules: list[dict[str, Any]] = [
        {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": {"$ref": f"#/$defs/{definition}"}}
        for name, definition in definitions.items()
    ]
    if default is None:
        return {"type": "object", "properties": {key: {"enum": names}}, "required": [key], "allOf": rules}
    rules.append({"if": {"not": {"required": [key]}}, "then": {"$ref": f"#/$defs/{definitions[default]}"}})
    return {"type": "object", "properties": {key: {"enum": names, "default": default}}, "allOf": rules}
