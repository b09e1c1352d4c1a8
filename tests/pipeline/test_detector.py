"""A student in three lines: whatever form an image has, its pairs are those that ``predict`` writes."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hoi_distill import HOIDetector, HOIResult
from hoi_distill.pipeline.filling.run import fill_cache
from hoi_distill.pipeline.prediction import predict_images
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.student.methods.vlm_hoi.config import network_config
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.vlm_hoi_world import tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A student that looks at the images themselves, of random weights. It takes every object for a bicycle."""
    folder = tmp_path_factory.mktemp("student")
    config = tiny_config()
    network = Muren(network_config(config, VOCABULARY))
    network.object_classifier.bias.data[VOCABULARY.objects.index("bicycle")] = 20
    VlmHoiStudent(network, VOCABULARY, config).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    """A PNG, which keeps its pixels, that EXIF turns."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def alike(one: HOIResult, other: HOIResult) -> bool:
    """Whether two results are the same but for rounding, which the size of a batch moves."""
    names = (one.verb, one.object) == (other.verb, other.object)
    return names and all(
        np.allclose(getattr(one, field), getattr(other, field), atol=1e-3, equal_nan=True)
        for field in ("human_box", "object_box", "score")
    )


def test_every_form_of_an_image_gives_the_pairs_that_predict_writes(checkpoint, photo, tmp_path):
    detector = HOIDetector.from_pretrained(checkpoint, device="cpu")
    result = detector(str(photo))
    assert result.image.size == (48, 64)
    predict_images(checkpoint, [photo], tmp_path / "out", threshold=0.5, device="cpu")
    rows = pq.read_table(tmp_path / "out/detections.parquet").to_pylist()
    assert len(result) == len(rows) > 0
    assert sorted(result.score.tolist(), reverse=True) == result.score.tolist()
    assert sorted(row["score"] for row in rows) == sorted(result.score.tolist())
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/photo.png"
        forms = [photo, Image.open(photo), np.asarray(result.image), address]
        for one in (*detector(forms), *(detector(form) for form in forms)):
            assert alike(one, result)
        server.shutdown()


def test_a_stream_of_any_length_is_read_a_batch_at_a_time(checkpoint, photo):
    taken = []

    def images():
        for number in range(7):
            taken.append(number)
            yield photo

    detector = HOIDetector.from_pretrained(checkpoint, device="cpu", threshold=0.2)
    found = detector.stream(images(), batch_size=3)
    first = next(found)
    assert taken == [0, 1, 2]
    others = list(found)
    assert len(others) == 6
    assert all(alike(one, first) for one in others)
    assert (first.score >= 0.2).all()


def test_a_result_is_json_and_a_drawing(checkpoint, photo):
    result = HOIDetector.from_pretrained(checkpoint, device="cpu")(photo)
    record = json.loads(json.dumps(result.to_dict()))[0]
    assert list(record) == ["verb", "object", "score", "human_box", "object_box"]
    assert record["verb"] in VOCABULARY.verbs
    assert result.plot().width == 720  # 48 x 64, enlarged until the longer side is 960


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone.jpg", "gone.jpg: cannot be read: No such file or directory"),
        (np.zeros((4, 4), np.uint8), r"an array of uint8 \[4, 4\] is no image; give uint8 \[H, W, 3\], RGB"),
        (np.zeros((4, 4, 3)), "an array of float64"),
        ("http://127.0.0.1:9/a.jpg", "http://127.0.0.1:9/a.jpg: cannot be read: .*refused"),
    ],
)
def test_what_is_no_image_is_one_line(checkpoint, given, said):
    with pytest.raises(UserError, match=said) as refusal:
        HOIDetector.from_pretrained(checkpoint, device="cpu")(given)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_student_finds_its_detector_and_encoder_from_any_folder(pico_run, monkeypatch, tmp_path):
    config, world = pico_run
    root = Path.cwd()
    workspace = prepare(config, ["workers.executor=inline", f"runs={root / 'runs' / tmp_path.name}"])
    fill_cache(workspace)
    run = train_student(workspace)
    try:
        monkeypatch.chdir(tmp_path)
        image = next((world / "images/test2015").iterdir())
        assert HOIDetector.from_pretrained(run / "checkpoint", device="cpu")(image).image.size[0] > 0
    finally:
        shutil.rmtree(root / "runs" / tmp_path.name)


def test_other_devices_and_checkpoints_are_one_line(checkpoint, tmp_path):
    with pytest.raises(UserError, match="device: tpu: torch cannot use it here"):
        HOIDetector.from_pretrained(checkpoint, device="tpu")
    with pytest.raises(UserError, match="not a student's checkpoint"):
        HOIDetector.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="takes no boxes"):
        HOIDetector.from_pretrained(checkpoint, detections="boxes.json")


def test_the_package_alone_imports_nothing_heavy():
    script = "import sys, hoi_distill; print(sorted({'torch', 'pyarrow', 'PIL', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
