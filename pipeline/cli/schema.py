"""``hoi-distill schema``: print the JSON schema of a configuration."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON schema of a configuration, by which an editor completes and checks its keys."""
    from hoi_distill.pipeline.graph.json_schema import configuration_schema

    print(json.dumps(configuration_schema(), indent=1))
