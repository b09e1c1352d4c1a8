"""A checkpoint may be anybody's: what it says of its detector is looked at before anything of it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.pipeline.detector import said_stage
from hoi_distill.storage.errors import UserError


def test_a_detectron2_configuration_in_python_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir('{tmp_path}/sprung')")
    said = {"config": str(tmp_path / "evil.py"), "weights": "model.pth"}
    identity = {"stage": "detectron2", "parameters": said, "fingerprint": "0"}
    with pytest.raises(UserError, match=r"checkpoint: identities.detections: .*evil.py: .*is a program.*--detections"):
        said_stage(Path("checkpoint"), "detections", identity)
    assert not (tmp_path / "sprung").exists()


def test_any_other_stage_is_what_it_was():
    identity = {"stage": "detector", "parameters": {"checkpoint": "a/b", "states": True}, "fingerprint": "0"}
    kind, parameters = said_stage(Path("checkpoint"), "detections", identity)
    assert (kind, parameters) == ("detector", {"checkpoint": "a/b", "states": True})


@pytest.mark.parametrize(
    "identity", [None, {}, [], "x", {"stage": "detector"}, {"stage": "d", "parameters": [1], "fingerprint": ""}]
)
def test_a_checkpoint_that_does_not_say_what_it_read_is_one_line(identity):
    with pytest.raises(UserError, match=r"config.json: identities.features does not say"):
        said_stage(Path("checkpoint"), "features", identity)
