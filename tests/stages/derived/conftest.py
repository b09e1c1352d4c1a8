"""The teachers' tiny checkpoints, for tables below theirs."""

from tests.stages.teacher.conftest import blip_config, checkpoints, families, processor  # noqa: F401
