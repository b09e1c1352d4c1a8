"""Held-out images by configuration: which they are, what they change, and what is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.annotations import labels_of
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError


def labels(config: Path, *overrides: str):
    workspace = prepare(config, [f"student.{override}" for override in overrides])
    method, keys, data = student_section(workspace)
    needs = method.needs(keys, workspace.vocabulary)
    return labels_of(workspace, data, method, needs, workspace.images.distinct_records("train")), workspace


def test_a_share_is_held_out_whatever_the_seed_and_seen_by_nobody(pico_run):
    config, _ = pico_run
    whole, _ = labels(config)
    part, _ = labels(config, "validation=0.25", "seed=3")
    again, _ = labels(config, "validation=0.25")
    assert part.held_out.tolist() == again.held_out.tolist()
    assert len(part.held_out) == 3  # of the 12 that are labelled
    assert not part.labelled[part.held_out].any()
    assert part.excluded[part.held_out].all()  # not as unlabelled images either
    assert part.left_out == {"held out for validation": 3}
    assert part.before.tolist() == whole.before.tolist()  # the same classes are rare
    assert part.words() == ". 3 images are held out to choose the best student"
    assert len(whole.held_out) == 0


def test_a_file_names_the_images_that_are_held_out(pico_run, tmp_path):
    config, _ = pico_run
    names = prepare(config).dataset["train"].image_id
    (tmp_path / "held.txt").write_text(f"{names[4]}\n\n{names[1]}\n")
    found, _ = labels(config, f"validation={tmp_path / 'held.txt'}")
    assert found.held_out.tolist() == [1, 4]


WRONG = [
    (("validation=1.5",), r"student\.validation"),
    (("validation=nowhere.txt",), r"student\.validation: nowhere\.txt: cannot be read \(No such file"),
    (("validation=held.txt",), r"held\.txt: 'HICO_train2015_000000.jpg' is no labelled training image \(did you mean"),
    (("validation=unlabelled.txt",), "is no labelled training image"),
    (("validation=empty.txt",), r"empty\.txt: no name in it"),
    (("patience=3",), r"student\.patience: there are no held-out images; write validation: 0\.2"),
    (("validate_every=3",), r"student\.validate_every: there are no held-out images"),
    (("validation=0.2", "patience=-1"), r"student\.patience: expected at least 0; got -1"),
    (("epochs=2",), r"student\.epochs: 2, and steps is 2; give one of the two"),
    (("rare_below=0",), r"student\.rare_below: expected at least 1; got 0"),
    (("labelled=annotatd",), r"student\.labelled: expected .*annotated.*; got 'annotatd' \(did you mean annotated\?\)"),
]


@pytest.mark.parametrize(("overrides", "said"), WRONG)
def test_a_wrong_key_is_one_line(pico_run, tmp_path, overrides, said):
    config, _ = pico_run
    names = prepare(config).dataset["train"].image_id
    (tmp_path / "held.txt").write_text("HICO_train2015_000000.jpg")
    (tmp_path / "unlabelled.txt").write_text(str(names[-1]))
    (tmp_path / "empty.txt").write_text("\n")
    here = {f"validation={name}.txt": f"validation={tmp_path / name}.txt" for name in ("held", "unlabelled", "empty")}
    with pytest.raises(UserError, match=said) as refusal:
        labels(config, *(here.get(text, text) for text in overrides))
    assert "\n" not in str(refusal.value)


def test_all_labelled_images_cannot_be_held_out(pico_run):
    with pytest.raises(UserError, match="no annotation is left to train on; label more images"):
        labels(pico_run[0], "labelled=1", "validation=0.9")


@pytest.mark.slow
def test_a_training_is_judged_by_them_and_the_report_says_so(pico_run, capsys):
    config, _ = pico_run
    changes = ["student.validation=0.25", "student.validate_every=1", "student.log_every=1", "student.rare_below=3"]
    workspace = prepare(config, changes)
    with choose_executor("inline", "cpu", 1) as execute:
        fill(workspace, execute, threading.Event())
    run = train_student(workspace, name="judged")
    record = json.loads((run / "validation.json").read_text())
    assert [check["step"] for check in record["checks"]] == [1, 2]
    assert record["images"] == 3
    assert json.loads((run / "student.json").read_text())["pictures"]["validation"] == 3
    page = (run / "report.html").read_text()
    assert f"the student of step {record['kept_step']}, the best on 3 held-out images" in page
    assert "fewer than 3 annotated training pairs" in page
    assert (run.parent / "judged").resolve() == run.resolve()
    log = (run / "log.txt").read_text()
    assert "kept the student of step" in log
    said = capsys.readouterr().out
    assert "9 annotated images" in said
    other = train_student(prepare(config, changes[:3]), name="judged")
    assert other == run  # what is rare is a matter of the evaluation alone
    assert "Trained already" in capsys.readouterr().out
    assert np.isfinite(record["map"])
