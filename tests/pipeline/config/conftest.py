"""The teachers' tiny checkpoints, for configurations that name published ones."""

from tests.stages.teacher.conftest import blip_config, checkpoints, families, processor  # noqa: F401
