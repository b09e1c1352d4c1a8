"""New images: each has a drawing of its own, none but the given ones is opened, and places are tried before the work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hoi_distill.pipeline import prediction
from hoi_distill.pipeline.prediction import predict_images
from hoi_distill.stages.student.methods.vlm_hoi.config import network_config
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.vlm_hoi_world import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A student that looks at the images themselves, of random weights."""
    folder = tmp_path_factory.mktemp("student")
    config = tiny_config()
    VlmHoiStudent(Muren(network_config(config, VOCABULARY)), VOCABULARY, config).save_pretrained(folder)
    return folder


def image(path: Path, seed: int, kind: str = "JPEG") -> Path:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, kind)
    return path


def test_images_that_differ_in_their_suffix_have_a_drawing_each(checkpoint, tmp_path):
    given = [
        image(tmp_path / "in/a.jpg", 1),
        image(tmp_path / "in/a.png", 2, "PNG"),
        image(tmp_path / "in/a", 3),
        image(tmp_path / "in/a.b.jfif", 4),
        image(tmp_path / "in" / os.fsdecode(b"Mu\xf1oz.jpg"), 5),
    ]
    predict_images(checkpoint, given, tmp_path / "out", threshold=0.0)
    found = tmp_path / "out" / "detections.parquet"
    names = {path.name for path in given[:-1]} | {"Mu\\xf1oz.jpg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "detections.parquet",
        *(f"{name}.predicted.png" for name in names),
    }
    assert set(pq.read_table(found)["image_id"].to_pylist()) <= names


def test_no_other_image_of_the_folder_is_opened(checkpoint, tmp_path):
    given = image(tmp_path / "in/a.jpg", 1)
    os.mkfifo(tmp_path / "in/b.jpg")  # to open it would wait for good
    (tmp_path / "in/c.jpg").write_bytes(b"no picture")
    predict_images(checkpoint, [given], tmp_path / "out", threshold=0.5)
    assert (tmp_path / "out/a.jpg.predicted.png").exists()


def test_everything_works_where_it_is_told_to(checkpoint, tmp_path, monkeypatch):
    """A GPU is the default where there is one; here there may be none, so what would be used is looked at."""
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(prediction, "refuse_absent", lambda device, where: asked.append((device, where)))
    monkeypatch.setattr(VlmHoiStudent, "predict", lambda self, *given, device, **more: stop(device))

    def stop(device: str) -> None:
        raise UserError(f"would work on {device}")

    for device, used in ((None, "cuda"), ("cpu", "cpu"), ("cuda:1", "cuda:1")):
        with pytest.raises(UserError, match=f"would work on {used}$"):
            predict_images(
                checkpoint, [image(tmp_path / "in/a.jpg", 1)], tmp_path / "out", threshold=0.5, device=device
            )
    assert asked == [("cuda", "--device"), ("cpu", "--device"), ("cuda:1", "--device")]


@pytest.mark.parametrize(
    ("device", "out", "said"),
    [
        ("tpu", "out", "--device: tpu: torch cannot use it here"),
        ("cpu", "in/a.jpg", "--out .*a.jpg: a file; name a folder"),
        ("cpu", "in/a.jpg/below", "--out .*below: cannot be written: Not a directory; give another"),
        ("cpu", "/proc/out", "--out /proc/out: cannot be written: .*; give another place"),
    ],
)
def test_places_are_tried_before_the_checkpoint_is_loaded(tmp_path, monkeypatch, device, out, said):
    monkeypatch.setattr("hoi_distill.stages.student.pretrained.load_student", None)
    given = image(tmp_path / "in/a.jpg", 1)
    with pytest.raises(UserError, match=said) as refusal:
        predict_images(tmp_path, [given], tmp_path / out, threshold=0.5, device=device)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["gone.jpg", "empty.jpg", "text.jpg"])
def test_an_image_that_is_none_is_one_line_and_nothing_is_written(checkpoint, tmp_path, name):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=name) as refusal:
        predict_images(checkpoint, [tmp_path / name], tmp_path / "out", threshold=0.5)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named_and_left_out_and_the_others_are_predicted(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prediction, "TOGETHER", 2)
    given = [image(tmp_path / f"in/{number}.jpg", number) for number in range(5)]
    given[2].write_bytes(b"no picture")
    left_out = predict_images(checkpoint, given, tmp_path / "out", threshold=0.0)
    assert list(left_out) == ["2.jpg"]
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("2.jpg: not an image in a known format; left out")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{n}.jpg.predicted.png" for n in (0, 1, 3, 4)}
    assert set(pq.read_table(tmp_path / "out/detections.parquet")["image_id"].to_pylist()) <= {
        f"{n}.jpg" for n in range(5)
    }


def test_images_of_a_folder_are_named_by_their_path_below_it(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    image(tmp_path / "in/day/a.jpg", 1)
    image(tmp_path / "in/night/a.jpg", 2)
    assert predict_images(checkpoint, [tmp_path / "in"], tmp_path / "out", threshold=0.0) == {}
    assert (tmp_path / "out/day/a.jpg.predicted.png").exists()
    assert (tmp_path / "out/night/a.jpg.predicted.png").exists()


def test_two_images_of_one_name_are_refused(checkpoint, tmp_path):
    given = [image(tmp_path / "one/a.jpg", 1), image(tmp_path / "other/a.jpg", 2)]
    with pytest.raises(UserError, match=r"^a.jpg: two images of this name"):
        predict_images(checkpoint, given, tmp_path / "out", threshold=0.5)


def test_a_folder_without_images_is_one_line(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images in this folder$"):
        predict_images(checkpoint, [tmp_path / "empty"], tmp_path / "out", threshold=0.5)
